import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dvc_flow.artifacts import key
from tests.flows.conftest import Stages, run, stage
from tests.flows.services import Server

MakeRepository = Callable[[Stages], Path]

MEASURE = (
    "echo hello && echo 'measure it: 1/2 files (50%), 9 files/s' && mkdir -p reports && "
    "echo '{\"size\": 3}' > size.json && echo '# Size' > reports/size.md && "
    "echo 'measure it: 2/2 files (100%), 9 files/s'"
)


def test_a_stages_name_becomes_a_key() -> None:
    """Prefect takes lower-case letters, digits and dashes."""
    assert key("train@mnist-alexnet_norm") == "train-mnist-alexnet-norm"
    assert key("Ünï/@") == "n"


@pytest.mark.slow
def test_a_run_leaves_its_output_progress_metrics_and_report(
    make_repository: MakeRepository, prefect: Server
) -> None:
    """Output lies in the log line by line, the rest in artifacts; metrics tell their change."""
    root = make_repository({})
    (root / "size.json").write_text('{"size": 1}\n')
    stages = {"measure": stage(MEASURE)}
    stages["measure"]["metrics"] = [{"size.json": {"cache": False}}]
    stages["measure"]["outs"] = [{"reports/size.md": {"cache": False}}]
    (root / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    for command in (("git", "add", "-A"), ("git", "commit", "-qm", "an older size")):
        assert run(*command, cwd=root).returncode == 0
    done = run("dvc-flow", cwd=root, **prefect.leads_there)
    assert done.returncode == 0, done.stderr
    run_id = prefect.runs(state={"name": {"any_": ["Completed"]}})[0]["id"]
    of_this_run = {"flow_runs": {"id": {"any_": [run_id]}}}
    artifacts = {each["key"]: each for each in prefect.ask("artifacts/filter", **of_this_run)}
    assert set(artifacts) == {"measure", "metrics", "report-size"}
    assert artifacts["measure"]["data"] == 100
    assert artifacts["report-size"]["data"] == "# Size\n"
    assert json.loads(artifacts["metrics"]["data"]) == [
        {"file": "size.json", "metric": "size", "HEAD": 1, "workspace": 3, "change": 2}
    ]
    logs = prefect.ask("logs/filter", logs={"flow_run_id": {"any_": [run_id]}})
    assert "hello" in [each["message"] for each in logs]
