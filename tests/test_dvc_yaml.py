"""dvc.yaml is honest: held against the code by reading both, and by running a real DVC repository."""

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline import paths
from tests.conftest import ROOT, edit_params, run

STAGES = ("download", "preprocess", "train", "evaluate", "footprint", "report")
COMPUTES_WITH_TENSORFLOW = {"train", "evaluate", "footprint"}

STAGE_TABLE: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


def imported_modules(file: Path) -> set[str]:
    """Return the dotted names that a module imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def project_file(module: str) -> Path | None:
    path = ROOT / (module.replace(".", "/") + ".py")
    package = ROOT / module.replace(".", "/") / "__init__.py"
    return next((each for each in (path, package) if each.is_file()), None)


def closure(file: Path) -> set[Path]:
    """Return the project's files that a module imports, directly or not, and itself."""
    found, new = set(), {file, ROOT / "pipeline/__init__.py"}
    while new:
        found |= new
        modules = {module for each in new for module in imported_modules(each)}
        new = {each for each in map(project_file, modules) if each} - found
    return found


def packages(files: set[Path]) -> set[str]:
    return {module.partition(".")[0] for file in files for module in imported_modules(file)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_modules_import_closure(stage: str) -> None:
    """The code that a stage depends on is what its module imports, no more and no less."""
    declared = {dep for dep in STAGE_TABLE[stage]["deps"] if dep.endswith(".py")}
    files = closure(ROOT / f"pipeline/{stage}.py")
    assert declared == {str(file.relative_to(ROOT)) for file in files}


def test_the_report_depends_on_its_templates() -> None:
    """The page is made anew when its template, or one that this includes, changes."""
    declared = {Path(dep).name for dep in STAGE_TABLE["report"]["deps"] if dep.endswith(".html")}
    wanted, found = {"report.html"}, set()
    while wanted:
        found |= wanted
        texts = [(ROOT / "pipeline/templates" / name).read_text() for name in wanted]
        wanted = (
            set(re.findall(r'(?:extends|from|include|import) "([^"]+)"', "".join(texts))) - found
        )
    assert declared == found


def test_every_stage_is_a_module_and_a_test_file() -> None:
    """One stage, one module, one test file."""
    assert tuple(STAGE_TABLE) == STAGES
    for stage in STAGES:
        assert STAGE_TABLE[stage]["cmd"].startswith(f"python -m pipeline.{stage} ")
        assert (ROOT / f"tests/test_{stage}.py").is_file()


def params_read(stage: str) -> set[str]:
    """Return the keys that a stage's module asks of `Params`, with ``${…}`` for names."""
    keys = set()
    for node in ast.walk(ast.parse((ROOT / f"pipeline/{stage}.py").read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        asked = ast.unparse(node.func.value)
        if node.func.attr != "get" or asked != "params":
            continue
        key = node.args[0]
        if isinstance(key, ast.Constant):
            keys.add(str(key.value))
        elif isinstance(key, ast.JoinedStr):
            texts = [
                "${item." + ast.unparse(part.value) + "}"
                if isinstance(part, ast.FormattedValue)
                else str(ast.literal_eval(part))
                for part in key.values
            ]
            keys.add("".join(texts))
    return keys


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_params_that_it_reads(stage: str) -> None:
    """The parameters that a stage depends on are those that its module reads."""
    assert set(STAGE_TABLE[stage]["params"]) == params_read(stage) != set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_files_are_where_the_code_puts_them(stage: str) -> None:
    """The outputs that dvc.yaml declares are those that `paths` names."""
    d, v = "${item.dataset}", "${item.variant}"
    expected = {
        "download": [paths.raw(d)],
        "preprocess": [*(paths.prepared(d, split) for split in paths.SPLITS), paths.summary(d)],
        "train": [
            paths.models(d, v),
            paths.training(d, v),
            paths.history(d, v, "train"),
            paths.history(d, v, "validation"),
        ],
        "evaluate": [
            paths.predictions(d, v),
            paths.mistakes(d, v),
            paths.metrics(d, v),
            paths.reliability(d, v),
        ],
        "footprint": [paths.footprint(d, v)],
        "report": [paths.page(d), paths.report(d)],
    }
    entries = [
        entry if isinstance(entry, str) else next(iter(entry))
        for kind in ("outs", "metrics", "plots")
        for entry in STAGE_TABLE[stage].get(kind, [])
    ]
    assert sorted(entries) == sorted(map(str, expected[stage]))


def test_data_flows_one_way() -> None:
    """The pipeline never imports the flows, and no stage imports a stage."""
    for file in (ROOT / "pipeline").glob("*.py"):
        modules = imported_modules(file)
        assert not any(module.partition(".")[0] in ("flows", "prefect") for module in modules)
        assert not modules & {f"pipeline.{stage}" for stage in STAGES}, file


def test_flows_orchestrate_and_compute_nothing() -> None:
    """The flows import no library that computes."""
    used = packages(set((ROOT / "flows").glob("*.py")))
    assert not used & {"numpy", "pandas", "scipy", "sklearn", "tensorflow", "keras"}


@pytest.mark.parametrize("stage", STAGES)
def test_only_stages_that_compute_with_tensorflow_import_it(stage: str) -> None:
    """Stages other than training and evaluation start without TensorFlow."""
    heavy = packages(closure(ROOT / f"pipeline/{stage}.py")) & {"tensorflow", "keras"}
    assert bool(heavy) == (stage in COMPUTES_WITH_TENSORFLOW)


# --- a real DVC repository -------------------------------------------------------------------


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.mark.slow
class TestRealRepository:
    """DVC, run for real on the small data set."""

    def test_a_second_reproduction_runs_nothing(self, repository: Path) -> None:
        """A second reproduction runs nothing, and leaves nothing to commit."""
        assert stages_run(run("dvc", "repro", cwd=repository)) == []
        assert run("git", "status", "--short", cwd=repository) == ""
        assert run("dvc", "status", cwd=repository).startswith("Data and pipelines are up to date")

    def test_changing_one_variants_rate_retrains_that_variant_only(self, repository: Path) -> None:
        """Changing one variant's rate trains and evaluates that variant, and writes the report."""
        edit_params(
            repository / "params.yaml",
            lambda params: params["variants"]["tiny_dense"].update(learning_rate=0.02),
        )
        assert stages_run(run("dvc", "repro", cwd=repository)) == [
            "train@tiny-tiny_dense", "evaluate@tiny-tiny_dense", "report@tiny",
        ]  # fmt: skip

    def test_touching_the_report_retrains_nothing(self, repository: Path) -> None:
        """A change of the report's code or params writes the report, and does nothing else."""
        with open(repository / "pipeline/report.py", "a") as file:
            file.write("# touched\n")
        edit_params(
            repository / "params.yaml", lambda params: params["report"].update(surest_mistakes=3)
        )
        assert stages_run(run("dvc", "repro", cwd=repository)) == ["report@tiny"]

    def test_another_mirror_changes_no_data(self, repository: Path) -> None:
        """A change of the mirrors looks at the raw files, and reruns nothing behind them."""
        edit_params(
            repository / "params.yaml",
            lambda params: params["datasets"]["tiny"]["download"]["mirrors"].insert(0, "/nowhere"),
        )
        output = run("dvc", "repro", cwd=repository)
        assert stages_run(output) == ["download@tiny"]
        assert output.count("already there") == 4

    def test_an_experiment_is_run_and_compared(self, repository: Path) -> None:
        """`dvc exp run -S`, `params diff`, `metrics diff` and `plots diff` just work."""
        run("dvc", "exp", "run", "-S", "variants.tiny_dense.learning_rate=0.0001", cwd=repository)
        assert "variants.tiny_dense.learning_rate" in run("dvc", "params", "diff", cwd=repository)
        metrics = run("dvc", "metrics", "diff", cwd=repository)
        assert "tiny_dense.json" in metrics
        assert "tiny_conv.json" not in metrics
        assert "accuracy" in run("dvc", "metrics", "show", cwd=repository)
        run("dvc", "plots", "diff", "HEAD", cwd=repository)
        page = (repository / "dvc_plots/index.html").read_text()
        for name, mark in (
            ("history_tiny_tiny_dense_validation_csv", '"rev": "workspace"'),
            ("history_tiny_tiny_dense_train_csv", '"type": "log"'),
            ("predictions_tiny_tiny_dense_csv", '"type": "rect"'),
            ("reliability_tiny_tiny_dense_csv", '"domain": [0, 1]'),
        ):
            plot = page.partition(f'id = "{name}"')[2].partition("vegaEmbed")[0]
            assert mark in plot, name
            for revision in ('"rev": "HEAD"', '"rev": "workspace"'):
                assert revision in plot, name

    def test_seeds_of_a_variant_train_it_several_times(self, repository: Path) -> None:
        """`seeds: [0, 1]` trains a variant twice, and metrics and report tell mean and deviation."""
        edit_params(
            repository / "params.yaml",
            lambda params: params["variants"]["tiny_dense"].update(seeds=[0, 1]),
        )
        assert stages_run(run("dvc", "repro", cwd=repository)) == [
            "train@tiny-tiny_dense", "evaluate@tiny-tiny_dense", "report@tiny",
        ]  # fmt: skip
        assert "accuracy_deviation" in run("dvc", "metrics", "diff", cwd=repository)
        assert ", 2 seeds" in (repository / "reports/tiny.md").read_text()

    def test_the_same_seed_gives_the_same_bytes(self, repository: Path) -> None:
        """Trained and evaluated anew, models, curves and predictions have the same bytes."""
        results = [
            path
            for folder in (
                "models",
                "history",
                "predictions",
                "mistakes",
                "reliability",
                "data/prepared",
                "data/summary",
            )
            for path in (repository / folder).rglob("*")
            if path.is_file() and path.name != ".gitignore"
        ]
        before = [path.read_bytes() for path in results]
        shutil.rmtree(repository / ".dvc/cache/runs")
        output = run("dvc", "repro", "--force", cwd=repository)
        assert len(stages_run(output)) == 9
        assert [path.read_bytes() for path in results] == before

    def test_results_come_back_from_a_remote(self, repository: Path, tmp_path: Path) -> None:
        """Models and predictions can be pushed to a folder, and pulled into a fresh clone."""
        run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"), cwd=repository)
        run("dvc", "push", cwd=repository)
        run("git", "commit", "-qam", "remote", cwd=repository)
        run("git", "clone", "-q", str(repository), str(tmp_path / "clone"), cwd=tmp_path)
        run("dvc", "pull", cwd=tmp_path / "clone")
        model = "models/tiny/tiny_conv/seed_0.safetensors"
        assert (tmp_path / "clone" / model).read_bytes() == (repository / model).read_bytes()
