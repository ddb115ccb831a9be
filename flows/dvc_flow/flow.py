"""The Prefect flow that reproduces a DVC graph: independent stages in parallel, with retries."""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from dvc_flow.artifacts import publish_results
from dvc_flow.engine import Engine
from dvc_flow.environment import environment
from dvc_flow.errors import GraphError, RunFailed, explain_extra
from dvc_flow.heartbeat import beating
from dvc_flow.params import files_of, set_params
from dvc_flow.record import Record, record_result, require_recordable, require_unchanged
from dvc_flow.remote import push_outputs
from dvc_flow.repository import Node, Repository, Selection
from dvc_flow.settings import read_settings
from dvc_flow.slots import hold_workspace
from dvc_flow.stages import OnError, Reproduction, is_whole, run_stages, summarise
from dvc_flow.terminal import Terminal, duration
from dvc_flow.verify import remove_half_written_lock
from dvc_flow.watch import end_with_worker

# What a terminal has planned already; a deployed run plans by itself.
PLANNED: ContextVar[tuple[Repository, list[Node]] | None] = ContextVar("PLANNED", default=None)


@flow(name="reproduce", task_runner=ThreadPoolTaskRunner(), persist_result=False)  # type: ignore[arg-type]
def reproduce(
    targets: list[str] | None = None,
    jobs: Annotated[int, Field(ge=1)] | None = None,
    force: bool = False,
    force_downstream: bool = False,
    single_item: bool = False,
    pipeline: bool = False,
    all_pipelines: bool = False,
    recursive: bool = False,
    glob: bool = False,
    downstream: bool = False,
    on_error: OnError = "stop",
    pull: bool = False,
    allow_missing: bool = False,
    run_cache: bool = True,
    commit: bool = True,
    push: bool = False,
    params: list[str] | None = None,
    record: Record | None = None,
    cache: str | None = None,
    cluster: str | None = None,
    tls: str | None = None,
    quiet: bool = False,
) -> State[Any]:
    """Reproduce the stages that `targets` need, by default all.

    Parameters
    ----------
    targets : list of str, optional
        As ``dvc repro`` takes them.
    jobs : int, optional
        The maximum number of concurrent stages: by default 2, or what a cluster has room for.
    force, force_downstream : bool
        Run stages that are up to date as well: all, or those behind a stage that ran.
    single_item, pipeline, all_pipelines, recursive, glob, downstream : bool
        Which stages, as ``dvc repro`` takes them.
    on_error : {"stop", "keep-going", "ignore"}
        After a failure, start no further stage, those that do not depend on it, or all.
    pull : bool
        Fetch what is missing from DVC's remote.
    allow_missing : bool
        Leave alone unchanged stages whose files are missing; with `pull`, fetch what is needed.
    run_cache, commit : bool
        Whether earlier runs are restored, and results put into the cache.
    push : bool
        Send the results to DVC's remote, and what is recorded to git's.
    params : list of str, optional
        ``key=value`` to set in params.yaml first.
    record : {"commit", "experiment"}, optional
        How to record the result: on the branch that is checked out, or as a DVC experiment.
    cache : str, optional
        A folder for DVC's cache, which runs in separate checkouts can share.
    cluster, tls : str, optional
        The address of a cluster's scheduler, on whose workers the stages run, and a folder with
        the files for TLS.
    quiet : bool
        Print failures alone.

    Raises
    ------
    FlowError
        If something is wrong with the graph, the workspace or what was asked for, or if a stage
        fails.
    """
    deployed = runtime.deployment.id is not None
    if deployed:
        end_with_worker()
    begin = time.monotonic()
    planned = PLANNED.get()
    PLANNED.set(None)  # a retry plans anew
    repository = planned[0] if planned else Repository()
    settings = read_settings(repository.root)
    progress = re.compile(settings.progress)
    added = environment(deployed=deployed) | settings.environment
    selection = Selection(
        targets or (), single_item, pipeline, all_pipelines, recursive, glob, downstream
    )
    with ExitStack() as stack:
        stack.enter_context(beating())
        stack.enter_context(hold_workspace(Path(repository.dvc.tmp_dir)))
        terminal = stack.enter_context(Terminal(progress, quiet=quiet))
        remove_half_written_lock(repository.root)
        if cache:
            repository.use_cache(Path(cache))
        if runtime.flow_run.run_count <= 1:  # a retry finds what the first try wrote
            require_recordable(repository, record, pull=pull or bool(cluster), push=push)
        set_params(repository.root, params or [], settings.check, added)
        if planned:
            nodes = planned[1]
        else:
            nodes = repository.plan(selection, force=force, pull=pull or bool(cluster), push=push)
        engine = stack.enter_context(
            _engine(cluster, tls, fetch_made=record == "experiment")(
                repository,
                nodes,
                pull=pull,
                allow_missing=allow_missing,
                run_cache=run_cache,
                commit=commit,
                environment=added,
                reads_input=jobs == 1 and not deployed,
                say=terminal.say,
            )
        )
        reproduction = Reproduction(
            engine, jobs, terminal, progress, force, force_downstream, on_error
        )
        message, whole = run_plan(nodes, reproduction)
        terminal.say(f"{message} (in {duration(time.monotonic() - begin)})")
        publish_results(repository, nodes, terminal.warn)
        if engine.stop.is_set():
            return Cancelled(message=message)
        if push:
            share(repository, nodes, terminal.warn, whole=whole)
        if not whole and on_error != "ignore":
            raise RunFailed(message)
        if record:
            # The results have to belong to the code, params and data that are there now.
            nodes = repository.plan(selection)
            require_unchanged(nodes)
            # Prefect's names repeat; with the run's id they do not.
            name = f"{runtime.flow_run.name}-{str(runtime.flow_run.id)[:8]}"
            where = [f"{stage}: {place}" for stage, place in sorted(engine.ran_on.items())]
            title = "\n".join([f"Reproduce {message}", *([""] if where else []), *where])
            recorded = record_result(
                repository.root,
                nodes,
                record,
                title=title,
                name=name,
                push=push,
                params=files_of(params or []),
            )
            terminal.say(f"recorded: {recorded}")
            message += f"; {recorded}"
    return Completed(message=message)


def _engine(cluster: str | None, tls: str | None, *, fetch_made: bool) -> Callable[..., Engine]:
    """Return what makes the engine: a local one, or one for a cluster."""
    if cluster is None:
        return Engine
    with explain_extra():
        from dvc_flow.cluster.coordinator import ClusterEngine
    # An experiment is saved from the workspace.
    return partial(
        ClusterEngine, address=cluster, tls=Path(tls) if tls else None, fetch_made=fetch_made
    )


def run_plan(nodes: Sequence[Node], reproduction: Reproduction) -> tuple[str, bool]:
    """Run all stages; return a summary, and whether all completed."""
    engine = reproduction.engine
    try:
        # DVC stages what it wrote with core.autostage; after a failure it withdraws what it added
        # to .gitignore files.
        with engine.repository.dvc.scm_context(quiet=True):
            try:
                states = run_stages(nodes, reproduction)
            finally:
                engine.finish()
            message = summarise(nodes, states)
            if not is_whole(nodes, states) and reproduction.on_error != "ignore":
                raise RunFailed(message)
    except RunFailed:
        return message, False
    return message, is_whole(nodes, states)


def share(
    repository: Repository, nodes: Sequence[Node], warn: Callable[[str], None], *, whole: bool
) -> None:
    """Send the outputs to DVC's remote, after a failure too, for the next run to restore."""
    try:
        push_outputs(repository, nodes)
    except GraphError as error:
        if whole:
            raise
        warn(f"warning: {error}")  # the stage's own error is the one to report
