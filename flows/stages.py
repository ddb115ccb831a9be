"""Run the stages of a graph as Prefect tasks, in parallel, each by its policy."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import Task, get_client, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from flows.artifacts import StageLog
from flows.errors import FlowError, StageStopped
from flows.execute import Outcome, run_stage
from flows.graph import Node, order_lock
from flows.slots import Resources
from flows.terminal import Terminal
from flows.watch import watching

JITTER = 0.5


@dataclass
class Reproduction:
    """The state that the stages of a run share.

    Parameters
    ----------
    root : Path
        The workspace.
    jobs : int
        The maximum number of concurrent stages.
    force, pull : bool
        Whether to run stages that are up to date, and to fetch missing files.
    keep_going : bool
        Whether stages that do not depend on a failed one still run.
    terminal : Terminal
        Shows the stages.
    """

    root: Path
    jobs: int
    force: bool = False
    pull: bool = False
    keep_going: bool = True
    terminal: Terminal = field(default_factory=Terminal)
    resources: Resources = field(default_factory=Resources)
    stop: threading.Event = field(default_factory=threading.Event)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def is_unchanged(self, node: Node) -> bool:
        """Return whether neither a stage nor anything that it depends on changed."""
        reasons = self.force or node.reasons(allow_missing=self.pull)
        return not reasons and all(
            self.outcomes.get(name) is Outcome.CACHED for name in node.upstream
        )

    def run(self, node: Node, on_line: Callable[[str], None]) -> Outcome:
        """Run a stage, unless it is unchanged."""
        if self.is_unchanged(node):
            outcome = Outcome.CACHED
            self.terminal.end(node.name, outcome.lower())
        else:
            outcome = self._run_process(node, on_line)
        self.outcomes[node.name] = outcome
        return outcome

    def _run_process(self, node: Node, on_line: Callable[[str], None]) -> Outcome:
        policy = node.policy

        def take(line: str) -> None:
            on_line(line)
            self.terminal.line(node.name, line)

        with self.resources.hold(policy.gpus, policy.memory_gb, self.stop) as (variables, held):
            self.terminal.begin(node.name)
            begin = time.monotonic()
            try:
                outcome = run_stage(
                    self.root,
                    node.name,
                    force=self.force,
                    pull=self.pull,
                    lost=bool(node.lost),
                    variables=variables,
                    held=held,
                    timeout_s=policy.timeout_minutes and policy.timeout_minutes * 60,
                    stop=self.stop,
                    on_line=take,
                )
            except FlowError as error:
                why = str(error).removeprefix(f"{node.name}: ")
                self.terminal.end(node.name, "failed", time.monotonic() - begin, why)
                raise
            self.terminal.end(node.name, outcome.lower(), time.monotonic() - begin)
            return outcome


def make_task(node: Node, reproduction: Reproduction) -> Task[[], State[Any]]:
    """Return the Prefect task that runs a stage by its policy."""

    @task(
        name=node.name,
        task_run_name=node.name,
        retries=node.policy.retries,
        retry_delay_seconds=exponential_backoff(node.policy.retry_delay_s),
        retry_jitter_factor=JITTER,
        retry_condition_fn=_may_retry,
        cache_policy=NO_CACHE,  # DVC is the cache
        persist_result=False,
    )
    def run_node() -> State[Any]:
        outcome = reproduction.run(node, StageLog(node.name))
        return Completed(name=outcome.value, message="; ".join(node.reasons()) or None)

    return run_node


def _may_retry(_task: Any, _run: Any, state: State[Any]) -> bool:
    return not isinstance(state.result(raise_on_failure=False), StageStopped)


def run_stages(nodes: Sequence[Node], reproduction: Reproduction) -> tuple[str, bool]:
    """Run all stages; return a summary, and whether all completed."""
    run_id = runtime.flow_run.id
    with get_client(sync_client=True) as client:

        def is_cancelled() -> bool:
            state = client.read_flow_run(run_id).state
            return state is not None and (state.is_cancelling() or state.is_cancelled())

        with (
            _stopping(reproduction),
            watching(is_cancelled, reproduction.stop.set),
        ):
            states = schedule(nodes, reproduction)
    order_lock(reproduction.root, nodes)
    is_whole = len(states) == len(nodes) and all(state.is_completed() for state in states.values())
    return summarise(nodes, states), is_whole


def schedule(nodes: Sequence[Node], reproduction: Reproduction) -> dict[str, State[Any]]:
    """Run each stage once its upstream is done and a job is free; return the final states."""
    futures: dict[str, PrefectFuture[Any]] = {}
    states: dict[str, State[Any]] = {}
    by_name = {node.name: node for node in nodes}
    waiting = list(nodes)
    running: set[str] = set()
    finished: queue.SimpleQueue[PrefectFuture[Any]] = queue.SimpleQueue()
    while waiting or len(states) < len(futures):
        for node in [node for node in waiting if states.keys() >= set(node.upstream)]:
            if not reproduction.is_unchanged(node):
                alone = node.policy.alone or any(by_name[name].policy.alone for name in running)
                if len(running) == reproduction.jobs or (alone and running):
                    continue
                running.add(node.name)
            waiting.remove(node)
            upstream = [futures[name] for name in node.upstream]
            future = make_task(node, reproduction).submit(return_state=False, wait_for=upstream)
            futures[node.name] = future
            future.add_done_callback(finished.put)
        future = finished.get()
        future.wait()
        name = next(name for name, each in futures.items() if each is future)
        running.discard(name)
        states[name] = future.state
        failed = not states[name].is_completed()
        if reproduction.stop.is_set() or (failed and not reproduction.keep_going):
            waiting.clear()
    return states


@contextmanager
def _stopping(reproduction: Reproduction) -> Iterator[None]:
    """End all stages if the flow is interrupted."""
    try:
        yield
    except BaseException:
        reproduction.stop.set()
        raise


def summarise(nodes: Sequence[Node], states: dict[str, State[Any]]) -> str:
    """Return counts of outcomes, and the names of the stages that did not complete."""
    failed = [name for name, state in states.items() if state.is_failed() or state.is_crashed()]
    completed = {name for name, state in states.items() if state.is_completed()}
    left = [node.name for node in nodes if node.name not in {*completed, *failed}]
    counts = [
        (sum(state.name == outcome.value for state in states.values()), outcome.value.lower())
        for outcome in Outcome
    ]
    parts = [f"{count} {what}" for count, what in counts if count]
    parts += [f"failed: {', '.join(failed)}"] if failed else []
    parts += [f"not run: {', '.join(left)}"] if left else []
    return f"{len(nodes)} stages: {'; '.join(parts)}"
