"""The automations by which Prefect's server handles dead and late runs of this flow.

``dvc-flow automations`` creates or updates them; ``make deploy`` calls it.
"""

import asyncio
import sys
from collections.abc import Iterable
from datetime import timedelta

import httpx
from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CancelFlowRun, ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import PrefectException

from dvc_flow.heartbeat import INTERVAL
from dvc_flow.repository import Repository
from dvc_flow.server import explain
from dvc_flow.settings import read_settings

HEARTBEATS_MISSED_AFTER = 3 * INTERVAL
NOT_BEGUN_AFTER = timedelta(minutes=10)
TOO_LATE_AFTER = timedelta(hours=6)
# A process that dies between one of these and its next heartbeat is missed as well: a worker that
# is stopped while a retry is awaited leaves the run in that state.
ALIVE = {"heartbeat", "Running", "Retrying", "AwaitingRetry"}


def _absence(after: set[str], within: timedelta) -> EventTrigger:
    """Return a trigger for a run of this flow that sends no further event."""
    return EventTrigger(
        posture=Posture.Proactive,
        after={f"prefect.flow-run.{event}" for event in after},
        expect={"prefect.flow-run.*"},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification(
            {"prefect.resource.role": "flow", "prefect.resource.name": "reproduce"}
        ),
        for_each={"prefect.resource.id"},
        threshold=1,
        within=within,
    )


def _crash(message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=StateType.CRASHED, message=message)


def automations(project: str) -> tuple[Automation, ...]:
    """Return the automations of a project; its name tells them from those of others."""
    return (
        Automation(
            name=f"{project}: crash runs whose process died",
            description="A run that sends no heartbeat for 90 seconds does not stay Running.",
            trigger=_absence(ALIVE, HEARTBEATS_MISSED_AFTER),
            actions=[_crash("No heartbeat: its process or worker died.")],
        ),
        Automation(
            name=f"{project}: crash runs that a worker took and never began",
            description="A run does not stay Pending for more than 10 minutes.",
            trigger=_absence({"Pending", "Submitting"}, NOT_BEGUN_AFTER),
            actions=[_crash("Never began: its worker died before.")],
        ),
        Automation(
            name=f"{project}: cancel runs that are too late",
            description="A run that no worker took for 6 hours is left to the next one.",
            trigger=_absence({"Late"}, TOO_LATE_AFTER),
            actions=[CancelFlowRun()],
        ),
    )


async def apply(automations: Iterable[Automation]) -> None:
    """Create or update the automations on the server."""
    for automation in automations:
        try:
            existing = await Automation.aread(name=automation.name)
        except ValueError:
            await automation.model_copy().acreate()
            print(f"created: {automation.name}")
        else:
            await automation.model_copy(update={"id": existing.id}).aupdate()
            print(f"up to date: {automation.name}")


def main() -> int:
    """Apply the automations to the server that PREFECT_API_URL names."""
    try:
        project = read_settings(Repository().root).name
        asyncio.run(apply(automations(project)))
    except (PrefectException, httpx.HTTPError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 1
    return 0
