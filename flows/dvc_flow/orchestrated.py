"""Run the flow from a terminal, on the configured server or a temporary one."""

import os
import sys
from collections.abc import Mapping
from typing import Any

import httpx
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY
from prefect.settings.context import temporary_settings

from dvc_flow.errors import FlowError, RunFailed
from dvc_flow.flow import PLANNED, reproduce
from dvc_flow.repository import Node, Repository
from dvc_flow.server import any_server, explain

NO_HEARTBEATS = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}  # dvc_flow.heartbeat sends them


def run(
    parameters: Mapping[str, Any], planned: tuple[Repository, list[Node]] | None = None
) -> None:
    """Run the flow.

    Parameters
    ----------
    parameters : mapping
        The flow's.
    planned : tuple of Repository and list of Node, optional
        What it would plan.

    Raises
    ------
    FlowError
        If the run fails or is cancelled, or the server cannot be used.
    """
    PLANNED.set(planned)
    try:
        with any_server(), temporary_settings(NO_HEARTBEATS):
            state = reproduce(**parameters, return_state=True)
    except (PrefectException, httpx.HTTPError, RuntimeError, OSError, ValueError) as error:
        if isinstance(error, httpx.TransportError):
            # Prefect would wait for seconds with each event that is yet to be sent.
            print(f"error: {explain(error)}", file=sys.stderr, flush=True)
            os._exit(1)
        raise FlowError(explain(error)) from error
    if state.is_cancelled():
        raise RunFailed(f"cancelled; {state.message}")
    if not state.is_completed():
        reason = state.result(raise_on_failure=False)
        raise reason if isinstance(reason, BaseException) else RunFailed(state.message)
