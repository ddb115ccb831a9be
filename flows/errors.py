"""The errors that end a flow, or one of its stages, with one clear line.

FlowError
├── GraphError      dvc.yaml cannot be read, has a cycle, or lacks a target
├── PolicyError     a stage's `meta` holds an unknown key or a wrong value
├── WorkspaceBusy   another flow runs in this workspace
├── StageFailed     a stage's command failed
├── StageTimedOut   a stage took longer than its policy allows
└── StageStopped    the flow was told to stop while the stage ran
"""


class FlowError(Exception):
    """What went wrong and what helps, in one line."""


class GraphError(FlowError):
    """dvc.yaml cannot be read, has a cycle, or lacks a target."""


class PolicyError(FlowError):
    """A stage's ``meta`` holds an unknown key or a wrong value."""


class WorkspaceBusy(FlowError):  # noqa: N818 - a state of the workspace, not a fault
    """Another flow runs in this workspace."""


class StageFailed(FlowError):  # noqa: N818 - as Prefect names its states
    """A stage's command failed."""


class StageTimedOut(FlowError):  # noqa: N818
    """A stage took longer than its policy allows."""


class StageStopped(FlowError):  # noqa: N818
    """The flow was told to stop while the stage ran."""
