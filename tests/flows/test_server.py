import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL
from prefect.settings.context import temporary_settings

from dvc_flow.flow import reproduce
from dvc_flow.server import explain
from tests.flows.conftest import Stages, run, stage
from tests.flows.services import processes_below, wait_until
from tests.helpers import environment

MakeRepository = Callable[[Stages], Path]
ONE: Stages = {"a": stage("echo a > a", out="a")}


def test_impossible_parameters_are_refused_by_the_server() -> None:
    """A deployment's run with no jobs at all never starts: the flow's own types say so."""
    assert {"type": "integer", "minimum": 1} in reproduce.parameters.properties["jobs"]["anyOf"]
    with pytest.raises(Exception, match="greater than or equal to 1"):
        reproduce.validate_parameters({"jobs": 0})


@pytest.mark.parametrize("key", ["a key", None])
def test_rejected_credentials_name_the_right_variable(key: str | None) -> None:
    """With an API key it is that key; without one it is the authentication string."""
    request = httpx.Request("GET", "http://127.0.0.1:4200/api")
    error = httpx.HTTPStatusError("no", request=request, response=httpx.Response(401))
    with temporary_settings({PREFECT_API_URL: str(request.url), PREFECT_API_KEY: key}):
        named = "PREFECT_API_KEY" if key else "PREFECT_API_AUTH_STRING"
        assert f"rejects our credentials (401); set {named}" in explain(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"},
        {"PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"},
    ],
    ids=["a proxy", "no ephemeral mode"],
)
def test_a_temporary_server_works_in_any_environment(
    make_repository: MakeRepository, tmp_path: Path, more: dict[str, str]
) -> None:
    """Requests to this machine use no proxy; Prefect's own temporary server is not needed."""
    root = make_repository(ONE)
    done = run("dvc-flow", cwd=root, PREFECT_HOME=str(tmp_path / "home"), **more)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not processes_below(str(root))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["not writable", "of a newer version"])
def test_a_server_that_does_not_start_is_quoted(
    make_repository: MakeRepository, tmp_path: Path, what: str
) -> None:
    """Its own reason and a remedy, in one line, as soon as it ends."""
    root = make_repository(ONE)
    home = tmp_path / "home"
    if what == "not writable":
        home.write_text("a file")
    else:
        home.mkdir()
        with sqlite3.connect(home / "prefect.db") as database:
            database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
            database.execute("INSERT INTO alembic_version VALUES ('of_the_future')")
        database.close()
    done = run("dvc-flow", cwd=root, PREFECT_HOME=str(home))
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert ("of_the_future" if what != "not writable" else str(home)) in lines[0]
    assert "set PREFECT_HOME" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_temporary_server_ends_with_its_flow(
    make_repository: MakeRepository, tmp_path: Path, how: str
) -> None:
    """However the flow ends, neither its server nor a stage is left."""
    root = make_repository({"a": stage("touch on; sleep 60", out="a")})
    flow = subprocess.Popen(
        ["dvc-flow"], cwd=root, env=environment(PREFECT_HOME=str(tmp_path / "home")),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until((root / "on").exists, 90, "the stage")
    family = psutil.Process(flow.pid).children(recursive=True)
    assert len(family) >= 3  # the warden, the server, the stage
    flow.send_signal(getattr(signal, how))
    flow.wait(120)
    psutil.wait_procs(family, timeout=15)
    assert not [each for each in family if each.is_running()]
