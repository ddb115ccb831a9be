"""Reproduce dvc.yaml's graph as a Prefect flow: independent stages in parallel, with retries.

``python -m flows.reproduce [TARGET …]``; ``--help`` lists the options.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

# Prefect reads these when it is imported; what the user has set takes precedence.
os.environ.setdefault("DO_NOT_TRACK", "1")
if __name__ == "__main__":
    # The run's log has every line; a terminal gets one line per stage.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    # A server that is away is waited for 14 seconds at each report, not for a minute.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "3")

import httpx
from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.artifacts import publish_results
from flows.errors import FlowError, GraphError, RunFailed
from flows.graph import Node, push_outputs, read_graph, use_cache
from flows.params import changed_params, set_params
from flows.record import Record, record_result, require_recordable, require_unchanged
from flows.server import explain
from flows.slots import hold_workspace
from flows.stages import Reproduction, run_stages
from flows.terminal import Terminal, duration
from flows.verify import remove_damaged, remove_half_written_lock
from flows.watch import end_with_worker


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
    cache: str | None = None,
) -> State[Any]:
    """Reproduce the stages that `targets` need, by default all.

    Parameters
    ----------
    targets : list of str, optional
        As ``dvc repro`` takes them.
    jobs : int
        The maximum number of concurrent stages.
    force : bool
        Run stages that are up to date as well.
    keep_going : bool
        After a failure, run the stages that do not depend on it.
    params : list of str, optional
        ``key=value`` to set in params.yaml first.
    pull, push : bool
        Fetch missing files and earlier runs from DVC's remote, and send the results to it.
    record : {"commit", "experiment"}, optional
        How to record the result: on the branch that is checked out, or as a DVC experiment.
    cache : str, optional
        A folder for DVC's cache, which runs in separate checkouts can share.

    Raises
    ------
    FlowError
        If something is wrong with the graph, the workspace or what was asked for, or if a stage
        fails.
    """
    if runtime.deployment.id is not None:
        end_with_worker()
    root = Path.cwd()
    begin = time.monotonic()
    with hold_workspace(root), Terminal() as terminal:
        remove_half_written_lock(root)
        if cache:
            use_cache(root, Path(cache))
        if runtime.flow_run.run_count <= 1:  # a retry finds what the first try wrote
            require_recordable(root, record, pull=pull, push=push)
        set_params(root, params or [])
        reproduction = Reproduction(root, jobs, force, pull, keep_going, terminal)
        for name in remove_damaged(root, only_missing=True):
            terminal.say(f"{name}: its copy in the cache was damaged and has been removed")
        nodes = read_graph(root, targets or [], force=force, pull=pull, push=push)
        message, is_whole = run_stages(nodes, reproduction)
        terminal.say(f"{message} (in {duration(time.monotonic() - begin)})")
        publish_results(root, nodes)
        if reproduction.stop.is_set():
            return Cancelled(message=message)
        if push:
            share(root, nodes, terminal, is_whole=is_whole)
        if not is_whole:
            raise RunFailed(message)
        if record:
            nodes = read_graph(root, targets or [])
            require_unchanged(nodes)
            # Prefect's names repeat; with the run's id they do not.
            name = f"{runtime.flow_run.name}-{str(runtime.flow_run.id)[:8]}"
            title = f"Reproduce {message}"
            recorded = record_result(root, nodes, record, title=title, name=name, push=push)
            terminal.say(f"recorded: {recorded}")
            message += f"; {recorded}"
    return Completed(message=message)


def share(root: Path, nodes: Sequence[Node], terminal: Terminal, *, is_whole: bool) -> None:
    """Send the outputs to DVC's remote, after a failure too, for the next run to restore."""
    try:
        push_outputs(root, nodes)
    except GraphError as error:
        if is_whole:
            raise
        terminal.say(f"warning: {error}")  # the stage's own error is the one to report


def show_plan(root: Path, targets: Sequence[str], force: bool, pull: bool, push: bool) -> None:
    """Print what would run, and why, without a server."""
    may_run: set[str] = set()
    for node in read_graph(root, targets, force=force, pull=pull, push=push):
        behind = [name for name in node.upstream if name in may_run]
        reasons = node.reasons(allow_missing=pull)
        if reasons or force:
            reason = "; ".join(["forced"] * force + list(reasons))
        elif behind:
            reason = f"if the output of {' or '.join(behind)} changes"
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
        help="set a value in params.yaml first, such as train.seeds=[1]",
    )
    parser.add_argument(
        "--pull", action="store_true", help="fetch what is missing from DVC's remote"
    )
    parser.add_argument(
        "--push",
        action="store_true",
        help="send data to DVC's remote, and what is recorded to git's",
    )
    parser.add_argument(
        "--record",
        choices=get_args(Record),
        help="record the result: a commit of a clean checkout's branch, or a DVC experiment",
    )
    parsed = parser.parse_args(arguments)
    if parsed.jobs < 1:
        parser.error(f"--jobs: expected at least 1, received {parsed.jobs}")
    return parsed


def run(parsed: argparse.Namespace) -> None:
    """Run or plan what the command line asks for.

    Raises
    ------
    FlowError
        If the run is refused, fails or is cancelled.
    """
    root = Path.cwd()
    # Before a server is started; the flow checks again, since it may run without this command.
    require_recordable(root, parsed.record, pull=parsed.pull, push=parsed.push)
    with changed_params(root, parsed.params):
        if parsed.dry_run:
            show_plan(root, parsed.targets, parsed.force, parsed.pull, parsed.push)
            return
    arguments = {key: value for key, value in vars(parsed).items() if key != "dry_run"}
    state = reproduce(**arguments, return_state=True)
    if state.is_cancelled():
        raise RunFailed(f"cancelled; {state.message}")
    if not state.is_completed():
        reason = state.result(raise_on_failure=False)
        if isinstance(reason, BaseException):
            raise reason
        raise RunFailed(state.message)


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
