"""The errors that end a stage with one clear line; `pipeline.stage` prints it.

PipelineError
├── ParamsError      params.yaml holds an unknown key or a wrong value
├── DownloadError    no mirror supplied a file with the pinned bytes
├── DataError        an image, label or array file is not what it should be
├── ModelError       a network cannot be built, or a model file cannot be read
├── TrainingError    a training cannot start, or its numbers went wrong
├── EvaluationError  the test set cannot be measured
├── OutputError      a result cannot be written
└── InputsChanged    code or params were edited while a stage ran
"""


def one_line(error: Exception) -> str:
    """Return what a library's error says, on one line: many have several."""
    return " ".join(str(error).split())


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


class InputsChanged(PipelineError):  # noqa: N818 - it tells what happened
    """Code or params were edited while a stage ran."""
