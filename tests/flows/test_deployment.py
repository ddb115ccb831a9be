"""The deployments of prefect.yaml on real servers, with a real worker, schedule and browser."""

import io
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from ruamel.yaml import YAML
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import element_to_be_clickable
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import start_browser
from tests.conftest import ROOT
from tests.flows.conftest import CLEAN, Stages, dvc_status, fan_out, run, stage, write_stages
from tests.flows.services import (
    Server,
    Service,
    command_of,
    postgres,
    processes_below,
    wait_until,
    worker,
)

AUTH = "admin:a secret"
GREEN = (33, 157, 75)  # of a completed task in Prefect's page


def measured(width: int, work: str) -> Stages:
    """Return a fan-out that shows its progress, measures something and reports it."""
    measure = (
        "echo 'measure it: 1/1 files (100%), 9 files/s' && mkdir -p reports "
        '&& echo "{\\"size\\": $(wc -c < join.txt)}" > size.json && echo "# Size" > reports/size.md'
    )
    stages = fan_out(width, work) | {"measure": stage(measure, ("join.txt",))}
    stages["measure"] |= {
        "metrics": [{"size.json": {"cache": False}}],
        "outs": [{"reports/size.md": {"cache": False}}],
    }
    return stages


@dataclass(frozen=True)
class Project:
    """A clone of a small project with this flow, whose remotes are folders."""

    root: Path
    origin: Path

    def log(self) -> list[str]:
        """Return the subjects of the commits at the remote."""
        done = run("git", "log", "--format=%s", "main", cwd=self.origin)
        return done.stdout.splitlines()


def make_project(folder: Path, stages: Stages, cron: str) -> Project:
    """Write a small project, and push it to remotes below `folder`."""
    root = folder / "project"
    origin = folder / f"{uuid.uuid4().hex}.git"  # the checkouts' name, by which to find them
    root.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__")
    for package in ("flows", "pipeline"):
        shutil.copytree(ROOT / package, root / package, ignore=ignore)
    for name in ("Makefile", "requirements.txt", ".dvcignore"):
        shutil.copy(ROOT / name, root)
    yaml = YAML()
    deployments = yaml.load((ROOT / "prefect.yaml").read_text())
    nightly = next(each for each in deployments["deployments"] if each["name"] == "nightly")
    nightly["schedules"][0]["cron"] = cron
    with open(root / "prefect.yaml", "w") as file:
        yaml.dump(deployments, file)
    (root / ".gitignore").write_text("/.venv\n__pycache__/\n/*.txt\n!/input.txt\n!/req*.txt\n")
    (root / ".venv").symlink_to(sys.prefix)
    (root / "input.txt").write_text("input\n")
    write_stages(root, stages)
    for command in (
        ("git", "init", "-q", "--bare", "-b", "main", str(origin)),
        ("git", "init", "-q", "-b", "main"),
        ("dvc", "init", "-q"),
        ("dvc", "config", "core.analytics", "false"),
        ("dvc", "remote", "add", "-d", "store", str(folder / "store")),
        ("git", "add", "-A"),
        ("git", "commit", "-qm", "first"),
        ("git", "remote", "add", "origin", str(origin)),
        ("git", "push", "-qu", "origin", "main"),
    ):
        done = run(*command, cwd=root)
        assert done.returncode == 0, done.stderr
    return Project(root, origin)


def deploy(project: Project, server: Server) -> None:
    """Run `make deploy`, with the packages that are there."""
    done = run("make", "-o", ".venv/.run-ready", "deploy", cwd=project.root, **server.leads_there)
    assert done.returncode == 0, done.stdout + done.stderr


def start_run(project: Project, server: Server, deployment: str, *more: str) -> str:
    """Start a deployment's run, and return its id."""
    command = ("prefect", "deployment", "run", f"reproduce/{deployment}", *more)
    done = run(*command, cwd=project.root, **server.leads_there)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("UUID: ")[1].split()[0]


def ended_as(server: Server, run_id: str, state: str, seconds: float) -> str:
    """Wait until a run has a final state, which must be `state`; return its message."""

    def ended() -> Any:
        now = server.runs(id={"any_": [run_id]})[0]["state"]
        return now if now["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    final = wait_until(ended, seconds, f"run {run_id} to end")
    assert final["name"] == state, final
    return str(final["message"])


@dataclass(frozen=True)
class Deployed:
    project: Project
    server: Server
    worker: Service


@pytest.fixture(scope="class", params=["sqlite", "postgresql"])
def deployed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    """A project whose nightly run is due every minute, on a server with a worker.

    The server on PostgreSQL requires an authentication string.
    """
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        env = {}
        auth = ""
        if request.param == "postgresql":
            env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = stack.enter_context(postgres())
            auth = AUTH
        (folder / "home").mkdir()
        project = make_project(folder, measured(3, "sleep 1"), "* * * * *")
        server = stack.enter_context(Server(folder / "home", auth=auth, **env))
        deploy(project, server)
        yield Deployed(project, server, stack.enter_context(worker(project.root, server)))


@pytest.fixture(scope="class")
def dead_run(deployed: Deployed) -> str:
    """The id of a nightly run whose process and whose worker were killed; another one works."""
    project, server = deployed.project, deployed.server
    name = project.origin.stem
    run_id = start_run(project, server, "nightly", "--param", "force=true")
    wait_until(lambda: stages_of(name), 90, "a stage")
    engines = [p for p in processes_below(name) if "prefect.engine" in command_of(p)]
    deployed.worker.kill()
    for engine in engines:
        engine.kill()
    wait_until(lambda: not processes_below(name), 10, "the stages' end")
    assert server.state(run_id) == "Running"
    deployed.worker.start()
    return run_id


@pytest.mark.slow
class TestDeployed:
    """On SQLite and on PostgreSQL; in this order, one after another."""

    def test_a_scheduled_run_commits_its_result_to_the_branch(self, deployed: Deployed) -> None:
        """The schedule fires; the run pulls, reproduces, pushes and commits what it made."""
        project, server = deployed.project, deployed.server
        wait_until(lambda: len(project.log()) > 1, 180, "the scheduled run's commit")
        assert project.log() == ["Reproduce 6 stages: 6 completed", "first"]
        scheduled = [each for each in server.runs() if each["auto_scheduled"]]
        nightly = server.deployment("nightly")
        assert {each["deployment_id"] for each in scheduled} == {nightly["id"]}
        server.pause(nightly["id"])
        root = project.root
        assert run("git", "pull", "-q", cwd=root).returncode == 0
        assert run("dvc", "pull", cwd=root).returncode == 0
        assert dvc_status(root) == CLEAN
        assert "size.json" in run("dvc", "metrics", "diff", "HEAD~1", cwd=root).stdout

    def test_a_night_that_overlaps_the_last_is_skipped(
        self, deployed: Deployed, dead_run: str
    ) -> None:
        """While a nightly run goes on, another one is cancelled; a dead one counts, for a while."""
        assert dead_run
        run_id = start_run(deployed.project, deployed.server, "nightly")
        ended_as(deployed.server, run_id, "Cancelled", 60)

    def test_what_is_committed_is_not_run_again(self, deployed: Deployed) -> None:
        """The next run, in a checkout of its own that has no data, finds everything Cached."""
        project, server = deployed.project, deployed.server
        run_id = start_run(project, server, "on-demand")
        message = ended_as(server, run_id, "Completed", 120)
        assert message == "6 stages: 6 cached; nothing new to save"

    def test_a_run_on_demand_saves_an_experiment(self, deployed: Deployed) -> None:
        """Its experiment is at the remote; a clone pulls and compares it."""
        project, server = deployed.project, deployed.server
        (project.root / "input.txt").write_text("longer input\n")
        run("git", "commit", "-qam", "longer input", cwd=project.root)
        assert run("git", "push", "-q", cwd=project.root).returncode == 0
        run_id = start_run(project, server, "on-demand")
        message = ended_as(server, run_id, "Completed", 120)
        name = message.rpartition("; experiment ")[2]
        assert name.endswith(run_id[:8])
        done = run("dvc", "exp", "pull", "origin", name, cwd=project.root)
        assert done.returncode == 0, done.stderr
        shown = run("dvc", "metrics", "diff", "HEAD", name, cwd=project.root).stdout
        assert "size.json" in shown
        assert name in run("dvc", "exp", "show", "--csv", cwd=project.root).stdout

    def test_cancelling_ends_every_process(self, deployed: Deployed) -> None:
        """A run cancelled as the page does it is Cancelled, and leaves no process."""
        project, server = deployed.project, deployed.server
        name = project.origin.stem
        run_id = start_run(project, server, "on-demand", "--param", "force=true")
        wait_until(lambda: stages_of(name), 90, "a stage")
        server.cancel(run_id)
        wait_until(lambda: not stages_of(name), 10, "the stages' end")
        ended_as(server, run_id, "Cancelled", 60)

    def test_the_page_shows_deployment_run_and_artifacts(self, deployed: Deployed) -> None:
        """A browser finds the schedule, the run's graph, its stages and its artifacts."""
        server = deployed.server
        completed = server.runs(state={"name": {"any_": ["Completed"]}})[-1]
        with Page(server.page) as page:
            page.show("/deployments", server.auth)
            page.find("nightly", "Every minute")
            page.show(f"/runs/flow-run/{completed['id']}")
            page.find("Completed", "6 Task runs")
            page.find_green_bars()
            page.open_tab("Task Runs")
            page.find("source", "leaf1", "join", "measure")
            page.open_tab("Artifacts")
            page.find("metrics", "report-size", "measure")

    def test_a_run_whose_process_died_does_not_stay_running(
        self, deployed: Deployed, dead_run: str
    ) -> None:
        """The automation finds it by its missing heartbeat; the next night goes on."""
        project, server = deployed.project, deployed.server
        assert "heartbeat" in ended_as(server, dead_run, "Crashed", 180)
        run_id = start_run(project, server, "nightly")
        ended_as(server, run_id, "Completed", 120)
        assert project.log()[0].startswith("Reproduce 6 stages: ")


def stages_of(name: str) -> list[Any]:
    """Return the supervisors of stages that run in a project's checkouts, and what they started."""
    supervisors = [
        p for p in processes_below(name) if any("supervise.py" in part for part in command_of(p))
    ]
    started: list[Any] = []
    for each in supervisors:
        with suppress(psutil.NoSuchProcess):  # it has ended
            started += each.children(recursive=True)
    return supervisors + started


class Page:
    """Prefect's page in a headless browser."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.browser = start_browser(
            "--window-size=1500,2000", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"
        )

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self.browser.quit()

    def show(self, path: str, auth: str = "") -> None:
        """Open a page; give it the authentication string if it asks for one."""
        self.browser.get(self.url + path)
        if auth:
            field = WebDriverWait(self.browser, 60).until(
                lambda browser: browser.find_element(By.CSS_SELECTOR, "input[type=password]")
            )
            field.send_keys(auth, Keys.ENTER)

    def find(self, *texts: str) -> None:
        """Wait until the page shows all texts."""

        def shown() -> str:
            return self.browser.find_element(By.TAG_NAME, "body").text

        with suppress(TimeoutException):
            WebDriverWait(self.browser, 30).until(lambda _: all(text in shown() for text in texts))
        assert [text for text in texts if text not in shown()] == [], shown()

    def open_tab(self, name: str) -> None:
        tab = (By.XPATH, f"//li[@class='p-tab' and normalize-space()='{name}']")
        WebDriverWait(self.browser, 60).until(element_to_be_clickable(tab)).click()

    def find_green_bars(self) -> None:
        """Wait until the canvas shows completed tasks."""

        def is_drawn(_: object) -> bool:
            canvas = self.browser.find_element(By.TAG_NAME, "canvas")
            image = Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("RGB")
            distance = np.abs(np.asarray(image, int) - GREEN).max(axis=2)
            return int((distance < 12).sum()) > 1000

        WebDriverWait(self.browser, 60).until(is_drawn, "no completed task in the run's graph")


@pytest.mark.slow
def test_a_server_that_requires_a_string_refuses_a_wrong_one(tmp_path: Path) -> None:
    """Without the right authentication string a flow ends in one clear line."""
    project = make_project(tmp_path, fan_out(1), "0 2 * * *")
    (tmp_path / "home").mkdir()
    with Server(tmp_path / "home", auth=AUTH) as server:
        wrong = server.leads_there | {"PREFECT_API_AUTH_STRING": "admin:wrong"}
        done = run(sys.executable, "-m", "flows.reproduce", cwd=project.root, **wrong)
        assert done.returncode == 1
        assert "401" in done.stderr
        assert "PREFECT_API_AUTH_STRING" in done.stderr
        assert "Traceback" not in done.stderr
        done = run(sys.executable, "-m", "flows.reproduce", cwd=project.root, **server.leads_there)
        assert done.returncode == 0, done.stderr


def test_the_server_listens_on_this_machine_only() -> None:
    """`make server` binds to the loopback."""
    assert "prefect server start --host 127.0.0.1" in (ROOT / "Makefile").read_text()
