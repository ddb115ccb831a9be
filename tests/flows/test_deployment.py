"""The deployments of prefect.yaml on the real graph, with a real server, worker and browser.

The graph is this repository's dvc.yaml, on the small data set and a variant that trains in seconds.
"""

import hashlib
import io
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import element_to_be_clickable
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import start_browser
from tests.flows.clusters import Cluster
from tests.flows.conftest import CLEAN, run
from tests.flows.services import (
    Server,
    Service,
    command_of,
    postgres,
    processes_below,
    wait_until,
    worker,
)
from tests.helpers import ROOT, add_tiny, edit_params, make_repository

AUTH = "admin:a secret"
GREEN = (33, 157, 75)  # of a completed task in Prefect's page


def small(params: Any) -> None:
    """Run two small variants on the digits."""
    params["run"].update(datasets=["digits"], variants=["plain", "small"])
    params["datasets"]["digits"]["train"] = {"samples": 640, "epochs": 1}
    params["profile"].update(chunk_sizes=[1, 32], training_steps=2)
    params["variants"].update(plain=small_variant(), small=small_variant())


def small_variant() -> dict[str, Any]:
    return {
        "input_size": None,
        "initializer": {"type": "he_normal"},
        "layers": [{"type": "dense", "units": 8}],
        "budget": {"epochs": 1},
        "batch_size": 32,
        "learning_rate": 0.01,
    }


@dataclass(frozen=True)
class Project:
    """A fork of this repository, whose remotes are folders."""

    root: Path
    origin: Path
    store: Path

    def log(self) -> list[str]:
        """Return the subjects of the commits at the remote."""
        done = run("git", "log", "--format=%s", "main", cwd=self.origin)
        return done.stdout.splitlines()

    def change(self, what: str) -> None:
        """Commit what was edited, on top of the remote's branch, and push it."""
        for command in (
            ("git", "commit", "-qam", what),
            ("git", "pull", "-q", "--rebase"),
            ("git", "push", "-q"),
        ):
            done = run(*command, cwd=self.root)
            assert done.returncode == 0, done.stderr

    def edit(self, what: str, change: Any) -> None:
        """Change params.yaml, and push the change."""
        edit_params(self.root / "params.yaml", change)
        self.change(what)

    @contextmanager
    def clone(self) -> Iterator[Path]:
        """Make a fresh clone, as a colleague has it; remove it afterwards."""
        clone = self.root.parent / f"clone-{uuid.uuid4().hex}"
        assert run("git", "clone", "-q", str(self.origin), str(clone), cwd=ROOT).returncode == 0
        try:
            yield clone
        finally:
            shutil.rmtree(clone)

    def require_shared(self) -> None:
        """Check that a fresh clone has all of it: nothing to run, and everything to pull."""
        with self.clone() as clone:
            done = run("dvc", "repro", "--pull", "--allow-missing", cwd=clone)
            assert "Data and pipelines are up to date" in done.stdout, done.stdout + done.stderr
            assert run("git", "status", "--porcelain", cwd=clone).stdout == ""
            done = run("dvc", "pull", cwd=clone)
            assert done.returncode == 0, done.stderr
            assert run("dvc", "status", cwd=clone).stdout.strip() == CLEAN
            assert run("git", "status", "--porcelain", cwd=clone).stdout == ""

    @contextmanager
    def no_remote(self) -> Iterator[None]:
        """Have the DVC remote not answer, as a network's folder whose server is away."""
        away = self.store.with_name("away")
        self.store.rename(away)
        self.store.symlink_to(self.store.name)  # to itself: every access is an error
        try:
            yield
        finally:
            self.store.unlink()
            away.rename(self.store)


def make_project(folder: Path, cron: str) -> Project:
    """Fork this project with its committed results, but with nothing in its remote, as on day one."""
    origin = folder / f"{uuid.uuid4().hex}.git"  # the checkouts' name, by which to find them
    folder.mkdir(parents=True, exist_ok=True)
    root = make_repository(folder / "project", small)
    for name in ("Makefile", "pyproject.toml", "prefect.toml", "dvc.lock"):
        shutil.copy(ROOT / name, root)
    yaml = YAML()
    deployments = yaml.load((ROOT / "prefect.yaml").read_text())
    nightly = next(each for each in deployments["deployments"] if each["name"] == "nightly")
    for schedule in nightly["schedules"]:
        schedule["cron"] = cron
    with open(root / "prefect.yaml", "w") as file:
        yaml.dump(deployments, file)
    (root / ".venv").symlink_to(sys.prefix)
    with open(root / ".gitignore", "a") as file:
        file.write("/.venv\n")
    for command in (
        ("git", "init", "-q", "--bare", "-b", "main", str(origin)),
        ("git", "checkout", "-qb", "main"),
        ("dvc", "remote", "add", "-d", "store", str(folder / "store")),
        ("git", "add", "-A"),
        ("git", "commit", "-qm", "first"),
        ("git", "remote", "add", "origin", str(origin)),
        ("git", "push", "-qu", "origin", "main"),
    ):
        done = run(*command, cwd=root)
        assert done.returncode == 0, done.stderr
    return Project(root, origin, folder / "store")


def deploy(project: Project, server: Server) -> None:
    """Run `make deploy`, with the packages that are there."""
    done = run("make", "-o", "setup", "deploy", cwd=project.root, **server.leads_there)
    assert done.returncode == 0, done.stdout + done.stderr


def start_run(server: Server, deployment: str, **parameters: Any) -> str:
    """Start a deployment's run, as Prefect's page does, and return its id."""
    path = f"deployments/{server.deployment(deployment)['id']}/create_flow_run"
    return str(server.ask(path, parameters=parameters)["id"])


def ended_as(server: Server, run_id: str, state: str, seconds: float) -> str:
    """Wait until a run has a final state, which must be `state`; return its message."""

    def ended() -> Any:
        now = server.runs(id={"any_": [run_id]})[0]["state"]
        return now if now["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    final = wait_until(ended, seconds, f"run {run_id} to end")
    assert final["name"] == state, final["message"]
    return str(final["message"])


@dataclass(frozen=True)
class Deployed:
    project: Project
    server: Server
    worker: Service
    home: Path  # the worker's

    def start(self, deployment: str, **parameters: Any) -> str:
        return start_run(self.server, deployment, **parameters)

    def night(self, state: str = "Completed") -> tuple[str, dict[str, str]]:
        """Run the nightly deployment on a machine without a cache.

        Return its message, and the state of each stage.
        """
        shutil.rmtree(self.home / ".cache/alexnet-mnist", ignore_errors=True)
        run_id = self.start("nightly")
        message = ended_as(self.server, run_id, state, 180)
        return message, self.stages(run_id)

    def stages(self, run_id: str) -> dict[str, str]:
        """Return the name of each stage's state in a run."""
        wanted = {"flow_runs": {"id": {"any_": [run_id]}}, "limit": 200}
        tasks = self.server.ask("task_runs/filter", **wanted)
        return {task["name"]: task["state"]["name"] for task in tasks}

    def until_a_stage_runs(self, name: str) -> None:
        """Wait until a stage runs whose command holds `name`."""
        folder = self.project.origin.stem
        wait_until(
            lambda: any(name in " ".join(command_of(p)) for p in processes_below(folder)),
            90, f"a stage: {name}", every=0.1,
        )  # fmt: skip


def not_cached(states: dict[str, str]) -> set[str]:
    return {name for name, state in states.items() if state != "Cached"}


@pytest.fixture(scope="class")
def deployed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    """A fork whose nightly run is due every minute, on a server with a worker.

    The server on PostgreSQL requires an authentication string.
    """
    database = request.cls.database
    folder = tmp_path_factory.mktemp(database)
    with ExitStack() as stack:
        env = {}
        auth = ""
        if database == "postgresql":
            env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = stack.enter_context(postgres())
            auth = AUTH
        home = folder / "home"
        home.mkdir()
        project = make_project(folder / "fork", "* * * * *")
        server = stack.enter_context(Server(home, auth=auth, **env))
        deploy(project, server)
        works = stack.enter_context(worker(project.root, server, HOME=str(home)))
        yield Deployed(project, server, works, home)


class FirstNights:
    """What a fork's first nights bring; tests run in this order, one after another."""

    database = "sqlite"

    def test_the_first_night_makes_and_shares_everything(self, deployed: Deployed) -> None:
        """The schedule fires where nothing was ever pushed: all is made, pushed and committed."""
        project, server = deployed.project, deployed.server
        wait_until(lambda: len(project.log()) > 1, 240, "the scheduled run's commit")
        server.pause(server.deployment("nightly")["id"])
        assert project.log()[0].startswith("Reproduce 11 stages: ")
        assert run("git", "pull", "-q", cwd=project.root).returncode == 0
        project.require_shared()
        for waiting in server.runs(state={"type": {"any_": ["SCHEDULED"]}}):
            server.cancel(waiting["id"])  # what came due meanwhile
        unfinished = {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]}}
        wait_until(lambda: not server.runs(state=unfinished), 90, "quiet")

    def test_a_night_without_a_change_takes_seconds(self, deployed: Deployed) -> None:
        """Nothing is run, fetched or committed, within a minute, on a machine without a cache."""
        before = deployed.project.log()
        message, stages = deployed.night()
        assert message == "11 stages: 11 cached; nothing new to commit"
        assert not_cached(stages) == set()
        newest = deployed.server.runs(state={"name": {"any_": ["Completed"]}})[0]
        assert newest["total_run_time"] < 60
        assert deployed.project.log() == before
        assert not (deployed.home / ".cache/alexnet-mnist/files").exists()


class Changes(FirstNights):
    """What changes from night to night, or is away."""

    def test_a_change_of_the_report_trains_nothing(self, deployed: Deployed) -> None:
        """Only the report is made, from what it needs of the remote."""
        deployed.project.edit(
            "fewer mistakes", lambda params: params["report"].update(mistakes_shown=3)
        )
        message, stages = deployed.night()
        assert "; commit " in message
        assert not_cached(stages) == {"report@digits"}
        deployed.project.require_shared()

    def test_a_change_of_a_rate_trains_its_variant_alone(self, deployed: Deployed) -> None:
        """The variant is trained, evaluated and reported; compare and `dvc metrics` show it."""
        deployed.project.edit(
            "slower", lambda params: params["variants"]["small"].update(learning_rate=0.001)
        )
        message, stages = deployed.night()
        assert "; commit " in message
        assert not_cached(stages) == {
            "train@digits-small", "evaluate@digits-small", "export@digits-small", "report@digits",
        }  # fmt: skip
        deployed.project.require_shared()
        assert run("git", "pull", "-q", cwd=deployed.project.root).returncode == 0
        changed = run("dvc", "metrics", "diff", "HEAD~1", cwd=deployed.project.root).stdout
        assert "small/metrics.json" in changed
        compare = (sys.executable, "-m", "pipeline.compare", "HEAD~1", "HEAD")
        compared = run(*compare, cwd=deployed.project.root).stdout
        assert "variants.small.learning_rate: 0.01 → 0.001" in compared

    def test_a_change_of_a_module_runs_what_imports_it(self, deployed: Deployed) -> None:
        """What a new line in the metrics' code leads to is evaluation and report."""
        with open(deployed.project.root / "pipeline/scores/metrics.py", "a") as file:
            file.write("# A new line.\n")
        deployed.project.change("metrics")
        message, stages = deployed.night()
        assert "; commit " in message
        assert not_cached(stages) == {
            "evaluate@digits-plain", "evaluate@digits-small", "report@digits",
        }  # fmt: skip
        deployed.project.require_shared()

    def test_a_new_variant_and_a_new_data_set_are_made(
        self, deployed: Deployed, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """What is added to params.yaml is run the next night, and nothing else."""
        tiny: Any = add_tiny(tmp_path_factory.mktemp("mirror"))

        def add(params: Any) -> None:
            tiny(params)
            params["run"].update(datasets=["digits", "tiny"], variants=["small", "new"])
            params["variants"]["new"] = small_variant()

        deployed.project.edit("more", add)
        message, stages = deployed.night()
        assert "; commit " in message
        assert {name for name, state in stages.items() if state == "Cached"} == {
            "download@digits", "preprocess@digits",
            "train@digits-small", "evaluate@digits-small", "export@digits-small",
            "profile@digits-small",
        }  # fmt: skip
        deployed.project.require_shared()

    def test_what_the_remote_lost_is_made_again(self, deployed: Deployed) -> None:
        """A collected object is made again by its stage, and pushed."""
        project = deployed.project
        with project.clone() as clone:
            assert run("dvc", "pull", "models/digits/small", cwd=clone).returncode == 0
            model = next((clone / "models/digits/small").iterdir()).read_bytes()
        digest = hashlib.md5(model, usedforsecurity=False).hexdigest()
        lost = project.store / "files/md5" / digest[:2] / digest[2:]
        lost.unlink()
        _, stages = deployed.night()
        assert not_cached(stages) >= {"train@digits-small"}
        assert not_cached(stages) <= {
            "train@digits-small", "evaluate@digits-small", "export@digits-small", "report@digits",
        }  # fmt: skip
        assert lost.exists()
        project.require_shared()

    def test_a_remote_that_does_not_answer_is_waited_for(self, deployed: Deployed) -> None:
        """Away at the start, nothing runs; away at the push, the next run restores and commits."""
        project, server = deployed.project, deployed.server
        with project.no_remote():
            message, stages = deployed.night("Failed")
        assert "DVC's remote 'store' does not answer" in message
        assert stages == {}
        project.edit("faster", lambda params: params["variants"]["small"].update(learning_rate=0.1))
        run_id = deployed.start("nightly", targets=["report@digits"])
        deployed.until_a_stage_runs("pipeline.report")
        with project.no_remote():
            message = ended_as(server, run_id, "Failed", 180)
        assert "could not be sent to DVC's remote" in message
        run_id = deployed.start("nightly")  # on the same machine, whose cache has it
        assert "; commit " in ended_as(server, run_id, "Completed", 180)
        assert deployed.stages(run_id)["train@digits-small"] == "Restored"
        project.require_shared()


class Interruptions(FirstNights):
    """What comes between: another commit, run or person, or the worker's end."""

    def test_a_branch_that_moved_on_is_not_overwritten(self, deployed: Deployed) -> None:
        """The run fails and says what helps; the next one restores what it made, and commits."""
        project, server = deployed.project, deployed.server
        project.edit("more", lambda params: params["variants"]["small"].update(batch_size=16))
        run_id = deployed.start("nightly")
        deployed.until_a_stage_runs("pipeline.train")
        (project.root / "NOTES").write_text("meanwhile\n")
        assert run("git", "add", "NOTES", cwd=project.root).returncode == 0
        project.change("meanwhile")
        assert "the remote has moved on" in ended_as(server, run_id, "Failed", 180)
        message, stages = deployed.night()
        assert "; commit " in message
        assert stages["train@digits-small"] == "Restored"
        assert project.log()[1] == "meanwhile"

    def test_two_on_demand_run_one_after_another(self, deployed: Deployed) -> None:
        """The second one waits and says so; both are experiments with their own params."""
        project, server = deployed.project, deployed.server
        rates = ("0.02", "0.03")
        now = YAML(typ="safe").load((project.root / "params.yaml").read_text())
        now = now["variants"]["small"]["learning_rate"]
        runs = [
            deployed.start("on-demand", params=[f"variants.small.learning_rate={rate}"])
            for rate in rates
        ]
        wait_until(
            lambda: "AwaitingConcurrencySlot" in map(server.state, runs), 60, "one that waits"
        )
        assert run("git", "pull", "-q", "--rebase", cwd=project.root).returncode == 0
        for run_id, rate in zip(runs, rates, strict=True):
            message = ended_as(server, run_id, "Completed", 240)
            name = message.rpartition("; experiment ")[2]
            assert name.endswith(run_id[:8])
            done = run("dvc", "exp", "pull", "origin", name, cwd=project.root)
            assert done.returncode == 0, done.stderr
            compare = (sys.executable, "-m", "pipeline.compare", "HEAD", name)
            done = run(*compare, cwd=project.root)
            assert f"variants.small.learning_rate: {now} → {rate}" in done.stdout, done.stderr
            assert name in run("dvc", "exp", "show", "--csv", cwd=project.root).stdout

    def test_an_on_demand_run_uses_a_cluster(self, deployed: Deployed, tmp_path: Path) -> None:
        """Its parameter `cluster` names one, whose machines run the stages; the experiment is shared."""
        with ExitStack() as stack:
            cluster = Cluster(tmp_path, stack)
            cluster.add()
            lower = {"params": ["variants.small.learning_rate=0.005"], "cluster": cluster.address}
            run_id = deployed.start("on-demand", **lower)
            message = ended_as(deployed.server, run_id, "Completed", 240)
        assert "experiment" in message
        wanted = {"flow_runs": {"id": {"any_": [run_id]}}}
        tasks = deployed.server.ask("task_runs/filter", **wanted)
        told = {task["name"]: task["state"]["message"] or "" for task in tasks}
        assert told["train@digits-small"].endswith("on machine0")

    def test_the_page_shows_and_cancels_a_run(self, deployed: Deployed) -> None:
        """A browser finds schedule, graph, stages and artifacts; its button ends every process."""
        server = deployed.server
        newest = server.runs(state={"name": {"any_": ["Completed"]}})[0]
        with Page(server.page) as page:
            page.show("/deployments", server.auth)
            page.find("nightly", "on-demand")
            page.show(f"/runs/flow-run/{newest['id']}")
            page.find("Completed", f"{len(deployed.stages(newest['id']))} Task runs")
            page.find_green_bars()
            page.open_tab("Task Runs")
            page.find("download@digits", "train@digits-small", "report@digits")
            page.open_tab("Artifacts")
            page.find("metrics", "report-digits", "train-digits-small")
            run_id = deployed.start("on-demand", force=True)
            deployed.until_a_stage_runs("pipeline.train")
            page.show(f"/runs/flow-run/{run_id}")
            page.cancel()
        ended_as(server, run_id, "Cancelled", 180)
        wait_until(lambda: not processes_below(deployed.project.origin.stem), 30, "the end of all")

    @pytest.mark.parametrize("how", ["stopped", "killed"])
    def test_a_run_ends_with_its_worker(self, deployed: Deployed, how: str) -> None:
        """In the middle of a training nothing of it is left, and the next night commits."""
        project, server = deployed.project, deployed.server
        rate = len(how) / 1000
        project.edit(how, lambda params: params["variants"]["small"].update(learning_rate=rate))
        run_id = deployed.start("nightly")
        deployed.until_a_stage_runs("pipeline.train")
        if how == "killed":
            deployed.worker.kill()
        else:
            deployed.worker.terminate()
        wait_until(lambda: not processes_below(project.origin.stem), 30, "the end of all")
        deployed.worker.start()
        ended_as(server, run_id, "Crashed", 240)
        message, _ = deployed.night()
        assert "; commit " in message
        project.require_shared()

    def test_a_run_that_awaits_a_retry_ends_with_its_worker(self, deployed: Deployed) -> None:
        """A retry of the whole run, or of a stage, that is waited for ends with the worker too."""
        project, server = deployed.project, deployed.server
        deployed.worker.terminate()
        retries = {"PREFECT_FLOWS_DEFAULT_RETRIES": "1",
                   "PREFECT_FLOWS_DEFAULT_RETRY_DELAY_SECONDS": "600"}  # fmt: skip
        patient = worker(project.root, server, HOME=str(deployed.home), **retries)
        with patient, project.no_remote():
            run_id = deployed.start("nightly")
            wait_until(lambda: server.state(run_id) == "AwaitingRetry", 90, "the first failure")
            patient.terminate()
            wait_until(lambda: not processes_below(project.origin.stem), 30, "the end of all")
        deployed.worker.start()
        ended_as(server, run_id, "Crashed", 240)


@pytest.mark.slow
class TestChanges(Changes):
    """On SQLite."""


@pytest.mark.slow
class TestInterruptions(Interruptions):
    """On SQLite."""


@pytest.mark.slow
class TestOnPostgreSQL(FirstNights):
    """The same first nights on PostgreSQL, with a password."""

    database = "postgresql"


if os.environ.get("ALL_ON_POSTGRESQL"):

    @pytest.mark.slow
    class TestAllOnPostgreSQL(Changes, Interruptions):
        """All that can happen to a night, on PostgreSQL."""

        database = "postgresql"


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

    def cancel(self) -> None:
        """Press the page's button, and confirm."""
        wait = WebDriverWait(self.browser, 60)
        for text in ("Cancel", "Confirm"):
            button = (By.XPATH, f"//button[normalize-space()='{text}']")
            wait.until(element_to_be_clickable(button), text).click()

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
    project = make_project(tmp_path / "fork", "0 2 * * *")
    (tmp_path / "home").mkdir()
    with Server(tmp_path / "home", auth=AUTH) as server:
        wrong = server.leads_there | {"PREFECT_API_AUTH_STRING": "admin:wrong"}
        done = run("dvc-flow", "--force", cwd=project.root, **wrong)
        assert done.returncode == 1
        assert "401" in done.stderr
        assert "PREFECT_API_AUTH_STRING" in done.stderr
        assert "Traceback" not in done.stderr
        flow = ("dvc-flow", "--force", "download@digits")
        done = run(*flow, cwd=project.root, **server.leads_there)
        assert done.returncode == 0, done.stderr


def test_the_server_listens_on_this_machine_only() -> None:
    """`make server` binds to the loopback."""
    assert "prefect server start --host 127.0.0.1" in (ROOT / "Makefile").read_text()
