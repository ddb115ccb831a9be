"""The command ``dvc-flow``: a parallel ``dvc repro``.

``dvc-flow [TARGET …]`` reproduces. Its other commands are ``dvc-flow verify``, ``deployable``,
``automations``, ``scheduler`` and ``worker``; ``dvc-flow --help`` lists the options.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn, get_args

from dvc_flow.environment import environment  # first: it remembers the caller's variables
from dvc_flow.errors import FlowError, explain_extra
from dvc_flow.imports import importing
from dvc_flow.params import changed_params
from dvc_flow.record import Record, require_deployable, require_recordable
from dvc_flow.repository import Node, Repository, Selection
from dvc_flow.settings import read_settings
from dvc_flow.slots import hold_workspace
from dvc_flow.verify import remove_half_written_lock

NOT_IN_PARALLEL = {
    ("-i", "--interactive"): "stages that run at the same time cannot ask one after the other",
}
# Prefect reads these when it is imported; what the user has set takes precedence.
SETTINGS = {
    "DO_NOT_TRACK": "1",
    # A server that is away is waited for 14 seconds at each report, not for a minute.
    "PREFECT_CLIENT_MAX_RETRIES": "3",
}
# The run's log has every line; a terminal gets one line per stage.
SILENCE = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
}
DRY_RUN_ALIASES = ("--dry-run", "--dry")


def add_flag(parser: Any, *names: str, text: str, **more: Any) -> None:
    """Add an option without a value."""
    parser.add_argument(*names, action=more.pop("action", "store_true"), help=text, **more)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; DVC's options have DVC's names."""
    parser = argparse.ArgumentParser(
        prog="dvc-flow",
        description="Reproduce a DVC pipeline, independent stages in parallel.",
        epilog="dvc-flow verify looks for damaged files in DVC's cache, and removes them; dvc-flow "
        "deployable checks that other machines can clone what is checked out; dvc-flow automations "
        "registers with Prefect's server what handles dead runs; dvc-flow scheduler and dvc-flow "
        "worker run until stopped, for --cluster.",
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="as dvc repro takes them")
    parser.add_argument(
        "-j", "--jobs", type=int, metavar="N",
        help="stages at a time (default: 2, or what the cluster has room for)",
    )  # fmt: skip
    dvc = parser.add_argument_group("as in dvc repro")
    add_flag(dvc, "-f", "--force", text="run what is up to date too")
    add_flag(dvc, "--force-downstream", text="run what depends on a stage that ran too")
    add_flag(dvc, "-s", "--single-item", text="leave out what the targets depend on")
    add_flag(dvc, "-p", "--pipeline", text="the whole pipelines of the targets")
    add_flag(dvc, "-P", "--all-pipelines", text="all pipelines of the repository")
    add_flag(dvc, "-R", "--recursive", text="targets may be folders")
    add_flag(dvc, "--downstream", text="the targets, and what depends on them")
    add_flag(dvc, "--glob", text="targets may be patterns")
    add_flag(dvc, *DRY_RUN_ALIASES, dest="dry_run", text="print what would run, and why")
    add_flag(dvc, "--pull", text="fetch what is missing from DVC's remote")
    add_flag(
        dvc, "--allow-missing",
        text="leave alone what is unchanged and missing; with --pull, fetch only what is needed",
    )  # fmt: skip
    errors = dvc.add_mutually_exclusive_group()
    add_flag(
        errors, "-k", "--keep-going", dest="on_error", action="store_const", const="keep-going",
        default="stop", text="after a failure, run what does not depend on it",
    )  # fmt: skip
    add_flag(
        errors, "--ignore-errors", dest="on_error", action="store_const", const="ignore",
        text="after a failure, run what depends on it too",
    )  # fmt: skip
    add_flag(dvc, "--no-run-cache", dest="run_cache", action="store_false",
             text="run a stage even if its result is known")  # fmt: skip
    add_flag(dvc, "--no-commit", dest="commit", action="store_false",
             text="put no results into the cache")  # fmt: skip
    add_flag(dvc, "-q", "--quiet", text="print failures alone")
    add_flag(dvc, "-v", "--verbose", text="print Prefect's and DVC's log as well")
    for names, reason in NOT_IN_PARALLEL.items():
        dvc.add_argument(
            *names,
            action=_Refused,
            nargs=0,
            default=argparse.SUPPRESS,
            help="refused",
            reason=reason,
        )
    ours = parser.add_argument_group("in addition")
    ours.add_argument(
        "-S", "--set", action="append", default=[], dest="params", metavar="KEY=VALUE",
        help="set a value in params.yaml first, such as train.seeds=[1]",
    )  # fmt: skip
    add_flag(
        ours, "--push", text="send data to DVC's remote, and what is recorded to git's"
    )  # fmt: skip
    ours.add_argument(
        "--record", choices=get_args(Record),
        help="record the result: a commit of a clean checkout's branch, or a DVC experiment",
    )  # fmt: skip
    ours.add_argument(
        "--cluster", metavar="ADDRESS", help="run the stages on the workers of this scheduler"
    )
    ours.add_argument(
        "--tls", metavar="FOLDER", help="with ca.pem, cert.pem and key.pem, for the cluster"
    )
    return parser


class _Refused(argparse.Action):
    """An option of ``dvc repro`` that makes no sense here."""

    def __init__(self, *args: Any, reason: str, **more: Any) -> None:
        super().__init__(*args, **more)
        self.reason = reason

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        names = "/".join(self.option_strings)
        parser.error(f"{names}: {self.reason}; use dvc repro")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    if parsed.jobs is not None and parsed.jobs < 1:
        parser.error(f"--jobs: expected at least 1, received {parsed.jobs}")
    return parsed


def selection_of(parsed: argparse.Namespace) -> Selection:
    """Return which stages the command line is about."""
    names = ("single_item", "pipeline", "all_pipelines", "recursive", "glob", "downstream")
    return Selection(parsed.targets, **{name: getattr(parsed, name) for name in names})


def show_plan(nodes: Sequence[Node], *, force: bool, allow_missing: bool) -> None:
    """Print what would run, and why."""
    may_run: set[str] = set()
    for node in nodes:
        behind = [name for name in node.upstream if name in may_run]
        reasons = node.reasons(allow_missing=allow_missing)
        if reasons or force:
            reason = "; ".join(["forced"] * force + list(reasons))
        elif behind:
            reason = f"if the output of {' or '.join(behind)} changes"
        else:
            print(f"{node.name}: cached")
            continue
        may_run.add(node.name)
        print(f"{node.name}: would run: {reason}")


def reproduce(parsed: argparse.Namespace) -> None:
    """Plan or run what the command line asks for.

    Raises
    ------
    FlowError
        If the run is refused, fails or is cancelled.
    """
    repository = Repository(to_plan=parsed.dry_run)
    settings = read_settings(repository.root)
    callers = environment() | settings.environment
    remote = bool(parsed.cluster)  # DVC's remote carries the data
    how = {"force": parsed.force, "pull": parsed.pull or remote, "push": parsed.push}
    # Before a server is started; the flow checks again, since it may run without this command.
    require_recordable(repository, parsed.record, pull=how["pull"], push=parsed.push)
    with ExitStack() as stack:
        if not parsed.dry_run:
            stack.enter_context(hold_workspace(Path(repository.dvc.tmp_dir)))
            remove_half_written_lock(repository.root)
        stack.enter_context(changed_params(repository.root, parsed.params, settings.check, callers))
        nodes = repository.plan(selection_of(parsed), **how)
    if parsed.dry_run:
        show_plan(nodes, force=parsed.force, allow_missing=parsed.allow_missing)
    elif _is_idle(nodes, parsed):
        _show_idle(nodes, quiet=parsed.quiet)
    else:
        _run_flow(parsed, None if parsed.params else (repository, nodes))


def _is_idle(nodes: Sequence[Node], parsed: argparse.Namespace) -> bool:
    """Return whether there is nothing that a server could show."""
    asked = parsed.force or parsed.push or parsed.record or parsed.params
    return not asked and not any(node.reasons(parsed.allow_missing) for node in nodes)


def _show_idle(nodes: Sequence[Node], *, quiet: bool) -> None:
    if not quiet:
        print("".join(f"{'cached':<9} {'':>9}  {node.name}\n" for node in nodes), end="")
        print(f"{len(nodes)} stages: {len(nodes)} cached; everything is up to date")


def _run_flow(parsed: argparse.Namespace, planned: tuple[Repository, list[Node]] | None) -> None:
    for name, value in (SETTINGS if parsed.verbose else SETTINGS | SILENCE).items():
        os.environ.setdefault(name, value)
    with importing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a home that cannot be written; the server says so
        from dvc_flow.orchestrated import run

    left_out = ("dry_run", "verbose")
    run({key: value for key, value in vars(parsed).items() if key not in left_out}, planned)


COMMANDS = ("verify", "deployable", "automations", "scheduler", "worker")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 only if all that was asked for is done."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        if given and given[0] in COMMANDS:
            return _command(given[0], given[1:])
        reproduce(parse_arguments(given))
    except FlowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _command(name: str, arguments: Sequence[str]) -> int:
    if name in ("scheduler", "worker"):
        with explain_extra():
            from dvc_flow.cluster import commands
        command: int = getattr(commands, name)(arguments)
        return command
    if name == "automations":
        from dvc_flow.automations import main as automations

        return automations()
    if name == "deployable":
        require_deployable(Repository().root)
        return 0
    from dvc_flow.verify import main as verify

    return verify()
