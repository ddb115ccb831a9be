"""Reproduce dvc.yaml's graph as a Prefect flow: independent stages side by side, with retries.

``python -m flows.reproduce [TARGET …]``; ``--help`` lists the options.
"""

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Read by Prefect while it is imported; what the user has set is left alone.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
if __name__ == "__main__":
    # The run's log has every line; a terminal gets one line a stage.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from flows.errors import FlowError, StageStopped
from flows.execute import Outcome, run_stage
from flows.graph import (
    Node,
    metrics_against_head,
    read_graph,
    read_lock_order,
    restore_lock_order,
    set_params,
)
from flows.slots import Resources, hold_workspace

JITTER = 0.5
PROGRESS = re.compile(r"\((\d{1,3})%\)")
PROGRESS_INTERVAL_S = 5.0
SERVER_REMEDY = "start that server, or unset PREFECT_API_URL for a temporary one"


@dataclass
class Reproduction:
    """What the stages of one run share.

    Parameters
    ----------
    root : Path
        The workspace.
    jobs : int
        How many stages may run at once.
    options : sequence of str
        More options of ``dvc repro`` for each stage.
    keep_going : bool
        Whether stages that do not depend on a failed one still run.
    """

    root: Path
    jobs: int
    options: Sequence[str] = ()
    keep_going: bool = True
    resources: Resources = field(default_factory=Resources)
    stop: threading.Event = field(default_factory=threading.Event)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.free_jobs = threading.Semaphore(self.jobs)

    def run(self, node: Node, on_line: Callable[[str], None]) -> Outcome:
        """Run a stage, unless neither it nor anything that it depends on changed."""
        changed = node.changes or "--force" in self.options
        if not changed and all(self.outcomes[name] is Outcome.CACHED for name in node.upstream):
            outcome = Outcome.CACHED
        else:
            outcome = self._run_process(node, on_line)
        self.outcomes[node.name] = outcome
        return outcome

    def _run_process(self, node: Node, on_line: Callable[[str], None]) -> Outcome:
        policy = node.policy
        with (
            self.resources.hold(policy.gpus, policy.memory_gb, self.stop) as (environment, held),
            self.free_jobs,
        ):
            if self.stop.is_set():
                raise StageStopped(f"{node.name}: not begun")
            say(f"{node.name}: running")
            begin = time.monotonic()
            try:
                outcome = run_stage(
                    self.root,
                    node.name,
                    options=self.options,
                    environment=environment,
                    held=held,
                    timeout_s=policy.timeout_minutes and policy.timeout_minutes * 60,
                    stop=self.stop,
                    on_line=on_line,
                )
            except FlowError as error:
                say(f"{node.name}: failed after {time.monotonic() - begin:.1f} s: {error}")
                if not self.keep_going:
                    self.stop.set()
                raise
            say(f"{node.name}: {outcome.lower()} in {time.monotonic() - begin:.1f} s")
            return outcome


def say(line: str) -> None:
    """Print a line for whoever started the flow in a terminal."""
    print(line, flush=True)


class StageLog:
    """Takes a stage's lines to the run's log, and its progress to an artifact."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.logger = get_run_logger()
        self.artifact: Any = None
        self.updated = 0.0

    def __call__(self, line: str) -> None:
        """Log a line; it may tell how much is done."""
        self.logger.info("%s", line)
        match = PROGRESS.search(line)
        if not match or time.monotonic() - self.updated < PROGRESS_INTERVAL_S:
            return
        self.updated = time.monotonic()
        share = min(100.0, float(match[1]))
        if self.artifact is None:
            key = re.sub(r"[^a-z0-9]+", "-", self.stage.lower()).strip("-")
            self.artifact = create_progress_artifact(share, key=key, description=line)
        else:
            update_progress_artifact(self.artifact, share, description=line)


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
        return Completed(name=outcome.value, message="; ".join(node.changes) or None)

    return run_node


def _may_retry(_task: Any, _run: Any, state: State[Any]) -> bool:
    return not isinstance(state.result(raise_on_failure=False), StageStopped)


@flow(name="reproduce", task_runner=ThreadPoolTaskRunner(), persist_result=False)  # type: ignore[arg-type]
def reproduce(
    targets: list[str] | None = None,
    jobs: int = 2,
    force: bool = False,
    keep_going: bool = True,
    pull: bool = False,
    push: bool = False,
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
    pull, push : bool
        Fetch missing data and runs from the remote, and send it what is new.
    """
    options = ["--force"] * force + ["--pull", "--allow-missing"] * pull
    reproduction = Reproduction(Path.cwd(), jobs, options, keep_going)
    try:
        return _reproduce(reproduction, targets or [], push)
    except FlowError as error:
        return Failed(message=str(error))


def _reproduce(reproduction: Reproduction, targets: Sequence[str], push: bool) -> State[Any]:
    root = reproduction.root
    with hold_workspace(root):
        nodes = read_graph(root, targets)
        lock_order = read_lock_order(root)
        with _stopping(reproduction):
            states = _run_all(nodes, reproduction)
        restore_lock_order(root, lock_order, nodes)
        _publish(root)
        if push:
            _push(root)
    return summarise(states)


def _run_all(nodes: Sequence[Node], reproduction: Reproduction) -> dict[str, State[Any]]:
    futures: dict[str, PrefectFuture[Any]] = {}
    for node in nodes:
        upstream = [futures[name] for name in node.upstream]
        futures[node.name] = make_task(node, reproduction).submit(
            return_state=False, wait_for=upstream
        )
    for future in futures.values():
        future.wait()
    return {name: future.state for name, future in futures.items()}


@contextmanager
def _stopping(reproduction: Reproduction) -> Iterator[None]:
    """End all stages when the flow is cancelled or interrupted."""
    try:
        yield
    except BaseException:
        reproduction.stop.set()
        raise


def summarise(states: dict[str, State[Any]]) -> State[Any]:
    """Return the flow's final state: completed only if every stage was, and which were not."""
    failed = [name for name, state in states.items() if state.is_failed() or state.is_crashed()]
    left = [
        name for name, state in states.items() if not state.is_completed() and name not in failed
    ]
    counts = [
        (sum(state.name == outcome.value for state in states.values()), outcome.value.lower())
        for outcome in Outcome
    ]
    parts = [f"{count} {what}" for count, what in counts if count]
    parts += [f"failed: {', '.join(failed)}"] if failed else []
    parts += [f"not run: {', '.join(left)}"] if left else []
    message = f"{len(states)} stages: {'; '.join(parts)}"
    if failed:
        return Failed(message=message)
    return Cancelled(message=message) if left else Completed(message=message)


def _publish(root: Path) -> None:
    """Show metrics, with their change against the last commit, and reports in Prefect."""
    rows = metrics_against_head(root)
    if rows:
        create_table_artifact(rows, key="metrics", description="Metrics against HEAD")
    for report in sorted((root / "reports").glob("*.md")):
        create_markdown_artifact(report.read_text(encoding="utf-8"), key=f"report-{report.stem}")


def _push(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "push", "--run-cache"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise FlowError(f"push failed: {lines[0].removeprefix('ERROR: ') if lines else 'unknown'}")


def show_plan(root: Path, targets: Sequence[str], force: bool) -> None:
    """Print what would run, and why, without a server."""
    may_run: set[str] = set()
    for node in read_graph(root, targets):
        behind = [name for name in node.upstream if name in may_run]
        if node.changes or force:
            reason = "; ".join(node.changes) or "forced"
        elif behind:
            reason = f"if {' or '.join(behind)} puts out something else"
        else:
            say(f"{node.name}: cached")
            continue
        may_run.add(node.name)
        say(f"{node.name}: would run: {reason}")


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
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change params.yaml first"
    )
    parser.add_argument("--pull", action="store_true", help="fetch what is missing from the remote")
    parser.add_argument("--push", action="store_true", help="send what is new to the remote")
    parsed = parser.parse_args(arguments)
    if parsed.jobs < 1:
        parser.error(f"--jobs: expected at least 1, received {parsed.jobs}")
    return parsed


def main() -> int:
    """Run the flow from the command line; return 0 only if every stage completed."""
    parsed = parse_arguments()
    root = Path.cwd()
    begin = time.monotonic()
    try:
        set_params(root, parsed.set)
        if parsed.dry_run:
            show_plan(root, parsed.targets, parsed.force)
            return 0
        state = reproduce(
            parsed.targets, parsed.jobs, parsed.force, parsed.keep_going, parsed.pull, parsed.push,
            return_state=True,
        )  # fmt: skip
    except FlowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (PrefectException, RuntimeError) as error:
        print(f"error: Prefect: {' '.join(str(error).split())}; {SERVER_REMEDY}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    if not state.is_completed():
        print(f"error: {state.message}", file=sys.stderr)
        return 1
    say(f"{state.message} ({time.monotonic() - begin:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
