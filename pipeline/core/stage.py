"""What all commands have in common: arguments, exit codes, and a check that inputs did not change.

DVC records params and code after a stage has run. If they were edited meanwhile, it would record
results that they did not produce; so a stage whose inputs changed while it ran fails.
"""

import argparse
import gc
import signal
import sys
from collections.abc import Callable
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipeline.core.errors import InputsChanged, PipelineError
from pipeline.core.files import sha256
from pipeline.core.params import Params

TERMINATED = 128 + signal.SIGTERM
INTERRUPTED = 128 + signal.SIGINT

# The code that this stage started with; empty where a test calls its functions.
_code_at_begin: dict[str, str] = {}


def run_stage(main: Callable[..., None], *arguments: str) -> None:
    """Call a stage's ``main`` with the command line's arguments; on an error, exit with one line.

    Parameters
    ----------
    main : callable
        Takes one string for each name in `arguments`.
    *arguments : str
        ``"dataset"`` becomes the option ``--dataset NAME``, as DVC spells an item of a matrix.
    """
    module = sys.modules[main.__module__]
    stage = module.__spec__.name if module.__spec__ else main.__module__
    parser = argparse.ArgumentParser(prog=f"python -m {stage}", description=module.__doc__)
    for argument in arguments:
        wanted = f"a name from the {argument}s in params.yaml"
        parser.add_argument(f"--{argument}", required=True, metavar="NAME", help=wanted)
    run_command(partial(main, **vars(parser.parse_args())), stage)


def run_command(main: Callable[[], None], name: str) -> None:
    """Call `main`; on an error, exit with one line.

    Parameters
    ----------
    main : callable
    name : str
        The module's, for the line.
    """
    gc.freeze()  # what was imported stays: the garbage collector need not visit it, even at exit
    show_what_can_be_shown()
    signal.signal(signal.SIGTERM, _end_terminated)
    _code_at_begin.update(imported_code())
    try:
        main()
    except PipelineError as error:
        sys.exit(f"error: {error}")
    except MemoryError:
        sys.exit(
            f"error: {name}: out of memory; raise the limit or free some memory, then run it again"
        )
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def show_what_can_be_shown() -> None:
    """Let the terminal's streams take characters that their encoding lacks, as question marks."""
    # The streams themselves: DVC puts wrappers of its own around them.
    for stream in (sys.__stdout__, sys.__stderr__):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _end_terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Exit through every ``finally``, so that nothing half-written remains."""
    print("error: terminated", file=sys.stderr)
    sys.exit(TERMINATED)


def imported_code() -> dict[str, str]:
    """Return the SHA-256 of each imported file of this package, by path."""
    package = __name__.partition(".")[0]
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    files = {
        spec.origin
        for spec in specs
        if spec and spec.origin and spec.name.partition(".")[0] == package
    }
    return {file: sha256(Path(file)) for file in files if Path(file).is_file()}


def require_unchanged(params: Params) -> None:
    """Check that code and params are still those that the results come from.

    Parameters
    ----------
    params : Params
        The ones that the stage has read.

    Raises
    ------
    InputsChanged
        If a file of the code, or a parameter that was read, has changed since the stage began.
    """
    now = imported_code()
    changed = [Path(file).name for file, hash_ in _code_at_begin.items() if now.get(file) != hash_]
    changed += params.changed_since_read()
    if changed:
        raise InputsChanged(
            f"{', '.join(sorted(changed))} changed while the stage was running, so its "
            "results do not match the current inputs; rerun it"
        )
