from prefect.client.schemas.objects import StateType
from prefect.events.actions import CancelFlowRun, ChangeFlowRunState
from ruamel.yaml import YAML

from flows.automations import AUTOMATIONS, HEARTBEATS_MISSED_AFTER
from tests.conftest import ROOT

PREFECT = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())


def test_every_deployment_sends_heartbeats_often_enough() -> None:
    """A run may miss two heartbeats before it counts as dead."""
    for deployment in PREFECT["deployments"]:
        env = deployment["work_pool"]["job_variables"]["env"]
        interval = int(env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
        assert interval * 3 <= HEARTBEATS_MISSED_AFTER.total_seconds(), deployment["name"]


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
    from flows.reproduce import reproduce

    known = set(reproduce.parameters.properties)
    for deployment in PREFECT["deployments"]:
        assert deployment["entrypoint"] == "flows/reproduce.py:reproduce"
        assert set(deployment["parameters"]) <= known
        assert deployment["concurrency_limit"]["limit"] == 1
    nightly = next(each for each in PREFECT["deployments"] if each["name"] == "nightly")
    assert nightly["schedules"][0].keys() >= {"cron", "timezone"}
