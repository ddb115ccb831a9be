import asyncio
from datetime import timedelta
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CancelFlowRun, ChangeFlowRunState
from prefect.settings import PREFECT_API_URL, temporary_settings
from ruamel.yaml import YAML

from dvc_flow.automations import apply, automations
from tests.flows.services import Server, wait_until
from tests.helpers import ROOT

AUTOMATIONS = automations("some-project")
PREFECT = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())


def test_only_runs_of_this_flow_are_touched() -> None:
    """Other flows on the same server are left alone."""
    for automation in AUTOMATIONS:
        related = automation.trigger.match_related.root  # type: ignore[union-attr]
        assert related["prefect.resource.name"] == "reproduce"


def test_a_dead_run_crashes_and_a_late_one_is_cancelled() -> None:
    """Each automation ends the run in the state that says what happened."""
    actions = [automation.actions[0] for automation in AUTOMATIONS]
    states = [action.state for action in actions if isinstance(action, ChangeFlowRunState)]
    assert states == [StateType.CRASHED, StateType.CRASHED]
    assert isinstance(actions[-1], CancelFlowRun)


def test_deployments_are_of_the_flow_with_parameters_that_it_has() -> None:
    """prefect.yaml names the flow's entrypoint, its parameters, a schedule and a limit."""
    from dvc_flow.flow import reproduce

    known = set(reproduce.parameters.properties)
    for deployment in PREFECT["deployments"]:
        assert deployment["entrypoint"] == "dvc_flow.flow.reproduce"
        assert set(deployment["parameters"]) <= known
        assert deployment["concurrency_limit"]["limit"] == 1
    nightly = next(each for each in PREFECT["deployments"] if each["name"] == "nightly")
    assert nightly["schedules"][0].keys() >= {"cron", "timezone"}


@pytest.mark.slow
def test_a_late_run_is_cancelled_and_one_that_never_began_crashes(prefect: Server) -> None:
    """On a real server, with shorter times; applied twice, each automation is there once."""
    shorter = [
        automation.model_copy(
            update={
                "trigger": automation.trigger.model_copy(update={"within": timedelta(seconds=10)})
            }
        )
        for automation in AUTOMATIONS
    ]
    with temporary_settings({PREFECT_API_URL: prefect.url}):
        asyncio.run(apply(shorter))
        asyncio.run(apply(shorter))
    applied = prefect.ask("automations/filter")
    assert sorted(each["name"] for each in applied) == sorted(
        automation.name for automation in AUTOMATIONS
    )
    flow = prefect.ask("flows/", name="reproduce")["id"]
    other = prefect.ask("flows/", name="another flow")["id"]

    def make_run(flow_id: str, state: str) -> str:
        made: dict[str, Any] = prefect.ask("flow_runs/", flow_id=flow_id, state={"type": state})
        return str(made["id"])

    late, untouched = make_run(flow, "SCHEDULED"), make_run(other, "SCHEDULED")
    taken = make_run(flow, "PENDING")
    wait_until(lambda: prefect.state(taken) == "Crashed", 90, "the run that never began")
    wait_until(lambda: prefect.state(late) == "Cancelled", 120, "the late run")
    assert prefect.state(untouched) == "Late"
    for each in applied:
        prefect.delete(f"automations/{each['id']}")
