"""Random graphs, run by `dvc repro` and by the flow: everything that they leave is the same.

GRAPHS says how many are tried (`make soak` sets 300).
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tests.flows.comparing import compare_runs

pytestmark = pytest.mark.slow

GRAPHS = int(os.environ.get("GRAPHS", "12"))
KINDS = ("file", "folder", "metric")
FOLDERS = ("", "", "sub", "sub/deep")


@dataclass(frozen=True)
class Stage:
    """One stage of a random graph; `deps` are positions of stages before it."""

    deps: tuple[int, ...]
    kind: str
    folder: str
    cached: bool
    persist: bool
    frozen: bool
    always_changed: bool
    fails: bool
    param: bool
    source: bool
    many: str


@dataclass(frozen=True)
class Graph:
    stages: tuple[Stage, ...]

    def write(self, root: Path, salt: dict[int, str]) -> None:
        """Write the dvc.yaml files; `salt` changes a stage's command."""
        files: dict[str, dict[str, Any]] = {}
        for n, stage in enumerate(self.stages):
            files.setdefault(stage.folder, {})[f"s{n}"] = self._entry(n, salt.get(n, ""))
        for folder, stages in files.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            with open(root / folder / "dvc.yaml", "w") as file:
                YAML().dump({"stages": stages}, file)

    def _entry(self, n: int, salt: str) -> dict[str, Any]:
        stage = self.stages[n]
        up = "../" * len(Path(stage.folder).parts)
        deps = [up + self._out(d) for d in stage.deps] + [
            "own.txt" if stage.folder else "in.txt"
        ] * stage.source
        name = f"o{n}" + ("-${item}" if stage.many else "")
        path = {"file": name, "folder": f"{name}.d", "metric": f"{name}.json"}[stage.kind]
        read = " ".join(
            f"$(find {dep} -type f | sort | xargs cat | cksum | cut -c1-9)" for dep in deps
        )
        # No two outputs are equal: one would put the other's back into an emptied cache.
        which = "${item}" if stage.many else ""
        text = f"{n} {which} {read} {'${value}' if stage.param else ''} {salt}"
        into = ">>" if stage.persist else ">"
        command = {
            "file": f"echo {text} {into} {path}",
            "folder": f"mkdir -p {path}/b && echo {text} {into} {path}/a && echo {n} > {path}/b/c",
            "metric": f'echo \'{{"n":\' {n}.5e-05 \', "of": "{which}"}}\' {into} {path}',
        }[stage.kind]
        if stage.fails:
            command += " && false"
        how = {"cache": stage.cached, "persist": stage.persist}
        out = {path: {key: value for key, value in how.items() if value != (key == "cache")}}
        entry: dict[str, Any] = {
            "cmd": command,
            "deps": deps,
            "frozen": stage.frozen,
            "always_changed": stage.always_changed,
        }
        entry["metrics" if stage.kind == "metric" else "outs"] = [out if out[path] else path]
        if stage.param:
            entry["params"] = [{f"{up}params.yaml": ["value"]}] if up else ["value"]
        entry = {key: value for key, value in entry.items() if value}
        if stage.many == "foreach":
            return {"foreach": ["x", "y"], "do": entry}
        if stage.many == "matrix":
            entry = YAML(typ="safe").load(_dumped(entry).replace("${item}", "${item.m}"))
            return {"matrix": {"m": ["x", "y"]}, **entry}
        return entry

    def _out(self, n: int) -> str:
        stage = self.stages[n]
        name = f"o{n}" + ("-x" if stage.many else "")
        path = {"file": name, "folder": f"{name}.d", "metric": f"{name}.json"}[stage.kind]
        return str(Path(stage.folder) / path)


def _dumped(entry: Any) -> str:
    import json

    return json.dumps(entry)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    stages = []
    rarely = st.integers(0, 9).map(lambda n: n == 0)
    for n in range(draw(st.integers(1, 12))):
        deps = draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else set()
        stages.append(
            Stage(
                deps=tuple(sorted(deps)),
                kind=draw(st.sampled_from(KINDS)),
                folder=draw(st.sampled_from(FOLDERS)),
                cached=not draw(rarely),
                persist=draw(rarely),
                frozen=draw(rarely),
                always_changed=draw(rarely),
                fails=draw(st.integers(0, 29).map(lambda n: n == 0)),
                param=draw(st.booleans()),
                source=draw(st.booleans()),
                many=draw(st.sampled_from(("", "", "", "foreach", "matrix"))),
            )
        )
    return Graph(tuple(stages))


CHANGES = ("nothing", "source", "param", "command", "output", "lock", "cache")


@given(
    graph=graphs(),
    changes=st.lists(
        st.tuples(st.sampled_from(CHANGES), st.integers(0, 11)), min_size=1, max_size=2
    ),
    jobs=st.sampled_from((1, 2, 4)),
    all_pipelines=st.booleans(),
)
@settings(
    max_examples=GRAPHS, deadline=None, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck), database=None, derandomize=GRAPHS < 100,
)  # fmt: skip
def check(
    empty: Path, graph: Graph, changes: list[tuple[str, int]], jobs: int, all_pipelines: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder) / "theirs", Path(folder) / "ours"
        for root in (theirs, ours):
            shutil.copytree(empty, root, symlinks=True)
            prepare(root, graph)
        compare_runs(theirs, ours, jobs, all_pipelines)
        salt: dict[int, str] = {}
        for what, n in changes:
            for root in (theirs, ours):
                change(root, graph, what, n % len(graph.stages), salt)
            note(f"after {what} {n % len(graph.stages)}")
            compare_runs(theirs, ours, jobs, all_pipelines)


def prepare(root: Path, graph: Graph) -> None:
    (root / "in.txt").write_text("in\n")
    (root / "params.yaml").write_text("value: 1.0e-06\n")
    for folder in set(FOLDERS) - {""}:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "own.txt").write_text("own\n")
    graph.write(root, {})


def change(root: Path, graph: Graph, what: str, n: int, salt: dict[int, str]) -> None:
    out = root / graph._out(n)
    if what == "source":
        (root / "in.txt").write_text("other\n")
        (root / "sub/own.txt").write_text("other\n")
    elif what == "param":
        (root / "params.yaml").write_text("value: [1, 2]\n")
    elif what == "command":
        salt[n] = "salt"
        graph.write(root, salt)
    elif what == "output":
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    elif what == "lock":
        (root / "dvc.lock").unlink(missing_ok=True)
    elif what == "cache":
        shutil.rmtree(root / ".dvc/cache", ignore_errors=True)


@pytest.mark.usefixtures("in_process")
def test_random_graphs_are_left_as_dvc_repro_leaves_them(empty_repository: Path) -> None:
    """Work tree, lock and ignore files, cache and run-cache have the same bytes, run after run."""
    check(empty_repository)
