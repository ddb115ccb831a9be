"""The errors that end a stage with one clear line, and the boundary that prints it.

PipelineError
├── ParamsError      params.yaml holds an unknown key or a wrong value
├── DownloadError    no mirror supplied a file with the pinned bytes
├── DataError        an image, label or array file is not what it should be
├── ModelError       a network cannot be built, or a model file cannot be read
├── TrainingError    a training cannot start, or its numbers went wrong
├── EvaluationError  the test set cannot be measured
└── OutputError      a result cannot be written
"""

import argparse
import sys
from collections.abc import Callable


class PipelineError(Exception):
    """What went wrong, what was expected and received, and the remedy, in one line."""


class ParamsError(PipelineError):
    """params.yaml holds an unknown key or a wrong value."""


class DownloadError(PipelineError):
    """No mirror supplied a file with the pinned bytes."""


class DataError(PipelineError):
    """An image, label or array file is not what it should be."""


class ModelError(PipelineError):
    """A network cannot be built, or a model file cannot be read."""


class TrainingError(PipelineError):
    """A training cannot start, or its numbers went wrong."""


class EvaluationError(PipelineError):
    """The test set cannot be measured."""


class OutputError(PipelineError):
    """A result cannot be written."""


def run_stage(main: Callable[..., None], *arguments: str) -> None:
    """Call a stage's ``main`` with the command line's arguments; end with one line on an error.

    Parameters
    ----------
    main : callable
        Takes one string for each name in `arguments`.
    *arguments : str
        Names of the positional arguments, such as ``"dataset"`` and ``"variant"``.
    """
    module = sys.modules[main.__module__]
    stage = module.__spec__.name if module.__spec__ else main.__module__
    parser = argparse.ArgumentParser(prog=f"python -m {stage}", description=module.__doc__)
    for argument in arguments:
        parser.add_argument(argument, help=f"a name from the {argument}s in params.yaml")
    try:
        main(**vars(parser.parse_args()))
    except PipelineError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
