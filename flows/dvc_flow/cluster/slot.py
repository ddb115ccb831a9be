"""A process that runs one job at a time in a workspace of its own.

Called as ``python -m dvc_flow.cluster.slot DESCRIPTOR WORKSPACE CACHE`` by `machine`, with which it
talks over a socket. It keeps DVC imported between jobs, ends its stage when it is asked to, and
ends itself when the other side of the socket is gone.
"""

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc.config import Config
from dvc.dvcfile import load_file
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize._yaml import _dump

from dvc_flow.cluster.job import Address, Done, Job
from dvc_flow.cluster.snapshot import unpack
from dvc_flow.engine import Engine
from dvc_flow.environment import environment
from dvc_flow.errors import FlowError, StageStopped, one_line
from dvc_flow.remote import find_lost, inputs_of, is_recorded, pull_data, push_outputs
from dvc_flow.repository import Node, Repository, explained
from dvc_flow.settings import read_settings
from dvc_flow.slots import Resources
from dvc_flow.stop import Stop

if TYPE_CHECKING:
    from dvc.stage import Stage

STOP = "stop"


class Workspace:
    """A slot's folder, with DVC's repository in it; what DVC has read is kept from job to job.

    Parameters
    ----------
    folder : Path
    cache : Path
        DVC's cache of this machine.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.root = folder
        self.opened: tuple[object, ...] = ()
        self.files: dict[str, Any] = {}

    def lay_out(self, job: Job) -> Repository:
        """Give the folder the files of a job, and return its repository."""
        self.root = self.folder / "files" / job.inside
        unpack(
            self.folder.parent / job.snapshot, self.folder / "files", self.folder / "unpacked.json"
        )
        for name, content in job.files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != content:
                path.unlink(missing_ok=True)
                path.write_bytes(content)
        for name, entries in job.locks.items():
            path = self.root / name
            path.unlink(missing_ok=True)
            if entries:
                with open(path, "w", encoding="utf-8") as file:
                    _dump({"schema": "2.0", "stages": dict(entries)}, file)
        needed = (job.snapshot, job.inside, job.remote, job.remotes)
        if needed != self.opened:
            self.opened = ()
            os.chdir(self.root)
            self._configure(job)
            self.repository, self.files = Repository(), {}
            self.environment = environment() | read_settings(self.root).environment
            self.opened = needed
        self.repository.dvc._reset()
        for project in self.files.values():  # what a lock file says changes from job to job
            for read in ("lockfile_contents", "stages"):
                project.__dict__.pop(read, None)
        return self.repository

    def _configure(self, job: Job) -> None:
        (self.root / ".dvc/config.local").unlink(missing_ok=True)
        with explained(), Config(str(self.root / ".dvc"), validate=False).edit("local") as config:
            config["remote"].update(job.remotes)
            config["core"].update(no_scm=True, analytics=False)
            if job.remote:
                config["core"]["remote"] = job.remote
            config["cache"]["dir"] = str(self.cache)

    def load(self, address: Address) -> "Stage":
        """Return a stage; the repository is held."""
        path, name = address  # for a name alone, DVC would read the whole repository
        repo = self.repository.dvc
        if name is None:
            return repo.stage.load_one(path)
        if path not in self.files:
            self.files[path] = load_file(repo, path)
        stage: Stage = self.files[path].stages[name]
        return stage


def perform(job: Job, workspace: Workspace, stop: Stop, say: Callable[[list[str]], None]) -> Done:
    """Run a job's stage, share what it made, and return the result.

    Parameters
    ----------
    job : Job
    workspace : Workspace
    stop : Stop
        When it is set, the stage is ended.
    say : callable
        Takes the lines that DVC and the command print.

    Raises
    ------
    FlowError
        If the stage fails or is stopped, or its data cannot be fetched or sent.
    """
    repository = workspace.lay_out(job)
    with repository.held():
        stage, *sources = map(workspace.load, (job.address, *job.sources))
        node = Node(job.stage, (), job.policy, lost=job.lost, stage=stage, sources=tuple(sources))
        _remove_stale(stage, sources)
        # The command goes on from what it made before, if that is anywhere.
        earlier = [o for o in stage.outs if o.persist and o.use_cache and is_recorded(o)]
        nowhere = find_lost(earlier)
        pull_data(repository.dvc, [out for out in earlier if out not in nowhere])
    engine = Engine(
        repository,
        [node],
        pull=True,
        allow_missing=True,
        run_cache=job.run_cache,
        environment=workspace.environment,
        resources=Resources(memory_gb=float("inf")),  # the cluster's scheduler counts memory
        stop=stop,
        say=lambda text: say([text]),
    )
    outcome = engine.run(node, force=job.force, on_lines=say)
    push_outputs(repository, [node])
    entry = to_lockfile(stage)[stage.name]
    files = dict(_in_git(stage, workspace.root))
    return Done(outcome.value, entry, files, engine.ran_on.get(node.name, ""))


def _remove_stale(stage: "Stage", sources: "Sequence[Stage]") -> None:
    """Remove what earlier jobs left of a stage's inputs and outputs, if it is no longer right."""
    for out in [*inputs_of(stage, sources), *stage.outs]:
        if out.use_cache and out.exists and (not out.hash_info or out.changed_checksum()):
            out.remove()


def _in_git(stage: "Stage", root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the outputs that DVC does not cache."""
    for out in stage.outs:
        path = Path(out.fs_path)
        if out.use_cache or out.protocol != "local" or not path.is_relative_to(root):
            continue
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from ((str(f.relative_to(root)), f.read_bytes()) for f in files if f.is_file())


def serve(connection: Connection, workspace: Workspace) -> None:
    """Perform jobs until the other side closes the connection."""
    jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    stop = Stop()

    def listen() -> None:
        with suppress(EOFError, OSError):
            while True:
                message = connection.recv()
                if message == STOP:
                    stop.set()
                else:
                    jobs.put(message)
        stop.set()
        jobs.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while (job := jobs.get()) is not None:
        stop = Stop()
        with suppress(BrokenPipeError):
            connection.send(_answer(job, workspace, stop, connection.send))


def _answer(
    job: Job, workspace: Workspace, stop: Stop, say: Callable[[list[str]], None]
) -> Done | FlowError:
    try:
        return perform(job, workspace, stop, say)
    except FlowError as error:
        return error
    # Whatever it is, the coordinator has to hear of it.
    except Exception as error:
        if stop.is_set():
            return StageStopped(f"{job.stage}: stopped")
        return FlowError(f"{job.stage}: {type(error).__name__}: {one_line(error)}")


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), Workspace(Path(sys.argv[2]), Path(sys.argv[3])))
