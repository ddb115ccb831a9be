"""Stages on the workers of a cluster: what they do, and what is left."""

import hashlib
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.clusters import (
    TIMES,
    Cluster,
    Scheduler,
    by_dvc,
    flow,
    make_worker,
    napping,
    start,
)
from tests.flows.conftest import (
    CLEAN,
    Stages,
    contents,
    difference,
    dvc_status,
    fan_out,
    run,
    stage,
)
from tests.flows.services import wait_until
from tests.flows.test_deployment import small
from tests.helpers import environment
from tests.helpers import make_repository as make_project

pytestmark = pytest.mark.slow

MakeRepository = Callable[[Stages], Path]


def branches(root: Path) -> str:
    """Return all that git knows of a repository: refs, index, stash."""
    index = (root / ".git/index").read_bytes()
    return run("git", "for-each-ref", cwd=root).stdout + hashlib.sha256(index).hexdigest()


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("_", range(TIMES))
def test_stages_run_at_the_same_time_on_different_machines(
    _: int, workers: int, make_shared: MakeRepository, cluster: Cluster, server: dict[str, str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Each waits until all have begun; what is left has the bytes that `dvc repro` leaves."""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    for _worker in range(workers):
        cluster.add()
    stages: Stages = {"first": stage("cat input.txt > first.txt", ("input.txt",), "first.txt")}
    for n in range(workers):
        nap = random.uniform(0, 1)  # noqa: S311 - so that they end in any order
        meet = (
            f"echo $HOME > {meeting}/{n}; "
            f"while [ $(ls {meeting} | wc -l) -lt {workers} ]; do sleep 0.1; done; "
            f"sleep {nap:.2f}; cat first.txt > met{n}.txt; echo {n} > kept{n}.txt"
        )
        outs = [f"met{n}.txt", {f"kept{n}.txt": {"cache": False}}]
        stages[f"meet{n}"] = stage(meet, ("first.txt",)) | {"outs": outs}
    names = tuple(f"{kind}{n}.txt" for n in range(workers) for kind in ("met", "kept"))
    stages["last"] = stage(f"cat {' '.join(names)} > last.txt", names, "last.txt")
    root = make_shared(stages)
    done = flow(root, server, cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    homes = {n: Path((meeting / str(n)).read_text().strip()).name for n in range(workers)}
    assert len(set(homes.values())) == workers
    for n, machine in homes.items():
        assert f"meet{n}: {machine}" in done.stdout
    # There, one stage after another finds the traces of all.
    assert difference(contents(root), by_dvc(root)) == ""
    assert flow(root, server, cluster).stdout.endswith("everything is up to date\n")


def test_what_is_not_committed_reaches_the_workers(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str]
) -> None:
    """Edited params and code, new and ignored files; git's branches, index and stash stay."""
    code = "cat script.sh new.txt ignored.txt params.yaml > out.txt"
    stages = {"a": stage(code, ("script.sh", "new.txt", "ignored.txt"), "out.txt", params=["rate"])}
    root = make_shared(stages)
    (root / "script.sh").write_text("old\n")
    (root / "params.yaml").write_text("rate: 1\n")
    (root / ".gitignore").write_text("ignored.txt\n")
    for command in (("git", "add", "-A"), ("git", "commit", "-qm", "code")):
        assert run(*command, cwd=root).returncode == 0
    (root / "params.yaml").write_text("rate: 2\n")
    (root / "script.sh").write_text("edited\n")
    (root / "new.txt").write_text("new\n")
    (root / "ignored.txt").write_text("ignored\n")
    run("git", "status", cwd=root)  # it may write the index
    before = branches(root)
    cluster.add()
    done = flow(root, server, cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "out.txt").read_text() == "edited\nnew\nignored\nrate: 2\n"
    assert branches(root) == before
    done = flow(root, server, cluster, "--set", "rate=3")
    assert (root / "out.txt").read_text().endswith("rate: 3\n"), done.stdout + done.stderr
    assert dvc_status(root) == CLEAN


def test_an_edit_changes_what_dvc_repro_would_change(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str]
) -> None:
    """Old versions of what workers make again mislead nobody; what comes out alike stops there."""
    stages = fan_out(2)
    stages["count"] = stage("wc -l < join.txt > count", ("join.txt",), "count")
    stages["end"] = stage("cat count > end", ("count",), "end")
    root = make_shared(stages)
    cluster.add()
    cluster.add()
    assert flow(root, server, cluster).returncode == 0
    copy = Path(shutil.copytree(root, root.with_name("copy"), symlinks=True))
    for text in ("other\n", "input\n", "two\nlines\n"):
        (root / "input.txt").write_text(text)
        done = flow(root, server, cluster)
        assert done.returncode == 0, done.stdout + done.stderr
        (copy / "input.txt").write_text(text)
        assert run("dvc", "repro", cwd=copy).returncode == 0
        assert difference(contents(root), contents(copy)) == ""
        assert re.search(r"cached .* end", done.stdout) or text.count("\n") == 2
    # A run that was killed may have recorded what it had not fetched yet.
    for each in (root, copy):
        (each / "join.txt").unlink()
        (each / "join.txt").write_text("an older version\n")
    done = flow(root, server, cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run("dvc", "repro", cwd=copy).returncode == 0
    assert difference(contents(root), contents(copy)) == ""


def test_a_stage_goes_on_from_what_it_made_before(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str]
) -> None:
    """An output that persists reaches the worker, though it was never pushed."""
    adding = {"cmd": "cat input.txt >> all.txt", "deps": ["input.txt"],
              "outs": [{"all.txt": {"persist": True}}]}  # fmt: skip
    root = make_shared({"add": adding})
    assert run("dvc", "repro", cwd=root).returncode == 0
    cluster.add()
    for text, expected in (("two\n", "input\ntwo\n"), ("three\n", "input\ntwo\nthree\n")):
        (root / "input.txt").write_text(text)
        done = flow(root, server, cluster)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (root / "all.txt").read_text() == expected


def test_what_a_colleague_recorded_replaces_older_versions(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str], tmp_path: Path
) -> None:
    """After git pull, the run brings here the versions that dvc.lock names, and runs nothing."""
    root = make_shared(fan_out(2))
    colleague = tmp_path / "colleague"
    commands = (
        ("dvc", "repro", "-q"), ("git", "add", "-A"), ("git", "commit", "-qm", "result"),
        ("dvc", "push", "-q"),
    )  # fmt: skip
    for command in commands:
        assert run(*command, cwd=root).returncode == 0
    assert run("git", "clone", "-q", str(root), str(colleague), cwd=root).returncode == 0
    (colleague / "input.txt").write_text("other\n")
    for command in commands:
        assert run(*command, cwd=colleague).returncode == 0
    assert run("git", "pull", "-q", str(colleague), cwd=root).returncode == 0
    cluster.add()
    done = flow(root, server, cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " completed" not in done.stdout
    assert (root / "join.txt").read_text() == "other\n" * 2
    assert dvc_status(root) == CLEAN


def test_a_result_is_recorded_with_where_it_was_made(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str]
) -> None:
    """--record commit works as from a local run; the commit names the machines."""
    root = make_shared(fan_out(2))
    cluster.add("--jobs", "2")
    done = flow(root, server, cluster, "--record", "commit")
    assert done.returncode == 0, done.stdout + done.stderr
    message = run("git", "log", "-1", "--format=%B", cwd=root).stdout
    assert message.startswith("Reproduce 4 stages: 4 completed")
    assert "leaf0: machine0" in message
    assert run("git", "status", "--porcelain", cwd=root).stdout == ""
    assert dvc_status(root) == CLEAN


def test_results_stay_in_the_remote_if_they_may_be_missing(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str]
) -> None:
    """With --allow-missing only what is here already is brought up to date."""
    root = make_shared(fan_out(2))
    cluster.add()
    done = flow(root, server, cluster, "--allow-missing")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (root / "join.txt").exists()
    (root / "input.txt").write_text("other\n")
    (root / "leaf0.txt").write_text("input\n")
    done = flow(root, server, cluster, "--allow-missing")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "leaf0.txt").read_text() == "other\n"
    assert not (root / "leaf1.txt").exists()
    assert run("dvc", "pull", cwd=root).returncode == 0
    assert (root / "join.txt").read_text() == "other\n" * 2
    assert dvc_status(root) == CLEAN


def test_a_failing_stage_is_quoted(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str]
) -> None:
    """Its last lines are shown, what does not depend on it runs, and the next run goes on."""
    stages = {"bad": stage("echo why >&2; false", out="bad"), "good": stage("echo > g", out="g")}
    root = make_shared(stages)
    cluster.add()
    done = flow(root, server, cluster, "--keep-going")
    assert done.returncode == 1
    assert "why" in done.stdout
    assert "exited with 1" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert (root / "g").exists()
    assert "2 stages: 1 cached; failed: bad" in flow(root, server, cluster, "--keep-going").stdout


def test_the_projects_own_graph_gives_the_same_bytes(
    cluster: Cluster, server: dict[str, str], tmp_path: Path
) -> None:
    """Models, curves and predictions of the digits, made by two machines, are those of one."""
    root = make_project(tmp_path / "project", small)
    for command in (
        ("dvc", "remote", "add", "-d", "store", str(tmp_path / "store")),
        ("git", "add", "-A"),
        ("git", "commit", "-qm", "first"),
    ):
        assert run(*command, cwd=root).returncode == 0
    cluster.add()
    cluster.add()
    done = flow(root, server, cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert dvc_status(root) == CLEAN
    fresh = tmp_path / "fresh"
    assert run("git", "clone", "-q", str(root), str(fresh), cwd=root).returncode == 0
    assert run("dvc", "repro", "train", "evaluate", cwd=fresh).returncode == 0
    determined = [
        path.relative_to(fresh)
        for folder in ("models", "predictions", "results")
        for path in (fresh / folder).rglob("*")
        if path.is_file() and path.name != ".gitignore"
    ]
    assert len(determined) >= 10
    for path in determined:
        assert (root / path).read_bytes() == (fresh / path).read_bytes(), path


def test_a_worker_that_joins_late_is_used_at_once(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str], tmp_path: Path
) -> None:
    """It takes the stage that waits, within 5 seconds."""
    stages, begun = napping(tmp_path)
    root = make_shared(stages)
    cluster.add()
    process = start(root, server, cluster)
    wait_until(lambda: len(list(begun.iterdir())) == 1, 60, "one stage")
    cluster.add()
    wait_until(lambda: len(list(begun.iterdir())) == 2, 5, "the other stage")
    assert process.wait(120) == 0
    process.communicate()


def test_gpus_are_never_shared(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str], tmp_path: Path
) -> None:
    """Two machines' workers with one GPU each, and a local flow that may use both."""
    taken = tmp_path / "taken"
    taken.mkdir()
    use = (
        f"mkdir {taken}/$CUDA_VISIBLE_DEVICES && sleep 1 && rmdir {taken}/$CUDA_VISIBLE_DEVICES"
        " && echo $CUDA_VISIBLE_DEVICES > "
    )
    policy = {"meta": {"dvc-flow": {"gpus": 1}}}
    stages = {f"gpu{n}": stage(f"{use} gpu{n}", out=f"gpu{n}") | policy for n in range(4)}
    root = make_shared(stages)
    local = Path(shutil.copytree(root, root.with_name("local"), symlinks=True))
    for gpu in ("901", "902"):
        cluster.add("--jobs", "2", CUDA_VISIBLE_DEVICES=gpu)
    both = {"CUDA_VISIBLE_DEVICES": "901,902"}
    beside = subprocess.Popen(
        ["dvc-flow", "--jobs", "4"], cwd=local, env=environment(**server, **both),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    done = flow(root, server, cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert beside.wait(120) == 0
    used = {(root / name).read_text().strip() for name in stages}
    assert used == {"901", "902"}
    assert "gpu0: machine" in done.stdout
    assert "GPU 90" in done.stdout


def test_a_stage_takes_what_there_is(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str]
) -> None:
    """It waits for no GPU and no memory that nobody has."""
    policy = {"meta": {"dvc-flow": {"gpus": 8, "memory_gb": 100_000}}}
    root = make_shared({"a": stage("echo a > a", out="a") | policy})
    cluster.add(CUDA_VISIBLE_DEVICES="")
    done = flow(root, server, cluster)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_worker_with_other_packages_is_not_used(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str], tmp_path: Path
) -> None:
    """It is refused in one line; the others are used."""
    package = tmp_path / "site/other-9.9.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 9.9\n")
    root = make_shared(fan_out(1))
    cluster.add(PYTHONPATH=str(package.parent))
    cluster.add()
    done = flow(root, server, cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    why = "machine0: not used, since its packages differ: other 9.9 there, missing here"
    assert why in done.stdout
    assert "leaf0: machine1" in done.stdout


def test_nobody_there_is_one_clear_line(
    make_shared: MakeRepository, server: dict[str, str]
) -> None:
    """No scheduler, one beyond this machine without TLS, no DVC remote: nothing runs."""
    root = make_shared(fan_out(1))
    for address, why in (
        ("tcp://127.0.0.1:9", "no scheduler answers there"),
        ("tcp://192.0.2.1:8786", "beyond this machine only with TLS"),
    ):
        done = run("dvc-flow", "--cluster", address, cwd=root, **server)
        assert done.returncode == 1
        assert why in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert run("dvc", "remote", "remove", "store", cwd=root).returncode == 0
    done = run("dvc-flow", "--cluster", "tcp://127.0.0.1:9", cwd=root, **server)
    assert "DVC has no remote" in done.stderr


def make_certificates(folder: Path, *names: str) -> None:
    """Make folders for TLS as docs/cluster.md says: one authority, and a certificate in each."""
    for name in names:
        (folder / name).mkdir(parents=True)
    commands = [
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 825 "
        "-subj /CN=authority -keyout ca.key -out ca.pem"
    ]
    for name in names:
        commands += [
            "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=dvc-flow "
            f"-keyout {name}/key.pem -out {name}/request.pem",
            f"openssl x509 -req -in {name}/request.pem -CA ca.pem -CAkey ca.key -days 825 "
            f"-out {name}/cert.pem",
        ]
    for command in commands:
        done = run(*command.split(), cwd=folder)
        assert done.returncode == 0, done.stderr
    for name in names:
        shutil.copy(folder / "ca.pem", folder / name)


def test_with_tls_strangers_are_refused(
    make_shared: MakeRepository, tmp_path: Path, server: dict[str, str]
) -> None:
    """A run and a worker with certificates meet; one without, or with another authority's, cannot."""
    make_certificates(tmp_path / "ours", "tls")
    make_certificates(tmp_path / "others", "tls")
    tls, others = str(tmp_path / "ours/tls"), str(tmp_path / "others/tls")
    root = make_shared(fan_out(1))
    folder = tmp_path / "cluster"
    folder.mkdir()
    with Scheduler(folder, "--tls", tls) as scheduler:
        address = scheduler.address.replace("tcp:", "tls:")
        with make_worker(folder, address, "machine0", "--tls", tls):
            for given in ((), ("--tls", others)):
                for scheme in ("tcp", "tls"):
                    to = address.replace("tls:", f"{scheme}:")
                    done = run("dvc-flow", "--cluster", to, *given, cwd=root, **server)
                    assert done.returncode == 1
                    assert "error: " in done.stderr.splitlines()[-1]
                    assert "Traceback" not in done.stderr
            done = run("dvc-flow", "--cluster", address, "--tls", tls, cwd=root, **server)
            assert done.returncode == 0, done.stdout + done.stderr
