"""The flow's time over that of ``dvc repro``, on graphs whose stages do next to nothing.

Both run in copies of one repository, in turns; a server of Prefect's is running, but for one row.
"""

import os
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from benchmarks.processes import run

PORT = 4299
AT_ONCE = "yes 'a line of output' | head -c 100000000"
BY_LINE = """python3 -c "for n in range(4_000_000): print('a line of output', n)" """


class Case(NamedTuple):
    """A graph, and how it is run."""

    stages: dict[str, Any]
    jobs: int = 2
    again: bool = False  # measured when there is nothing left to do
    server: bool = True
    target: float = 1.0  # the ratio that it shall keep


def _many(count: int, command: str, **more: Any) -> dict[str, Any]:
    return {f"s{n}": {"cmd": command, **more} for n in range(count)}


CASES = {
    "200 independent `true`": Case(_many(200, "true")),
    "nothing to do, 200 stages": Case(
        {f"s{n}": {"cmd": f"echo {n} > o{n}", "outs": [f"o{n}"]} for n in range(200)},
        again=True, target=1.5,
    ),
    "a chain of 30 `cp`": Case(
        {
            f"s{n}": {"cmd": f"cp f{n} f{n + 1}", "deps": [f"f{n}"], "outs": [f"f{n + 1}"]}
            for n in range(30)
        },
        target=2.0,
    ),
    "20 × `sleep 3`, 8 jobs": Case(_many(20, "sleep 3"), jobs=8, target=0.2),
    "nothing to do, no server": Case(
        {"s": {"cmd": "echo > o", "outs": ["o"]}}, again=True, server=False, target=1.5
    ),
    "100 MB of output, by a loop": Case({"loud": {"cmd": BY_LINE}}, target=2.0),
    "100 MB of output, at once": Case({"loud": {"cmd": AT_ONCE}}, target=2.0),
}  # fmt: skip


def measure(rounds: int) -> dict[str, Any]:
    """Return for each graph the seconds of both, and the ratio of their medians."""
    with tempfile.TemporaryDirectory() as name, _server(Path(name) / "prefect") as environment:
        figures = {}
        for title, case in CASES.items():
            rows = [_once(Path(name), case, environment) for _ in range(rounds)]
            dvc, flow = (statistics.median(column) for column in zip(*rows, strict=True))
            figures[title] = {
                "dvc": round(dvc, 2), "flow": round(flow, 2), "ratio": round(flow / dvc, 2),
                "target": case.target,
            }  # fmt: skip
        return figures


def _once(folder: Path, case: Case, environment: dict[str, str]) -> tuple[float, float]:
    """Return the seconds of ``dvc repro`` and of the flow."""
    seconds = []
    for command in (["dvc", "repro"], ["dvc-flow", "--jobs", str(case.jobs)]):
        root = folder / "repository"
        _make(root, case.stages)
        if case.again:
            run(["dvc", "repro", "-q"], root)
        seconds.append(run(command, root, environment if case.server else None).seconds)
        shutil.rmtree(root)
    return seconds[0], seconds[1]


def _make(root: Path, stages: dict[str, Any]) -> None:
    root.mkdir()
    (root / "f0").write_text("0\n")
    with open(root / "dvc.yaml", "w", encoding="utf-8") as file:
        YAML().dump({"stages": stages}, file)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)  # noqa: S603 - fixed commands


@contextmanager
def _server(home: Path) -> Iterator[dict[str, str]]:
    """Run a server; yield the variables that lead to it."""
    environment = {"PREFECT_HOME": str(home)}
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(PORT)]
    with subprocess.Popen(  # noqa: S603
        command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        url = f"http://127.0.0.1:{PORT}/api"
        try:
            for _ in range(120):
                with suppress(OSError):
                    urllib.request.urlopen(f"{url}/health", timeout=2).close()  # noqa: S310
                    break
                time.sleep(0.5)
            yield environment | {"PREFECT_API_URL": url}
        finally:
            process.terminate()
