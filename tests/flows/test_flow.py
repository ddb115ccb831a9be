import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from dvc_flow.cli import parse_arguments
from dvc_flow.slots import WORKSPACE_LOCK
from tests.flows.conftest import (
    CLEAN,
    Stages,
    dvc_status,
    fan_out,
    run,
    stage,
    write_stages,
)
from tests.flows.services import Server as PrefectServer
from tests.flows.services import wait_until
from tests.flows.test_engine import gone_within
from tests.helpers import environment

MakeRepository = Callable[[Stages], Path]
Server = dict[str, str]


def reproduce(root: Path, server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("dvc-flow", *arguments, cwd=root, **server)


def states(server: Server) -> dict[str, str]:
    """Return the state names of the newest flow run's tasks, by task."""
    url = server["PREFECT_API_URL"]
    newest = {"sort": "START_TIME_DESC", "limit": 1}
    runs = requests.post(f"{url}/flow_runs/filter", json=newest, timeout=30)
    wanted = {"flow_runs": {"id": {"any_": [runs.json()[0]["id"]]}}}
    tasks = requests.post(f"{url}/task_runs/filter", json=wanted, timeout=30).json()
    return {task["name"]: task["state"]["name"] for task in tasks}


def test_no_jobs_at_all_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """--jobs 0 is refused."""
    with pytest.raises(SystemExit):
        parse_arguments(["--jobs", "0"])
    assert "--jobs: expected at least 1, received 0" in capsys.readouterr().err


def test_a_dry_run_says_what_would_run_and_why(make_repository: MakeRepository) -> None:
    """--dry-run needs no server, runs nothing, and gives a reason for each stage."""
    root = make_repository(fan_out(1))
    assert run("dvc", "repro", cwd=root).returncode == 0
    (root / "input.txt").write_text("other\n")
    done = run("dvc-flow", "--dry-run", cwd=root)
    assert done.stdout.splitlines() == [
        "source: would run: modified input.txt",
        "leaf0: would run: if the output of source changes",
        "join: would run: if the output of leaf0 changes",
    ]
    assert (root / "source.txt").read_text() == "input\n"


def test_a_dry_run_changes_no_params(make_repository: MakeRepository) -> None:
    """--dry-run with --set plans for the changed params, and leaves the file as it was."""
    copy = stage("cp params.yaml copy.txt", out="copy.txt", params=["train.seed"])
    root = make_repository({"copy": copy})
    (root / "params.yaml").write_text("train: {seed: 1} # a comment\n")
    assert run("dvc", "repro", cwd=root).returncode == 0
    done = run("dvc-flow", "--dry-run", "--set", "train.seed=2", cwd=root)
    assert done.stdout == "copy: would run: modified params.yaml: train.seed\n"
    assert (root / "params.yaml").read_text() == "train: {seed: 1} # a comment\n"


def test_what_cannot_be_recorded_is_refused_without_a_server(
    make_repository: MakeRepository,
) -> None:
    """A dirty checkout with --record commit, or --push without a remote, is one line and code 1."""
    root = make_repository(fan_out(1))
    nowhere = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = reproduce(root, nowhere, "--push")
    assert done.returncode == 1
    assert re.fullmatch("error: .*DVC has no remote.*\n", done.stderr)
    (root / "input.txt").write_text("other\n")
    done = reproduce(root, nowhere, "--record", "commit")
    assert done.returncode == 1
    assert re.fullmatch("error: .*1 uncommitted change, such as input.txt.*\n", done.stderr)


@pytest.mark.slow
class TestWithServer:
    """The flow, run against a real Prefect server."""

    def test_it_leaves_what_dvc_repro_leaves(
        self, make_repository: MakeRepository, server: Server
    ) -> None:
        """All stages run side by side; dvc.lock has the bytes that `dvc repro` writes."""
        root = make_repository(fan_out(6, "sleep 0.$RANDOM"))
        done = reproduce(root, server, "--jobs", "6")
        assert done.returncode == 0, done.stderr
        assert "8 stages: 8 completed" in done.stdout
        assert dvc_status(root) == CLEAN
        ours = (root / "dvc.lock").read_bytes()
        (root / "dvc.lock").unlink()
        assert run("dvc", "repro", "--force", cwd=root).returncode == 0
        assert (root / "dvc.lock").read_bytes() == ours

    def test_states_tell_what_came_of_each_stage(
        self, make_repository: MakeRepository, server: Server
    ) -> None:
        """Stages are Completed, then Cached, and Restored where the run-cache has them."""
        root = make_repository(fan_out(2))
        reproduce(root, server)
        assert set(states(server).values()) == {"Completed"}
        (root / "leaf1.txt").unlink()
        reproduce(root, server)
        assert states(server) == {
            "source": "Cached", "leaf0": "Cached", "leaf1": "Restored", "join": "Cached",
        }  # fmt: skip
        done = reproduce(root, server)
        assert "4 stages: 4 cached; everything is up to date" in done.stdout
        (root / "dvc.lock").unlink()
        reproduce(root, server)
        assert set(states(server).values()) == {"Restored"}

    def test_a_stage_that_runs_alone_overlaps_no_other(
        self, make_repository: MakeRepository, server: Server
    ) -> None:
        """With four jobs, a stage with `alone: true` starts after and ends before all others."""
        names = ("one", "two", "three", "quiet")
        root = make_repository(
            {
                name: stage(
                    f"date +%s.%N > {name}; sleep 2; date +%s.%N >> {name}", out=name,
                    meta={"dvc-flow": {"alone": name == "quiet"}},
                )
                for name in names
            }
        )  # fmt: skip
        assert reproduce(root, server, "--jobs", "4").returncode == 0
        times = {name: [*map(float, (root / name).read_text().split())] for name in names}
        begin, end = times.pop("quiet")
        assert all(
            other_end < begin or end < other_begin for other_begin, other_end in times.values()
        )
        assert max(each[0] for each in times.values()) < min(each[1] for each in times.values())

    def test_a_failed_stage_fails_its_dependents_alone(
        self, make_repository: MakeRepository, server: Server
    ) -> None:
        """What depends on a failed stage does not run; the rest does; the exit code says so."""
        stages = fan_out(3)
        stages["leaf1"]["cmd"] = "echo error: broken leaf; false"
        root = make_repository(stages)
        done = reproduce(root, server, "--keep-going")
        assert done.returncode == 1
        assert "5 stages: 3 completed; failed: leaf1; not run: join" in done.stderr
        assert "Traceback" not in done.stderr
        assert (root / "leaf2.txt").exists()

    def test_a_stage_retries_as_often_as_it_may(
        self, make_repository: MakeRepository, server: Server
    ) -> None:
        """A stage with retries is tried again, one without is not."""
        flaky = "date >> $NAME.tries && test $(wc -l < $NAME.tries) -gt 1 && date > $NAME.out"
        root = make_repository(
            {
                name: stage(
                    flaky.replace("$NAME", name), out=f"{name}.out", meta={"dvc-flow": meta}
                )
                for name, meta in (
                    ("patient", {"retries": 2, "retry_delay_s": 0.1}),
                    ("strict", {}),
                )
            }
        )
        done = reproduce(root, server, "--keep-going")
        assert done.returncode == 1
        assert "2 stages: 1 completed; failed: strict" in done.stderr

    def test_a_whole_run_can_be_retried(
        self, make_repository: MakeRepository, server: Server
    ) -> None:
        """A run that failed goes on when Prefect retries it, and its result is committed."""
        flaky = (
            "date > new.tries; ls old.tries && date > flaky.txt || (mv new.tries old.tries; false)"
        )
        root = make_repository(fan_out(1) | {"flaky": stage(flaky, out="flaky.txt")})
        with open(root / ".gitignore", "a") as file:
            file.write("*.tries\n")
        assert run("git", "add", "-A", cwd=root).returncode == 0
        assert run("git", "commit", "-qm", "ignore the tries", cwd=root).returncode == 0
        retries = server | {"PREFECT_FLOWS_DEFAULT_RETRIES": "1"}
        done = reproduce(root, retries, "--keep-going", "--record", "commit")
        assert done.returncode == 0, done.stderr
        assert "4 stages: 3 completed; failed: flaky" in done.stdout
        assert "4 stages: 1 completed; 3 cached" in done.stdout
        assert "recorded: commit " in done.stdout

    def test_after_a_failure_nothing_new_begins(
        self, make_repository: MakeRepository, server: Server
    ) -> None:
        """By default no stage begins after one has failed."""
        stages = fan_out(2)
        stages["source"]["cmd"] = "false"
        root = make_repository(stages | {"other": stage("date > other.txt", out="other.txt")})
        done = reproduce(root, server, "--jobs", "1")
        assert done.returncode == 1
        assert "5 stages: failed: source; not run: leaf0, leaf1, join, other" in done.stderr
        assert not (root / "other.txt").exists()

    def test_two_flows_in_one_workspace_do_not_meet(
        self, make_repository: MakeRepository, server: Server
    ) -> None:
        """A second flow in the same workspace is refused in one line, and harms nothing."""
        root = make_repository(fan_out(1, "sleep 8"))
        first = start(root, server)
        lock = root / ".dvc/tmp" / WORKSPACE_LOCK
        while not lock.exists() or not lock.read_text():
            assert first.poll() is None
            time.sleep(0.1)
        second = reproduce(root, server)
        assert second.returncode == 1
        assert "another flow runs here" in second.stderr
        assert first.wait(120) == 0
        assert dvc_status(root) == CLEAN

    def test_a_run_cancelled_in_the_page_ends(
        self, make_repository: MakeRepository, prefect: PrefectServer
    ) -> None:
        """A run that was started in a terminal ends too when it is cancelled in the page."""
        root = make_repository(fan_out(2, "sleep 30"))
        flow = start(root, prefect.leads_there)
        wait_until((root / "source.txt").exists, 60, "the first stage")
        run_id = prefect.runs(state={"name": {"any_": ["Running"]}})[0]["id"]
        prefect.cancel(run_id)
        assert flow.wait(120) == 1
        assert gone_within(root, 1)
        assert prefect.state(run_id) == "Cancelled"

    @pytest.mark.parametrize("record", ["commit", "experiment"])
    def test_a_result_is_recorded_and_shared(
        self, make_repository: MakeRepository, server: Server, tmp_path: Path, record: str
    ) -> None:
        """--set, --push and --record leave a commit or an experiment at the remotes."""
        root = make_repository({"copy": stage("cp params.yaml copy.txt", out="copy.txt")})
        copy = stage("cp params.yaml copy.txt", out="copy.txt", params=["train.seed"])
        write_stages(root, {"copy": copy})
        (root / "params.yaml").write_text("train: {seed: 1}\n")
        for command in (
            ("git", "init", "-q", "--bare", str(tmp_path / "origin.git")),
            ("git", "remote", "add", "origin", str(tmp_path / "origin.git")),
            ("dvc", "remote", "add", "-d", "store", str(tmp_path / "store")),
            ("git", "add", "-A"),
            ("git", "commit", "-qm", "second"),
            ("git", "push", "-qu", "origin", "HEAD"),
        ):
            assert run(*command, cwd=root).returncode == 0
        done = reproduce(root, server, "--set", "train.seed=2", "--push", "--record", record)
        assert done.returncode == 0, done.stderr
        assert f"recorded: {record} " in done.stdout
        refs = run("git", "for-each-ref", cwd=tmp_path / "origin.git").stdout.splitlines()
        kind = "refs/heads/" if record == "commit" else "refs/exps/"
        recorded = next(ref.split()[0] for ref in refs if kind in ref)
        assert (
            run("git", "show", f"{recorded}:params.yaml", cwd=root).stdout == "train: {seed: 2}\n"
        )
        assert "train.seed: 2" in run("git", "show", f"{recorded}:dvc.lock", cwd=root).stdout
        assert list((tmp_path / "store" / "files").rglob("??/*"))

    @pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGKILL"])
    def test_a_killed_flow_leaves_nothing_and_the_next_one_goes_on(
        self, make_repository: MakeRepository, server: Server, how: str
    ) -> None:
        """However the flow ends, no process of a stage is left, and the next flow completes."""
        root = make_repository(fan_out(4, "sleep 2"))
        flow = start(root, server)
        time.sleep(random.uniform(3, 9))  # noqa: S311
        flow.send_signal(getattr(signal, how))
        flow.wait(120)
        assert gone_within(root, 10)
        done = reproduce(root, server)
        assert done.returncode == 0, done.stderr
        assert dvc_status(root) == CLEAN

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda root: None, "Stage 'nosuch' not found"),
            (lambda root: (root / "dvc.yaml").write_text("stages: ["), "structure is corrupted"),
            (
                lambda root: write_stages(root, {"a": stage("x", meta={"dvc-flow": {"gpu": 1}})}),
                "mean 'gpus'",
            ),
            (
                lambda root: write_stages(
                    root, {"a": stage("x", ("b",), "a"), "b": stage("x", ("a",), "b")}
                ),
                "both a dependency and an output",
            ),
        ],
    )
    def test_what_is_broken_is_one_clear_line(
        self,
        make_repository: MakeRepository,
        server: Server,
        damage: Callable[[Path], object],
        message: str,
    ) -> None:
        """An unknown target, a broken dvc.yaml or a wrong policy is one line and code 1."""
        root = make_repository(fan_out(1))
        damage(root)
        done = reproduce(root, server, *(["nosuch"] if "nosuch" in message else []))
        assert done.returncode == 1
        assert re.fullmatch(f"error: .*{message}.*\n", done.stderr), done.stderr


@pytest.mark.slow
def test_an_unreachable_server_is_one_clear_line(make_repository: MakeRepository) -> None:
    """A server that does not answer is named, with the remedy."""
    root = make_repository(fan_out(1))
    nowhere = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(root.parent)}
    done = reproduce(root, nowhere)
    assert done.returncode == 1
    assert "http://127.0.0.1:9/api/; start that server, or unset PREFECT_API_URL" in done.stderr
    assert "Traceback" not in done.stderr


def start(root: Path, server: Server) -> "subprocess.Popen[bytes]":
    """Start a flow in the background."""
    return subprocess.Popen(
        ["dvc-flow", "--jobs", "4"],
        cwd=root, env=environment(**server), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
