"""Run one stage as ``dvc repro`` does, while other threads run others.

DVC itself decides what changed, restores from its run-cache, saves and commits. Ours are only the
command, which runs while the repository is free for other stages, and the moment at which a stage
is recorded: at the latest before a stage that depends on it starts.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Self

from dvc.exceptions import CheckoutError, DvcException
from dvc.lock import LockError
from dvc.stage.cache import RunCacheNotFoundError
from dvc.stage.run import _enforce_cmd_list, _make_cmd, get_executable
from dvc.utils import fix_env

from dvc_flow.errors import FlowError, GraphError, StageFailed, StageStopped, one_line
from dvc_flow.process import Lines, explain_exit, run_process
from dvc_flow.records import Records
from dvc_flow.remote import fetch_run, inputs_of, is_recorded, pull_data
from dvc_flow.repository import Node, Repository, changes_of, reason_of
from dvc_flow.slots import Resources
from dvc_flow.stop import Stop
from dvc_flow.verify import remove_damaged

JOBS = 2
BUSY_TRIES = 60
BUSY_WAIT_S = 1.0


class Outcome(StrEnum):
    """The outcome of a stage, named like its state in Prefect."""

    RAN = "Completed"
    CACHED = "Cached"  # DVC found it unchanged
    RESTORED = "Restored"  # the cache or a remote had its outputs


class Engine:
    """Runs the stages of a plan.

    Parameters
    ----------
    repository : Repository
    nodes : sequence of Node
    force, pull, allow_missing, run_cache, commit : bool
        As ``dvc repro`` takes them.
    environment : mapping
        The environment of the stages' commands.
    reads_input : bool
        Whether the stages read our standard input.
    resources : Resources, optional
        What the stages share; by default the machine's GPUs and memory.
    stop : Stop
        When it is set, the stages are ended.
    say : callable
        Takes what concerns no stage's own output.
    """

    def __init__(
        self,
        repository: Repository,
        nodes: Sequence[Node],
        *,
        pull: bool = False,
        allow_missing: bool = False,
        run_cache: bool = True,
        commit: bool = True,
        environment: Mapping[str, str],
        reads_input: bool = False,
        resources: Resources | None = None,
        stop: Stop | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        # DVC would print to the terminal what _dvc_says passes on.
        logging.getLogger("dvc").handlers.clear()
        logging.getLogger("dvc").propagate = False
        self.repository, self.nodes = repository, nodes
        self.pull = pull
        self.allow_missing = allow_missing
        self.run_cache = run_cache
        self.commit = commit
        self.environment = environment
        self.reads_input = reads_input
        self.resources = resources or Resources()
        self.stop = stop or Stop()
        self.say = say
        self.records = Records(nodes)
        self.ran_on: dict[str, str] = {}  # by stage: another machine, or its GPUs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def places(self) -> int:
        """How many stages run at a time if nobody says."""
        return JOBS

    def run(
        self,
        node: Node,
        *,
        force: bool = False,
        on_begin: Callable[[], object] = lambda: None,
        on_lines: Callable[[list[str]], None] = lambda _: None,
    ) -> Outcome:
        """Run a stage once the GPUs and the memory that it needs are free; return its outcome.

        Parameters
        ----------
        node : Node
        force : bool
            Run it even if nothing changed.
        on_begin : callable
            Called once it has what it needs.
        on_lines : callable
            Called with the lines that DVC and the command print.

        Raises
        ------
        StageFailed
            If its command or DVC fails.
        StageTimedOut
            If it takes longer than its policy allows.
        StageStopped
            If the stages were asked to end.
        """
        policy = node.policy
        with self.resources.hold(policy.gpus, policy.memory_gb, self.stop) as (variables, held):
            on_begin()
            if variables:
                self.ran_on[node.name] = f"GPU {variables['CUDA_VISIBLE_DEVICES']}"
            run = _Run(self, node, Lines(on_lines), variables, held)
            for _ in range(BUSY_TRIES):
                if self.stop.is_set():
                    raise StageStopped(f"{node.name}: stopped")
                try:
                    with _dvc_says(on_lines), self.repository.held():
                        return run.reproduce(force)
                except FlowError as error:
                    # Another process reads or writes the same files, and says so in DVC's list.
                    if not isinstance(error.__cause__, LockError):
                        if isinstance(error, GraphError):
                            last = list(run.lines.last)
                            raise StageFailed(f"{node.name}: {error}", last) from error
                        raise
                self.stop.wait(BUSY_WAIT_S)
        raise StageFailed(f"{node.name}: another process works on its files; see .dvc/tmp/rwlock")

    def record(self) -> None:
        """Write the stages that finished into their lock files, if that is due.

        Raises
        ------
        GraphError
            If a lock file cannot be written.
        """
        if self.records.is_due:
            with self.repository.held():
                self.records.write()

    def finish(self) -> None:
        """Record all, and put what is new in the lock and .gitignore files in DVC's order."""
        with self.repository.held():
            self.records.finish()


class _Run:
    """One stage in the middle of a run, while the repository is held."""

    def __init__(
        self,
        engine: Engine,
        node: Node,
        lines: Lines,
        variables: Mapping[str, str],
        held: Sequence[int],
    ) -> None:
        assert node.stage is not None  # noqa: S101 - a planned node has one
        self.engine, self.node, self.stage = engine, node, node.stage
        self.lines, self.variables, self.held = lines, variables, held
        self.restored = False

    def reproduce(self, force: bool) -> Outcome:
        """Do what ``dvc repro`` does with one stage."""
        engine, stage = self.engine, self.stage
        engine.records.require(self.node.sources)
        if engine.pull and not force and not self.node.lost:
            changes, missing = changes_of(stage, self.node.sources)
            if not changes:
                if not missing or engine.allow_missing:
                    return Outcome.CACHED
                if self._fetch_outputs():
                    return Outcome.RESTORED
        if engine.pull:
            self._fetch_inputs()
        stage._run_stage = self._run_stage  # DVC's own would hold the repository from others
        try:
            done = stage.reproduce(
                force=force,
                upstream=list(self.node.sources),
                allow_missing=engine.allow_missing and not engine.pull,
                run_cache=engine.run_cache,
                no_commit=not engine.commit,
            )
        finally:
            del stage._run_stage
        if done is None:
            return Outcome.CACHED
        engine.records.add(stage)
        return Outcome.RESTORED if self.restored else Outcome.RAN

    def _run_stage(self, dry: bool, force: bool, run_cache: bool = True, **_: Any) -> None:
        """Restore the outputs of an earlier run, or run the command."""
        if not force and self._restore(run_cache):
            self.restored = True
            return
        if not force:
            self.stage.save_deps()
        with self.engine.repository.released():
            self._run_command()

    def _restore(self, run_cache: bool) -> bool:
        cache = self.stage.repo.stage_cache
        try:
            for name in remove_damaged(self.stage, run_cache=run_cache):
                self.engine.say(f"{name}: its copy in the cache was damaged, and is removed")
            cache.restore(self.stage, run_cache=run_cache)
        except RunCacheNotFoundError:
            return False
        return True

    def _run_command(self) -> None:
        shell = get_executable()
        name = self.node.name
        environment = fix_env(dict(self.engine.environment))
        environment.setdefault("DVC_ROOT", self.stage.repo.root_dir)
        environment |= {"DVC_STAGE": name, **self.variables}
        begin, minutes = time.monotonic(), self.node.policy.timeout_minutes
        for command in _enforce_cmd_list(self.stage.cmd):
            self.lines.on_lines([f"> {command}"])
            status = run_process(
                _make_cmd(shell, command),
                name=name,
                folder=self.stage.wdir,
                environment=environment,
                lines=self.lines,
                stop=self.engine.stop,
                begin=begin,
                timeout_s=minutes and minutes * 60,
                held=self.held,
                reads_input=self.engine.reads_input,
                background=self.node.policy.background,
            )
            if self.engine.stop.is_set():
                raise StageStopped(f"{name}: stopped")
            if status:
                last = list(self.lines.last)
                raise StageFailed(f"{name}: {explain_exit(status, command, last)}", last)

    def _fetch_outputs(self) -> bool:
        """Fetch the outputs of an unchanged stage; return whether they are here now."""
        try:
            pull_data(self.stage.repo, [out for out in self.stage.outs if out.use_cache])
            self.stage.checkout()
        except (CheckoutError, DvcException, OSError) as error:
            self.lines.on_lines([f"its outputs could not be fetched: {one_line(error)}"])
            return False
        return not any(changes_of(self.stage, self.node.sources))

    def _fetch_inputs(self) -> None:
        """Fetch what the stage reads, and its earlier runs.

        An output that is needed is fetched as a whole, even if the stage reads only a part of it: a
        part alone would look like a change of the stage that made it.
        """
        repo = self.stage.repo
        missing = [out for out in inputs_of(self.stage, self.node.sources) if is_recorded(out)]
        names = ", ".join(map(str, missing))
        try:
            if missing:
                self.lines.on_lines([f"fetching {names}"])
                pull_data(repo, missing)
        except (DvcException, OSError) as error:
            makers = " ".join(sorted({out.stage.addressing for out in missing}))
            raise StageFailed(
                f"{self.node.name}: {names} could not be fetched ({reason_of(error)}); check "
                f"that DVC's remote answers, or make them again: dvc repro --force {makers}"
            ) from error
        try:
            fetch_run(repo, self.stage)
        # Each kind of remote has a library of its own; without earlier runs, the stage runs.
        except Exception as error:
            self.lines.on_lines([f"earlier runs could not be fetched ({one_line(error)})"])


class _Handler(logging.Handler):
    """Passes on what DVC logs in one thread."""

    def __init__(self, on_lines: Callable[[list[str]], None]) -> None:
        super().__init__(logging.INFO)
        self.on_lines = on_lines
        self.thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if threading.get_ident() == self.thread:
            self.on_lines([line for line in record.getMessage().splitlines() if line.strip()])


@contextmanager
def _dvc_says(on_lines: Callable[[list[str]], None]) -> Iterator[None]:
    """Pass on what DVC logs while the block runs in this thread."""
    handler = _Handler(on_lines)
    logger = logging.getLogger("dvc")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
