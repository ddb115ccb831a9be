"""Cases in which a parallel run once differed from `dvc repro`, each in a real repository."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dvc_flow import repository
from dvc_flow.engine import Outcome
from tests.flows.conftest import (
    CLEAN,
    Stages,
    contents,
    difference,
    dvc_status,
    engine,
    fan_out,
    run,
    stage,
    write_stages,
)
from tests.flows.services import wait_until
from tests.helpers import environment

pytestmark = pytest.mark.slow

MakeRepository = Callable[[Stages], Path]
Server = dict[str, str]
ONE: Stages = {"a": stage("cp in a", ("in",), "a")}


def flow(
    root: Path, server: Server, *arguments: str, **more: str
) -> "subprocess.CompletedProcess[str]":
    return run("dvc-flow", *arguments, cwd=root, **server, **more)


def succeed(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fail(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the one line of a refusal."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def copy_of(root: Path) -> Path:
    return Path(shutil.copytree(root, root.with_name("copy"), symlinks=True))


def test_the_root_is_dvcs_own(make_repository: MakeRepository, server: Server) -> None:
    """Started in a subfolder, the flow works on the repository around it, and makes none."""
    root = make_repository({})
    (root / "sub").mkdir()
    (root / "sub/in").write_text("in\n")
    write_stages(root / "sub", ONE)
    succeed(flow(root / "sub", server))
    assert (root / "sub/a").read_text() == "in\n"
    assert not (root / "sub/.dvc").exists()
    assert "sub/a" in succeed(run("dvc", "list", "--dvc-only", "-R", ".", cwd=root))


def test_a_folder_that_is_no_repository_stays_one(tmp_path: Path, server: Server) -> None:
    """A plain git folder, or any other one, is refused, and left as it was."""
    (tmp_path / "in").write_text("in\n")
    write_stages(tmp_path, ONE)
    run("git", "init", "-q", cwd=tmp_path)
    assert "not inside of a DVC repository" in fail(flow(tmp_path, server))
    assert not (tmp_path / ".dvc").exists()


@pytest.mark.parametrize("git", ["none", "not on PATH", "no HEAD", "refuses"])
def test_git_is_not_needed(
    make_repository: MakeRepository, server: Server, tmp_path: Path, git: str
) -> None:
    """Without git, or with one that does not answer, a run succeeds as in DVC."""
    stages = ONE | {"m": stage("echo '{\"n\": 1}' > m.json", metrics=["m.json"])}
    root = make_repository(stages)
    (root / "in").write_text("in\n")
    more = {}
    if git == "none":
        shutil.rmtree(root / ".git")
        succeed(run("dvc", "config", "core.no_scm", "true", cwd=root))
    elif git == "not on PATH":
        tools = tmp_path / "tools"
        tools.mkdir()
        for name in ("sh", "cp", "cat", "echo", "dvc-flow", "dvc"):
            (tools / name).symlink_to(str(shutil.which(name, path=environment()["PATH"])))
        more["PATH"] = str(tools)
    elif git == "no HEAD":
        (root / ".git/HEAD").write_text("ref: refs/heads/gone\n")
    else:
        more["GIT_TEST_ASSUME_DIFFERENT_OWNER"] = "1"
    done = flow(root, server, **more)
    assert "2 stages: 2 completed" in succeed(done)
    assert "Traceback" not in done.stderr
    assert dvc_status(root) == CLEAN


def test_planning_does_not_touch_the_source_of_an_import(
    make_repository: MakeRepository, server: Server, tmp_path: Path
) -> None:
    """An import whose source has gone is as good as any other file."""
    source = tmp_path / "source"
    shutil.copytree(make_repository({}), source)
    (source / "d").write_text("data\n")
    for command in (("dvc", "add", "-q", "d"), ("git", "add", "-A"), ("git", "commit", "-qm", "d")):
        succeed(run(*command, cwd=source))
    root = tmp_path / "repository"
    succeed(run("dvc", "import", "-q", str(source), "d", cwd=root))
    shutil.move(source, tmp_path / "gone")
    write_stages(root, {"a": stage("cp d a", ("d",), "a")})
    succeed(flow(root, server, "-P"))
    assert (root / "a").read_text() == "data\n"


def test_the_repositorys_own_modules_are_not_ours(
    make_repository: MakeRepository, server: Server
) -> None:
    """Folders and files that are named like modules of Python, DVC or ours change nothing."""
    root = make_repository(ONE)
    (root / "in").write_text("in\n")
    for name in ("queue", "copy", "dvc", "dvc_flow", "prefect", "pipeline"):
        (root / f"{name}.py").write_text("raise SystemExit('wrong module')\n")
    succeed(flow(root, server))
    bare = {name: value for name, value in server.items() if name != "PREFECT_API_URL"}
    succeed(flow(root, bare, "--force"))  # its temporary server, too


def test_the_lock_keeps_its_order(make_repository: MakeRepository, server: Server) -> None:
    """Entries keep their places in each dvc.lock; new ones come as `dvc repro` appends them."""
    root = make_repository({"a": stage("echo a > a", out="a"), "b": stage("echo b > b", out="b")})
    (root / "s").mkdir()
    slow_first = {
        "slow": stage("sleep 1; echo s > slow", out="slow"),
        "quick": stage("echo q > quick", out="quick"),
    }
    write_stages(root / "s", slow_first)
    copy = copy_of(root)
    for target in ("b", "a"):
        succeed(run("dvc", "repro", target, cwd=copy))
        succeed(flow(root, server, target))
    succeed(run("dvc", "repro", "-P", cwd=copy))
    succeed(flow(root, server, "-P", "--jobs", "4"))
    assert contents(root) == contents(copy)
    (root / "a").unlink()
    before = (root / "dvc.lock").read_bytes()
    succeed(flow(root, server, "-P"))
    assert (root / "dvc.lock").read_bytes() == before


def test_one_job_takes_the_stages_in_the_order_of_dvc_repro(
    make_repository: MakeRepository, server: Server
) -> None:
    """A stage behind an unchanged one is not overtaken; found by a random graph."""
    root = make_repository(
        {
            "source": stage("cat input.txt > source", ("input.txt",), "source"),
            "fails": stage("false", ("source",), "a"),
            "other": stage("echo b > b", out="b"),
        }
    )
    copy = copy_of(root)
    for turn in range(2):
        assert run("dvc", "repro", cwd=copy).returncode != 0
        assert flow(root, server, "--jobs", "1").returncode == 1
        assert difference(contents(root), contents(copy)) == "", turn


def test_a_long_command_is_recorded_as_dvc_does(
    make_repository: MakeRepository, server: Server
) -> None:
    """DVC folds it at 80 characters, and of several blanks there leaves one by reading it again."""
    words = " ".join(f"word{n:02}" for n in range(9))
    stages = {
        f"s{n}": stage(f"echo {words}{'x' * n}  two  blanks{'  ' * n}and more > o{n}", out=f"o{n}")
        for n in range(8)
    }
    root = make_repository(stages)
    copy = copy_of(root)
    for change in range(2):
        succeed(run("dvc", "repro", cwd=copy))
        succeed(flow(root, server, "--jobs", "4"))
        assert contents(root) == contents(copy), change
        for each in (root, copy):
            (each / "o3").unlink()


def test_everything_that_was_written_is_committed(
    make_repository: MakeRepository, server: Server
) -> None:
    """--record commit takes the lock files of all dvc.yaml, and other params files."""
    root = make_repository(fan_out(1))
    (root / "sub").mkdir()
    (root / "sub/in").write_text("in\n")
    (root / "sub/p.yaml").write_text("x: 1\n")
    write_stages(root / "sub", {"a": stage("cp in a", ("in",), "a", params=[{"p.yaml": ["x"]}])})
    for command in (("git", "add", "-A"), ("git", "commit", "-qm", "sub")):
        succeed(run(*command, cwd=root))
    succeed(flow(root, server, "-P", "--record", "commit", "--set", "sub/p.yaml:x=2"))
    assert run("git", "status", "--porcelain", cwd=root).stdout == ""
    assert run("git", "show", "HEAD:sub/p.yaml", cwd=root).stdout == "x: 2\n"


def test_waiting_for_our_own_stage_is_no_fault(
    make_repository: MakeRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage waits for another one that commits for long, longer than for other processes."""
    root = make_repository(fan_out(1))
    monkeypatch.setattr(repository, "LOCK_WAIT_S", 0.1)
    with engine(root) as (reproducer, nodes):
        begun = threading.Event()

        def commit() -> None:
            with reproducer.repository.held():
                begun.set()
                time.sleep(1.5)

        thread = threading.Thread(target=commit)
        thread.start()
        begun.wait()
        assert reproducer.run(nodes["source"]) is Outcome.RAN
        thread.join()


@pytest.mark.parametrize("how", ["lines", "one line"])
def test_a_hundred_megabytes_of_output_are_bearable(
    make_repository: MakeRepository, server: Server, how: str
) -> None:
    """They take seconds, and memory does not follow them."""
    text = (
        "yes 'a line of output' | head -c 100000000"
        if how == "lines"
        else "head -c 100000000 /dev/zero | tr '\\0' x"
    )
    root = make_repository({"loud": stage(f"{text}; echo; echo done > out", out="out")})
    begin = time.monotonic()
    code = (
        "import sys, dvc_flow.cli as c; status = c.main(sys.argv[1:]);"
        "print(open('/proc/self/status').read()); sys.exit(status)"
    )
    done = run("python", "-c", code, cwd=root, **server)
    assert time.monotonic() - begin < 40
    # The kernel's own peak: that of getrusage begins with the parent's.
    assert int(succeed(done).split("VmHWM:")[1].split()[0]) < 400_000  # KiB


def test_ctrl_c_lets_a_stage_clean_up(make_repository: MakeRepository, server: Server) -> None:
    """SIGINT reaches the stage, whose clean-up takes its time; the flow ends as interrupted."""
    root = make_repository(
        {
            "a": stage(
                "trap 'sleep 1; echo clean > cleaned; exit 1' INT; touch on; sleep 30 & wait",
                out="a",
            )
        }
    )
    process = start(root, server)
    wait_until((root / "on").exists, 60, "the stage")
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert (root / "cleaned").exists()


def start(root: Path, server: Server, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        ["dvc-flow", *arguments], cwd=root, env=environment(**server),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("background", [True, False])
def test_what_a_stage_starts_may_outlive_it_by_policy(
    make_repository: MakeRepository, server: Server, background: bool
) -> None:
    """A server that a stage starts is ended with it, unless its policy says otherwise."""
    serve = stage(
        "sleep 300 > log 2>&1 & echo $! > pid",
        out="pid",
        meta={"dvc-flow": {"background": background}},
    )
    root = make_repository({"serve": serve})
    succeed(flow(root, server))
    pid = int((root / "pid").read_text())
    if background:
        os.kill(pid, signal.SIGKILL)
    else:
        wait_until(lambda: not alive(pid), 5, "its end")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_stage_reads_our_input_with_one_job(
    make_repository: MakeRepository, server: Server
) -> None:
    """With --jobs 1 it is the stage's; with more, a stage reads nothing."""
    root = make_repository({"a": stage("cat > a", out="a")})
    for jobs, expected in (("1", "hello\n"), ("2", "")):
        done = subprocess.run(
            ["dvc-flow", "--jobs", jobs, "--force"], cwd=root, env=environment(**server),
            input="hello\n", text=True, capture_output=True, check=False, timeout=120,
        )  # fmt: skip
        succeed(done)
        assert (root / "a").read_text() == expected


def test_an_output_may_name_its_remote(
    make_repository: MakeRepository, server: Server, tmp_path: Path
) -> None:
    """--pull and --push work with remotes by output, and no default one."""
    root = make_repository({"a": {"cmd": "echo a > a", "outs": [{"a": {"remote": "other"}}]}})
    succeed(run("dvc", "remote", "add", "other", str(tmp_path / "other"), cwd=root))
    succeed(flow(root, server, "--push"))
    (root / "a").unlink()
    shutil.rmtree(root / ".dvc/cache")
    assert "1 restored" in succeed(flow(root, server, "--pull"))
    assert (root / "a").read_text() == "a\n"


def test_a_stage_that_never_ran_runs(
    make_repository: MakeRepository, server: Server, tmp_path: Path
) -> None:
    """With --pull too; and a dependency that exists nowhere is an error, as in DVC."""
    root = make_repository({"a": {"cmd": "echo hi > a", "outs": ["a"]}})
    succeed(run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"), cwd=root))
    succeed(flow(root, server, "--pull"))
    assert (root / "a").read_text() == "hi\n"
    write_stages(root, {"a": stage("echo hi > a", ("mistyped",), "a")})
    done = flow(root, server, "--pull")
    assert done.returncode == 1
    assert "mistyped" in done.stdout + done.stderr


@pytest.mark.parametrize("what", ["Latin-1", "folder"])
def test_a_report_that_cannot_be_shown_fails_nothing(
    make_repository: MakeRepository, server: Server, what: str
) -> None:
    """An uncached Markdown output in another encoding, or a folder of that name."""
    write = "printf 'caf\\351\\n' > r.md" if what == "Latin-1" else "mkdir r.md; echo > r.md/x"
    root = make_repository({"a": {"cmd": write, "outs": [{"r.md": {"cache": False}}]}})
    succeed(flow(root, server))


def test_awkward_names_and_values(make_repository: MakeRepository, server: Server) -> None:
    """A stage called `-x`, params that hold a date, and a target in another folder."""
    root = make_repository(
        {
            "-x": stage("echo x > x", out="x"),
            "d": stage("echo d > d", out="d", params=[{"p.yaml": ["day"]}]),
        }
    )
    (root / "p.yaml").write_text("day: 2026-11-27\n")
    succeed(flow(root, server, "--", "-x"))
    (root / "sub").mkdir()
    copy = copy_of(root)
    theirs = run("dvc", "repro", "../dvc.yaml", cwd=copy / "sub")
    ours = flow(root / "sub", server, "../dvc.yaml")
    assert (ours.returncode == 0) == (theirs.returncode == 0), ours.stderr + theirs.stderr
    assert "Traceback" not in ours.stdout + ours.stderr
    assert contents(root) == contents(copy)
    (root / "params.yaml").write_text("day: 2026-11-27\n")  # which DVC refuses in that file
    assert "Unsupported value of type 'date' in 'params.yaml:day'" in fail(flow(root, server))


@pytest.mark.parametrize("name", ["dvc.lock", "dvc.yaml"])
def test_a_merge_conflict_is_named(make_repository: MakeRepository, name: str) -> None:
    """A file with a conflict is told with its line and a remedy, not as corrupted."""
    root = make_repository(ONE)
    (root / "in").write_text("in\n")
    succeed(run("dvc", "repro", "-q", cwd=root))
    text = (root / name).read_text().splitlines(keepends=True)
    conflict = ["<<<<<<< HEAD\n", *text[1:3], "=======\n", *text[1:3], ">>>>>>> other\n"]
    (root / name).write_text("".join([text[0], *conflict, *text[3:]]))
    error = fail(flow(root, {}))
    assert f"{name}: holds a merge conflict, in line 2" in error
    assert f"git checkout --theirs {name}" in error


def test_any_params_can_be_set(make_repository: MakeRepository, server: Server) -> None:
    """--set works in a project without a check of its own."""
    root = make_repository({"a": stage("cp params.yaml a", out="a", params=["lr"])})
    (root / "params.yaml").write_text("lr: 0.5\n")
    succeed(flow(root, server, "--set", "lr=0.1"))
    assert (root / "a").read_text() == "lr: 0.1\n"


def test_the_stages_environment_is_the_callers(
    make_repository: MakeRepository, server: Server
) -> None:
    """What we or Prefect set does not reach a stage; CUDA_VISIBLE_DEVICES stays as it was."""
    root = make_repository({"e": stage("env | sort > e", out="e")})
    copy = copy_of(root)
    more = {"CUDA_VISIBLE_DEVICES": "0,1", "HTTP_PROXY": "http://127.0.0.1:9"}
    succeed(run("dvc", "repro", cwd=copy, **server, **more))
    succeed(flow(root, server, **more))
    ours, theirs = ((each / "e").read_text().replace(str(each), "") for each in (root, copy))
    shells = ("_=", "SHLVL=")
    assert [line for line in ours.splitlines() if not line.startswith(shells)] == [
        line for line in theirs.splitlines() if not line.startswith(shells)
    ]


def test_autostage_leaves_a_clean_index(make_repository: MakeRepository, server: Server) -> None:
    """With core.autostage, everything that was written is staged, in its final order."""
    root = make_repository(fan_out(4, "sleep 0.$RANDOM"))
    succeed(run("dvc", "config", "core.autostage", "true", cwd=root))
    run("git", "commit", "-qam", "autostage", cwd=root)
    succeed(flow(root, server, "--jobs", "4"))
    status = run("git", "status", "--porcelain", cwd=root).stdout.splitlines()
    assert sorted(status) == ["A  .gitignore", "A  dvc.lock"]


OPTIONS = [
    ("-f",), ("-s", "leaf0"), ("-p", "leaf0"), ("-P",), ("-R", "."), ("-k",), ("-q",), ("-v",),
    ("--downstream", "leaf0"), ("--glob", "leaf*"), ("--no-run-cache",), ("--no-commit",),
    ("--ignore-errors",), ("--allow-missing",), ("--force-downstream",),
]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS, ids=" ".join)
def test_options_mean_what_they_mean_in_dvc(
    make_repository: MakeRepository, server: Server, option: tuple[str, ...]
) -> None:
    """After a first run and a change, each option leaves the files that `dvc repro` leaves."""
    stages = fan_out(2)
    stages["leaf1"]["cmd"] = "grep -q input source.txt && cat source.txt > leaf1.txt"
    root = make_repository(stages)
    succeed(run("dvc", "repro", "-q", cwd=root))
    (root / "input.txt").write_text(
        "other\n" if "-k" in option or "errors" in option[0] else "input two\n"
    )
    (root / "leaf0.txt").unlink()
    copy = copy_of(root)
    theirs = run("dvc", "repro", *option, cwd=copy)
    ours = flow(root, server, *option)
    assert (ours.returncode == 0) == (theirs.returncode == 0), ours.stdout + ours.stderr
    assert contents(root) == contents(copy)


def test_an_option_that_makes_no_sense_says_why(make_repository: MakeRepository) -> None:
    """--interactive is refused with its reason."""
    done = flow(make_repository(ONE), {}, "--interactive")
    assert done.returncode == 2
    assert "cannot ask one after the other; use dvc repro" in done.stderr


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_failure_stops_what_has_not_begun(
    make_repository: MakeRepository, server: Server, keep_going: bool
) -> None:
    """What is running ends by itself; nothing further starts, unless with --keep-going."""
    root = make_repository(
        {
            "bad": stage("sleep 0.5; false", out="x"),
            "running": stage("sleep 2; echo > running", out="running"),
            "later": stage("echo > later", out="later"),
        }
    )
    done = flow(root, server, *["-k"] * keep_going)
    assert done.returncode == 1
    assert (root / "running").exists()
    assert (root / "later").exists() == keep_going
