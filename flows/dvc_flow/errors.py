"""The errors that end a flow or one of its stages with one clear line.

FlowError
├── GraphError      dvc.yaml cannot be read, has a cycle, or lacks a target
├── PolicyError     a stage's `meta.dvc-flow` holds an unknown key or a wrong value
├── SettingsError   pyproject.toml's [tool.dvc-flow] is wrong
├── ParamsError     a value cannot be set in params.yaml
├── RecordError     a result cannot be recorded or shared as asked
├── ServerError     Prefect's temporary server does not start
├── ClusterError    a cluster's scheduler or workers cannot be used
├── WorkspaceBusy   another flow runs in this workspace
├── StageFailed     a stage's command failed
├── StageTimedOut   a stage took longer than its policy allows
├── StageStopped    the flow was told to stop while the stage ran
└── RunFailed       a stage of the run failed
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, or its kind if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown `name`: the nearest known one, or all of them."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(known)}"


@contextmanager
def explain_extra() -> Iterator[None]:
    """Turn a missing package of the extra ``cluster`` into one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"{error.name} is not installed; a cluster needs pip install 'dvc-flow[cluster]'"
        ) from error


class FlowError(Exception):
    """What went wrong, and a remedy, in one line."""


class GraphError(FlowError):
    """dvc.yaml cannot be read, has a cycle, or lacks a target."""


class PolicyError(FlowError):
    """A stage's ``meta.dvc-flow`` holds an unknown key or a wrong value."""


class SettingsError(FlowError):
    """The project's settings are wrong."""


class ServerError(FlowError):
    """Prefect's temporary server does not start."""


class ParamsError(FlowError):
    """A value cannot be set in params.yaml."""


class RecordError(FlowError):
    """A result cannot be recorded or shared as asked."""


class ClusterError(FlowError):
    """A cluster's scheduler or workers cannot be used."""


class WorkspaceBusy(FlowError):  # noqa: N818 - a state of the workspace, not a fault
    """Another flow runs in this workspace."""


class StageFailed(FlowError):  # noqa: N818 - as Prefect names its states
    """A stage's command failed.

    Parameters
    ----------
    message : str
    lines : sequence of str
        The last lines that it printed.
    """

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = tuple(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.lines)


class StageTimedOut(FlowError):  # noqa: N818
    """A stage took longer than its policy allows."""


class StageStopped(FlowError):  # noqa: N818
    """The flow was told to stop while the stage ran."""


class RunFailed(FlowError):  # noqa: N818
    """A stage of the run failed; which ones, and what became of the rest."""
