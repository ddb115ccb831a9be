"""Run the stages of a plan as Prefect tasks, in parallel, each by its policy."""

import queue
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect import Task, get_client, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from dvc_flow.artifacts import StageLog
from dvc_flow.engine import Engine, Outcome
from dvc_flow.errors import ClusterError, FlowError, StageFailed, StageStopped
from dvc_flow.repository import Node
from dvc_flow.terminal import Terminal
from dvc_flow.watch import watching

JITTER = 0.5
WAKE_S = 0.5

OnError = Literal["stop", "keep-going", "ignore"]


@dataclass
class Reproduction:
    """The state that the stages of a run share.

    Parameters
    ----------
    engine : Engine
        Runs one stage.
    jobs : int or None
        The maximum number of concurrent stages; as many as the engine has places for.
    force, force_downstream : bool
        Whether to run stages that are up to date: all, or those behind one that ran.
    on_error : {"stop", "keep-going", "ignore"}
        What follows a failure: no further stage starts; those do that do not depend on it; or all.
    terminal : Terminal
        Shows the stages.
    progress : pattern
        Finds the progress in a stage's line.
    """

    engine: Engine
    jobs: int | None
    terminal: Terminal
    progress: re.Pattern[str]
    force: bool = False
    force_downstream: bool = False
    on_error: OnError = "stop"
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    forced: set[str] = field(default_factory=set)

    def is_unchanged(self, node: Node) -> bool:
        """Return whether neither a stage nor anything that it depends on changed."""
        allow_missing = self.engine.allow_missing
        reasons = self.is_forced(node) or node.reasons(allow_missing=allow_missing)
        return not reasons and all(
            self.outcomes.get(name) is Outcome.CACHED for name in node.upstream
        )

    def is_forced(self, node: Node) -> bool:
        """Return whether a stage runs even if nothing changed."""
        return self.force or node.name in self.forced

    def run(self, node: Node, log: StageLog) -> Outcome:
        """Run a stage, unless it is unchanged."""
        if self.is_unchanged(node):
            outcome = Outcome.CACHED
            self.terminal.end(node.name, outcome.lower())
        else:
            outcome = self._run(node, log)
        self.outcomes[node.name] = outcome
        return outcome

    def _run(self, node: Node, log: StageLog) -> Outcome:
        begin = time.monotonic()

        def started() -> None:
            nonlocal begin
            begin = time.monotonic()
            self.terminal.begin(node.name)

        def take(lines: list[str]) -> None:
            log.take(lines)
            self.terminal.lines(node.name, lines)

        try:
            outcome = self.engine.run(
                node, force=self.is_forced(node), on_begin=started, on_lines=take
            )
        except FlowError as error:
            why = str(error).removeprefix(f"{node.name}: ")
            last = error.lines if isinstance(error, StageFailed) else ()
            self.terminal.end(node.name, "failed", time.monotonic() - begin, why, last)
            raise
        finally:
            log.close()
        where = self.engine.ran_on.get(node.name, "")
        self.terminal.end(node.name, outcome.lower(), time.monotonic() - begin, where)
        return outcome


def make_task(node: Node, reproduction: Reproduction) -> Task[[], State[Any]]:
    """Return the Prefect task that runs a stage by its policy."""

    @task(
        name=node.name,
        task_run_name=node.name.replace("{", "{{").replace("}", "}}"),
        retries=node.policy.retries,
        retry_delay_seconds=exponential_backoff(node.policy.retry_delay_s),
        retry_jitter_factor=JITTER,
        retry_condition_fn=_may_retry,
        cache_policy=NO_CACHE,  # DVC is the cache
        persist_result=False,
    )
    def run_node() -> State[Any]:
        outcome = reproduction.run(node, StageLog(node.name, reproduction.progress))
        where = reproduction.engine.ran_on.get(node.name)
        told = [*node.reasons(), *([f"on {where}"] if where else [])]
        return Completed(name=outcome.value, message="; ".join(told) or None)

    return run_node


def _may_retry(_task: Any, _run: Any, state: State[Any]) -> bool:
    return not isinstance(state.result(raise_on_failure=False), StageStopped | ClusterError)


def run_stages(nodes: Sequence[Node], reproduction: Reproduction) -> dict[str, State[Any]]:
    """Run all stages; return their final states."""
    run_id = runtime.flow_run.id
    with get_client(sync_client=True) as client:

        def is_cancelled() -> bool:
            state = client.read_flow_run(run_id).state
            return state is not None and (state.is_cancelling() or state.is_cancelled())

        with watching(is_cancelled, reproduction.engine.stop.set):
            return _Schedule(nodes, reproduction).run()


class _Schedule:
    """Starts each stage once those that it depends on are done and a job is free."""

    def __init__(self, nodes: Sequence[Node], reproduction: Reproduction) -> None:
        self.reproduction = reproduction
        self.by_name = {node.name: node for node in nodes}
        self.waiting = dict(self.by_name)
        self.running: set[str] = set()
        self.states: dict[str, State[Any]] = {}
        self.finished: queue.SimpleQueue[tuple[str, PrefectFuture[Any]]] = queue.SimpleQueue()

    def run(self) -> dict[str, State[Any]]:
        """Run all; return the final states of the stages that were started."""
        stop = self.reproduction.engine.stop
        try:
            self._run()
        except KeyboardInterrupt:
            # As after Ctrl-C in a terminal; a second one does not wait for the stages.
            try:
                self._end(signal.SIGINT)
            except KeyboardInterrupt:
                self._end(signal.SIGTERM)
            raise
        except BaseException:
            self._end(signal.SIGTERM)
            raise
        if stop.signal == signal.SIGINT:
            raise KeyboardInterrupt
        return self.states

    def _run(self) -> None:
        stop = self.reproduction.engine.stop
        while self.waiting or self.running:
            for node in self._ready():
                self._start(node)
            if not self.running:
                break
            try:
                name, future = self.finished.get(timeout=WAKE_S)
            except queue.Empty:
                self.reproduction.engine.record()
                continue
            self._finish(name, future)
            if stop.is_set():
                self.waiting.clear()

    def _ready(self) -> list[Node]:
        """Return the stages that may start now, in the order of the plan."""
        reproduction, ready = self.reproduction, []
        running = set(self.running)
        jobs = reproduction.jobs or reproduction.engine.places
        busy = sum(not reproduction.is_unchanged(self.by_name[name]) for name in running)
        for node in list(self.waiting.values()):
            if not self.states.keys() >= set(node.upstream):
                if jobs == 1:
                    break  # one after another, in the order of dvc repro
                continue
            if not reproduction.is_unchanged(node):
                alone = any(self.by_name[name].policy.alone for name in running)
                if busy >= jobs or alone or (node.policy.alone and running):
                    continue
                busy += 1
            running.add(node.name)
            ready.append(node)
        return ready

    def _start(self, node: Node) -> None:
        del self.waiting[node.name]
        self.running.add(node.name)
        future = make_task(node, self.reproduction).submit(return_state=False)
        future.add_done_callback(lambda done: self.finished.put((node.name, done)))

    def _finish(self, name: str, future: PrefectFuture[Any]) -> None:
        future.wait()
        self.running.discard(name)
        state = self.states[name] = future.state
        reproduction = self.reproduction
        if state.is_completed():
            ran = state.name != Outcome.CACHED or reproduction.is_forced(self.by_name[name])
            if reproduction.force_downstream and ran:
                behind = [node for node in self.waiting.values() if name in node.upstream]
                reproduction.forced.update(node.name for node in behind)
        elif reproduction.on_error == "stop":
            self.waiting.clear()
        elif reproduction.on_error == "keep-going":
            self._leave_out(name)

    def _leave_out(self, failed: str) -> None:
        """Leave out what depends on a failed stage."""
        gone = {failed}
        for node in list(self.waiting.values()):  # each behind those that it depends on
            if gone.intersection(node.upstream):
                gone.add(node.name)
                del self.waiting[node.name]

    def _end(self, signum: int) -> None:
        """Ask the running stages to end, and wait until they have."""
        self.reproduction.engine.stop.set(signum)
        while self.running:
            name, future = self.finished.get()
            self._finish(name, future)


def summarise(nodes: Sequence[Node], states: dict[str, State[Any]]) -> str:
    """Return counts of outcomes, and the names of the stages that did not complete."""
    failed = [name for name, state in states.items() if state.is_failed() or state.is_crashed()]
    completed = {name for name, state in states.items() if state.is_completed()}
    left = [node.name for node in nodes if node.name not in {*completed, *failed}]
    counts = [(sum(states[name].name == each for name in completed), each) for each in Outcome]
    return tell(len(nodes), counts, failed, left)


def tell(
    total: int,
    counts: Sequence[tuple[int, Outcome]],
    failed: Sequence[str] = (),
    left: Sequence[str] = (),
) -> str:
    """Return a summary such as ``5 stages: 3 completed; failed: leaf1; not run: join``."""
    parts = [f"{count} {outcome.value.lower()}" for count, outcome in counts if count]
    parts += [f"failed: {', '.join(failed)}"] if failed else []
    parts += [f"not run: {', '.join(left)}"] if left else []
    stages = "stage" if total == 1 else "stages"
    return f"{total} {stages}: {'; '.join(parts) or 'nothing to do'}"


def is_whole(nodes: Sequence[Node], states: dict[str, State[Any]]) -> bool:
    """Return whether all stages completed."""
    return len(states) == len(nodes) and all(state.is_completed() for state in states.values())
