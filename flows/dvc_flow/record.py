"""Record the result of a run as a commit of the branch or as a DVC experiment, and share it.

Runs whose result could not be recorded or shared are rejected up front.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dvc_flow.errors import RecordError
from dvc_flow.repository import Node, Repository

Record = Literal["commit", "experiment"]

GIT = ("git",)
DVC = (sys.executable, "-P", "-m", "dvc")  # not the repository's own dvc.py


def require_recordable(
    repository: Repository, record: Record | None, *, pull: bool = False, push: bool = False
) -> None:
    """Check that a result can be recorded and shared as requested.

    Parameters
    ----------
    repository : Repository
    record : {"commit", "experiment"} or None
    pull, push : bool
        Whether data shall come from DVC's remote, and whether the result shall be shared: data
        with DVC's remote, what is recorded with git's.

    Raises
    ------
    RecordError
        If there is no remote, no commit to build on, or nobody to commit as; and for a commit, if
        no branch is checked out, or what is there is not committed.
    """
    root = repository.root
    if (pull or push) and not repository.has_remote():
        raise RecordError(
            f"{root}: DVC has no remote; add one with dvc remote add --default NAME URL"
        )
    if record is None:
        return
    if not _answers(root, "rev-parse", "--verify", "--quiet", "HEAD"):
        raise RecordError(f"{root}: has no git commit to record a result on; commit first")
    if not _answers(root, "var", "GIT_COMMITTER_IDENT"):
        raise RecordError(
            f"{root}: git does not know who commits; set user.name and user.email with git config"
        )
    if record == "commit":
        branch(root)
        _require_clean(root)
    if push:
        _remote(root)


def _require_clean(root: Path) -> None:
    changes = _run(root, *GIT, "status", "--porcelain").splitlines()
    if changes:
        first = changes[0].split(maxsplit=1)[1]
        raise RecordError(
            f"{root}: {len(changes)} uncommitted {'change' if len(changes) == 1 else 'changes'}, "
            f"such as {first}; commit or stash before --record commit, or use --record experiment, "
            "which takes them along"
        )


def branch(root: Path) -> str:
    """Return the name of the branch that is checked out.

    Raises
    ------
    RecordError
        If there is none: HEAD is detached.
    """
    if not _answers(root, "symbolic-ref", "--quiet", "HEAD"):
        raise RecordError(
            f"{root}: HEAD is detached, and a commit there would be lost; check out a branch "
            "before --record commit, or use --record experiment"
        )
    return _run(root, *GIT, "symbolic-ref", "--short", "HEAD")


def _remote(root: Path) -> str:
    """Return the git remote that takes what is recorded: the branch's own, else ``origin``."""
    remotes = _run(root, *GIT, "remote").split()
    name = "origin"
    if _answers(root, "symbolic-ref", "--quiet", "HEAD"):
        key = f"branch.{branch(root)}.remote"
        name = _run(root, *GIT, "config", "--default", name, key)
    if name not in remotes:
        raise RecordError(
            f"{root}: there is no git remote {name!r} to push to; add one with "
            f"git remote add {name} URL"
        )
    return name


def require_deployable(root: Path) -> None:
    """Check that runs elsewhere can clone what is checked out here.

    Raises
    ------
    RecordError
        If no branch is checked out, if there is no git remote, or if its address holds a password,
        which Prefect's server would store.
    """
    branch(root)
    name = _remote(root)
    address = _run(root, *GIT, "remote", "get-url", name)
    if re.match(r"[a-z+]+://[^/@]*:[^/@]+@", address) or re.match(r"https?://[^/@]+@", address):
        raise RecordError(
            f"{root}: the address of the git remote {name!r} holds credentials, which a deployment "
            f"would store; leave them to a credential helper: git remote set-url {name} "
            f"{re.sub('//[^/@]*@', '//', address)}"
        )


def require_unchanged(nodes: Sequence[Node]) -> None:
    """Check that the results belong to the code, params and data that are there now.

    Parameters
    ----------
    nodes : sequence of Node
        The stages of the run, read once more after it.

    Raises
    ------
    RecordError
        If a stage is no longer up to date: something was edited while the run was going.
    """
    for node in nodes:
        if node.changes:
            raise RecordError(
                f"not recorded, because {node.name} changed during the run "
                f"({node.changes[0]}); run again"
            )


def record_commit(
    root: Path, nodes: Sequence[Node], message: str, params: Sequence[str] = ()
) -> str | None:
    """Commit the files that the run wrote, and nothing else.

    Parameters
    ----------
    root : Path
    nodes : sequence of Node
        The stages of the run, read once more after it.
    message : str
    params : sequence of str
        The files in which the run set values.

    Returns
    -------
    str or None
        The short hash of the commit; None if there was nothing to commit.
    """
    written = [*params, *(path for node in nodes for path in node.in_git)]
    existing = [path for path in dict.fromkeys(written) if (root / path).exists()]
    new = _run(root, *GIT, "ls-files", "-moz", "--exclude-standard", "--", *existing).split("\0")
    changed = [path for path in new if path]
    if changed:
        _run(root, *GIT, "add", "--", *changed)
    if _answers(root, "diff", "--cached", "--quiet"):
        return None
    _run(root, *GIT, "commit", "--quiet", "--message", message)
    return _run(root, *GIT, "rev-parse", "--short", "HEAD")


def record_experiment(root: Path, nodes: Sequence[Node], name: str, message: str) -> str | None:
    """Save the workspace as a DVC experiment on the commit that is checked out.

    Returns
    -------
    str or None
        The experiment's name; None if the workspace is as it was committed.
    """
    if not _run(root, *GIT, "status", "--porcelain"):
        return None
    # By name: DVC would otherwise take as done what other stages have still to do, and fail on
    # files that are not here.
    stages = [node.name for node in nodes if not node.reasons()]
    if not stages:
        return None
    _run(root, *DVC, "exp", "save", "--name", name, "--message", message, *stages)
    return name


def record_result(
    root: Path,
    nodes: Sequence[Node],
    record: Record,
    *,
    title: str,
    name: str,
    push: bool,
    params: Sequence[str] = (),
) -> str:
    """Record what the run made, share it if asked, and return what was recorded.

    Parameters
    ----------
    root : Path
    nodes : sequence of Node
        The stages of the run, read once more after it.
    record : {"commit", "experiment"}
    title : str
        The message of the commit, or of the experiment's.
    name : str
        The experiment's name.
    push : bool
    params : sequence of str
        The files in which the run set values.
    """
    if record == "commit":
        commit = record_commit(root, nodes, title, params)
        if push:  # what an earlier run could not push, too
            push_commit(root)
        return f"commit {commit} on {branch(root)}" if commit else "nothing new to commit"
    experiment = record_experiment(root, nodes, name, title)
    if experiment and push:
        push_experiment(root, experiment)
    return f"experiment {experiment}" if experiment else "nothing new to save"


def push_commit(root: Path) -> None:
    """Send the branch's head to its remote.

    Raises
    ------
    RecordError
        If that fails; the commit is kept here.
    """
    name = branch(root)
    try:
        _run(root, *GIT, "push", "--quiet", _remote(root), f"HEAD:refs/heads/{name}")
    except RecordError as error:
        head = _run(root, *GIT, "rev-parse", "--short", "HEAD")
        raise RecordError(
            f"{error}; the result is commit {head} of {name} here: if the remote has moved on, "
            "git pull --rebase, and run again"
        ) from error


def push_experiment(root: Path, name: str) -> None:
    """Send an experiment's commit to the git remote; `push_outputs` sent its data."""
    _run(root, *DVC, "exp", "push", "--no-cache", _remote(root), name)


def _answers(root: Path, *git: str) -> bool:
    """Return whether a git command succeeds."""
    try:
        _run(root, *GIT, *git)
    except RecordError:
        if shutil.which("git") is None:
            raise
        return False
    return True


def _run(root: Path, *command: str) -> str:
    """Return the output of a command.

    Raises
    ------
    RecordError
        If it fails, with the line that says why.
    """
    try:
        done = subprocess.run(  # noqa: S603 - git or DVC
            command, cwd=root, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise RecordError(f"{command[0]}: cannot be run ({error.strerror})") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        told = [line for line in lines if line.lower().startswith(("error", "fatal", "!"))]
        reason = (told or lines or [f"exit status {done.returncode}"])[0]
        shown = " ".join(["git" if command[0] == "git" else "dvc", *_words(command)])
        raise RecordError(f"{root}: {shown}: {reason}")
    return done.stdout.strip()


def _words(command: Sequence[str]) -> list[str]:
    """Return the subcommand's words, such as ``exp save``."""
    words = command[len(GIT if command[0] == "git" else DVC) :]
    return [word for word in words[:2] if not word.startswith("-")]
