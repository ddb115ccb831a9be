import time
from datetime import timedelta
from typing import Any

import pytest
from prefect import flow, runtime

from dvc_flow import heartbeat
from dvc_flow.automations import HEARTBEATS_MISSED_AFTER
from dvc_flow.heartbeat import beating
from tests.flows.services import Server, wait_until


@pytest.mark.usefixtures("in_process")
def test_a_run_sends_heartbeats_until_it_ends(
    prefect: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server gets them as the automations expect them, and the end does not wait for one."""
    monkeypatch.setattr(heartbeat, "INTERVAL", timedelta(seconds=0.2))

    @flow(name="with a heart")
    def lasts() -> str:
        with beating():
            time.sleep(0.9)
            monkeypatch.setattr(heartbeat, "INTERVAL", timedelta(hours=1))
            time.sleep(0.3)
            began = time.monotonic()
        assert time.monotonic() - began < 0.2
        return str(runtime.flow_run.id)

    run = f"prefect.flow-run.{lasts()}"

    def heartbeats() -> list[dict[str, Any]]:
        events = prefect.ask(
            "events/filter",
            filter={
                "event": {"name": ["prefect.flow-run.heartbeat"]},
                "any_resource": {"id": [run]},
            },
        )["events"]
        return list(events)

    events = wait_until(lambda: len(heartbeats()) >= 4 and heartbeats(), 60, "the heartbeats")
    for event in events:
        assert event["resource"]["prefect.resource.id"] == run
        flows = [each for each in event["related"] if each["prefect.resource.role"] == "flow"]
        assert [each["prefect.resource.name"] for each in flows] == ["with a heart"]


def test_a_run_may_miss_two_heartbeats() -> None:
    """It counts as dead only after the third."""
    assert heartbeat.INTERVAL * 3 <= HEARTBEATS_MISSED_AFTER
