"""Reproduce dvc.yaml's graph as a Prefect flow: independent stages side by side, with retries.

``python -m flows.reproduce [TARGET …]``; ``--help`` lists the options.
"""

import argparse
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

# Read by Prefect while it is imported; what the user has set is left alone.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
if __name__ == "__main__":
    # The run's log has every line; a terminal gets one line a stage.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    # A server that is away for 14 seconds is waited for at each report, not for a minute.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "3")

import httpx
from prefect import Task, flow, get_client, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from flows.artifacts import StageLog, publish_results
from flows.errors import FlowError, RunFailed, StageStopped
from flows.execute import Outcome, run_stage
from flows.graph import (
    Node,
    changed_params,
    keeping_lock_order,
    read_graph,
    set_params,
)
from flows.record import (
    Record,
    branch,
    push_commit,
    push_data,
    push_experiment,
    record_commit,
    record_experiment,
    require_recordable,
    require_unchanged,
)
from flows.slots import Resources, hold_workspace
from flows.terminal import Terminal
from flows.watch import watching

JITTER = 0.5


@dataclass
class Reproduction:
    """What the stages of one run share.

    Parameters
    ----------
    root : Path
        The workspace.
    jobs : int
        How many stages may run at once.
    force, pull : bool
        Whether to run what is up to date too, and to fetch what is missing.
    keep_going : bool
        Whether stages that do not depend on a failed one still run.
    terminal : Terminal
        Shows what happens.
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
        """Tell whether neither a stage nor anything that it depends on changed."""
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
        options = ["--force"] * self.force + ["--pull", "--allow-missing"] * self.pull

        def take(line: str) -> None:
            on_line(line)
            self.terminal.line(node.name, line)

        with self.resources.hold(policy.gpus, policy.memory_gb, self.stop) as (environment, held):
            self.terminal.begin(node.name)
            begin = time.monotonic()
            try:
                outcome = run_stage(
                    self.root,
                    node.name,
                    options=options,
                    environment=environment,
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
    """Return the task that runs a stage by its policy."""

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


@flow(name="reproduce", task_runner=ThreadPoolTaskRunner(), persist_result=False)  # type: ignore[arg-type]
def reproduce(
    targets: list[str] | None = None,
    jobs: int = 2,
    force: bool = False,
    keep_going: bool = True,
    params: list[str] | None = None,
    pull: bool = False,
    push: bool = False,
    record: Record | None = None,
) -> State[Any]:
    """Reproduce the stages that `targets` need, all of them by default.

    Parameters
    ----------
    targets : list of str, optional
        As ``dvc repro`` takes them.
    jobs : int
        How many stages may run at once.
    force : bool
        Run what is up to date too.
    keep_going : bool
        Run what does not depend on a failed stage.
    params : list of str, optional
        ``key=value`` to set in params.yaml first.
    pull, push : bool
        Fetch missing data and runs from the remote, and send it what is new.
    record : {"commit", "experiment"}, optional
        How to record the result: on the branch that is checked out, or as a DVC experiment.

    Raises
    ------
    FlowError
        If something is wrong with the graph, the workspace or what was asked for, or if a stage
        fails.
    """
    root = Path.cwd()
    with hold_workspace(root), Terminal() as terminal:
        if runtime.flow_run.run_count <= 1:  # a retry finds what the first try wrote
            require_recordable(root, record, pull=pull, push=push)
        set_params(root, params or [])
        reproduction = Reproduction(root, jobs, force, pull, keep_going, terminal)
        nodes = read_graph(root, targets or [])
        message, is_whole = _run_graph(nodes, reproduction)
        terminal.say(message)
        publish_results(root)
        if reproduction.stop.is_set():
            return Cancelled(message=message)
        if not is_whole:
            raise RunFailed(message)
        if push:
            push_data(root, nodes)
        if record:
            nodes = read_graph(root, targets or [])
            require_unchanged(nodes)
            recorded = _record(root, nodes, record, message, push)
            terminal.say(f"recorded: {recorded}")
            message += f"; {recorded}"
    return Completed(message=message)


def _run_graph(nodes: Sequence[Node], reproduction: Reproduction) -> tuple[str, bool]:
    """Run all stages; return what came of them, and whether all are completed."""
    flow_run = runtime.flow_run.id

    def is_cancelled() -> bool:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())

    has_worker = runtime.deployment.id is not None
    with (
        keeping_lock_order(reproduction.root, nodes),
        _stopping(reproduction),
        watching(is_cancelled, reproduction.stop.set, has_worker=has_worker),
    ):
        states = schedule(nodes, reproduction)
    is_whole = len(states) == len(nodes) and all(state.is_completed() for state in states.values())
    return summarise(nodes, states), is_whole


def schedule(nodes: Sequence[Node], reproduction: Reproduction) -> dict[str, State[Any]]:
    """Submit each stage once its upstream is done and a job is free; return their final states."""
    futures: dict[str, PrefectFuture[Any]] = {}
    states: dict[str, State[Any]] = {}
    waiting = list(nodes)
    running: set[str] = set()
    finished: queue.SimpleQueue[PrefectFuture[Any]] = queue.SimpleQueue()
    while waiting or len(states) < len(futures):
        for node in [node for node in waiting if states.keys() >= set(node.upstream)]:
            if not reproduction.is_unchanged(node):
                if len(running) == reproduction.jobs:
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
    """End all stages when the flow is interrupted."""
    try:
        yield
    except BaseException:
        reproduction.stop.set()
        raise


def summarise(nodes: Sequence[Node], states: dict[str, State[Any]]) -> str:
    """Return how many stages ended in which way, and the names of those that did not complete."""
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


def _record(root: Path, nodes: Sequence[Node], record: Record, message: str, push: bool) -> str:
    """Record what the run made, share it if asked, and return what was recorded."""
    title = f"Reproduce {message}"
    if record == "commit":
        commit = record_commit(root, nodes, title)
        if commit and push:
            push_commit(root)
        return f"commit {commit} on {branch(root)}" if commit else "nothing new to commit"
    # Prefect's names repeat; with the run's id they do not.
    name = f"{runtime.flow_run.name}-{str(runtime.flow_run.id)[:8]}"
    experiment = record_experiment(root, nodes, name, title)
    if experiment and push:
        push_experiment(root, experiment)
    return f"experiment {experiment}" if experiment else "nothing new to save"


def show_plan(root: Path, targets: Sequence[str], force: bool, pull: bool) -> None:
    """Print what would run, and why, without a server."""
    may_run: set[str] = set()
    for node in read_graph(root, targets):
        behind = [name for name in node.upstream if name in may_run]
        reasons = node.reasons(allow_missing=pull)
        if reasons or force:
            reason = "; ".join(reasons) or "forced"
        elif behind:
            reason = f"if {' or '.join(behind)} puts out something else"
        else:
            print(f"{node.name}: cached")
            continue
        may_run.add(node.name)
        print(f"{node.name}: would run: {reason}")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.reproduce", description="Reproduce dvc.yaml's graph in parallel."
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="as dvc repro takes them")
    parser.add_argument("--jobs", type=int, default=2, help="stages at once (default: 2)")
    parser.add_argument("--force", action="store_true", help="run what is up to date too")
    parser.add_argument(
        "--keep-going",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run what does not depend on a failed stage (default)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and why")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="params",
        metavar="KEY=VALUE",
        help="change params.yaml first",
    )
    parser.add_argument("--pull", action="store_true", help="fetch what is missing from the remote")
    parser.add_argument("--push", action="store_true", help="send what is new to the remote")
    parser.add_argument(
        "--record",
        choices=get_args(Record),
        help="record the result: a commit on this branch, or a DVC experiment",
    )
    parsed = parser.parse_args(arguments)
    if parsed.jobs < 1:
        parser.error(f"--jobs: expected at least 1, received {parsed.jobs}")
    return parsed


def run(parsed: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Raises
    ------
    FlowError
        If the run is refused, fails or is cancelled.
    """
    root = Path.cwd()
    if parsed.dry_run:
        with changed_params(root, parsed.params):
            show_plan(root, parsed.targets, parsed.force, parsed.pull)
        return
    # Before a server is started; the flow asks again, since it may run without this command.
    require_recordable(root, parsed.record, pull=parsed.pull, push=parsed.push)
    arguments = {key: value for key, value in vars(parsed).items() if key != "dry_run"}
    state = reproduce(**arguments, return_state=True)
    if state.is_cancelled():
        raise RunFailed(f"cancelled; {state.message}")
    if not state.is_completed():
        reason = state.result(raise_on_failure=False)
        if isinstance(reason, BaseException):
            raise reason
        raise RunFailed(state.message)


def explain(error: Exception) -> str:
    """Return what is wrong with the server, and what helps, in one line."""
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    if status in (401, 403):
        return (
            f"Prefect: {PREFECT_API_URL.value()} refuses who we are ({status}); set "
            "PREFECT_API_AUTH_STRING to the server's own string"
        )
    told = " ".join(str(error).split())
    return f"Prefect: {told}; start that server, or unset PREFECT_API_URL for a temporary one"


def main() -> int:
    """Run the flow from the command line; return 0 only if every stage completed."""
    parsed = parse_arguments()
    try:
        run(parsed)
    except FlowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (PrefectException, httpx.HTTPError, RuntimeError) as error:
        print(f"error: {explain(error)}", file=sys.stderr, flush=True)
        if isinstance(error, httpx.TransportError):
            os._exit(1)  # Prefect would wait for seconds with each event that is yet to be sent
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
