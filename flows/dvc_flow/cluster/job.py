"""What a coordinator asks of a worker, and what it gets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dvc_flow.policy import Policy

Address = tuple[str, str | None]


@dataclass(frozen=True)
class Job:
    """One stage to run, with all that its workspace needs besides DVC's data.

    Attributes
    ----------
    stage : str
        Its name, as the coordinator shows it.
    address, sources : tuple, tuple of tuple
        The files of the stage and of those that it depends on, relative to the repository's root,
        with the stages' names in them; None in a .dvc file.
    policy : Policy
    project, snapshot : str
        Which project, and the digest of its snapshot.
    inside : str
        The repository's root, relative to the snapshot's.
    locks : mapping
        For each lock file, relative to the repository's root, the entries of the stage and of
        those that it depends on.
    files : mapping of str to bytes
        Files that came to be since the snapshot and that DVC does not cache.
    remote, remotes : str, mapping
        Where data lies: the default remote's name, and DVC's configuration of all.
    force, run_cache : bool
        As ``dvc repro`` takes them.
    lost : tuple of str
        Why its outputs cannot be fetched.
    topic : str
        Under which its lines are sent back.
    """

    stage: str
    address: Address
    sources: tuple[Address, ...]
    policy: Policy
    project: str
    snapshot: str
    inside: str
    locks: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, bytes]
    remote: str | None
    remotes: Mapping[str, Any]
    force: bool
    run_cache: bool
    lost: tuple[str, ...]
    topic: str


@dataclass(frozen=True)
class Done:
    """The result of a job.

    Attributes
    ----------
    outcome : str
        The value of the stage's `Outcome`.
    entry : mapping
        What dvc.lock records of the stage.
    files : mapping of str to bytes
        The outputs that DVC does not cache, relative to the repository's root.
    device : str
        The GPUs that it had; empty if none.
    """

    outcome: str
    entry: Mapping[str, Any]
    files: Mapping[str, bytes]
    device: str
