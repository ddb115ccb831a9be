"""dvc.yaml agrees with the code: compared by reading both, and by running a real DVC repository."""

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.core import paths
from pipeline.core.params import UNTRACKED
from tests.helpers import ROOT, edit_params, run

STAGES = (
    "download", "preprocess", "train", "evaluate", "ensemble", "export", "profile", "report",
)  # fmt: skip
COMPUTES_WITH_TENSORFLOW = {"train", "evaluate", "ensemble", "export", "profile"}
# Which drawers of the pipeline each of them may import, besides itself.
MAY_IMPORT = {
    "core": set[str](),
    "datasets": {"core"},
    "network": {"core", "datasets"},
    "training": {"core", "datasets", "network"},
    "exporting": {"core", "network"},
    "scores": {"core"},
    "page": {"core", "datasets", "scores"},
    "answers": {"core", "datasets", "network", "page"},
}

# The stages of the other lists, each in a dvc.yaml of its own.
OTHER_LISTS = {"record": STAGES, "selection": ("download", "preprocess", "train")}


def read_yaml(name: str) -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe").load((ROOT / name).read_text())
    return content


STAGE_TABLE: dict[str, Any] = read_yaml("dvc.yaml")["stages"]


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


def project_files(module: str) -> set[Path]:
    """Return the project's files that importing a module runs: its own and its packages'."""
    path = ROOT / module.replace(".", "/")
    packages = [parent / "__init__.py" for parent in (path, *path.parents) if parent != ROOT]
    candidates = [path.with_suffix(".py"), *packages]
    return {each for each in candidates if each.is_relative_to(ROOT) and each.is_file()}


def closure(file: Path) -> set[Path]:
    """Return the project's files that a module imports, directly or not, and itself."""
    found, new = set(), {file, ROOT / "pipeline/__init__.py"}
    while new:
        found |= new
        modules = {module for each in new for module in imported_modules(each)}
        new = {file for module in modules for file in project_files(module)} - found
    return found


def packages(files: set[Path]) -> set[str]:
    return {module.partition(".")[0] for file in files for module in imported_modules(file)}


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def drawer_of(module: str) -> str:
    """Return the drawer of the pipeline that a module is in, or the module's name if in none."""
    return module.split(".")[1] if module.startswith("pipeline.") else ""


def code_of(stage: str) -> set[Path]:
    """Return the files and folders of code that a stage depends on."""
    return {ROOT / dep for dep in STAGE_TABLE[stage]["deps"] if dep.startswith("pipeline/")}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_the_code_that_it_imports(stage: str) -> None:
    """Each module that a stage imports, directly or not, is in a file or folder it depends on."""
    code = code_of(stage)
    for file in closure(ROOT / f"pipeline/{stage}.py"):
        assert code & {file, *file.parents}, file.relative_to(ROOT)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_other_code(stage: str) -> None:
    """Each file or folder of code that a stage depends on has a module that the stage imports."""
    used = closure(ROOT / f"pipeline/{stage}.py")
    for path in code_of(stage):
        assert path.exists()
        assert any(path in {file, *file.parents} for file in used), path.relative_to(ROOT)


def test_templates_are_in_a_folder_that_the_report_depends_on() -> None:
    """The report is made again if its templates, or those that they include, change."""
    templates = ROOT / "pipeline/page/templates"
    wanted, found = {"report.html", "report.md"}, set()
    while wanted:
        found |= wanted
        text = "".join((templates / name).read_text() for name in wanted)
        wanted = set(re.findall(r'(?:extends|from|include|import) "([^"]+)"', text)) - found
    assert found == {"report.html", "report.md", "base.html", "parts.html"}
    assert code_of("report") & set(templates.parents)


def test_every_stage_has_a_module_and_a_test_file() -> None:
    """Each stage has one module and one test file."""
    assert tuple(STAGE_TABLE) == STAGES
    for stage in STAGES:
        assert STAGE_TABLE[stage]["cmd"] == f"python -m pipeline.{stage} ${{item}}"
        assert (ROOT / f"tests/test_{stage}.py").is_file()


def renamed(content: Any, name: str) -> Any:
    """Return the content of a YAML file with the list `name` in the place of ``run``."""
    if isinstance(content, dict):
        return {renamed(key, name): renamed(value, name) for key, value in content.items()}
    if isinstance(content, list):
        return [renamed(each, name) for each in content]
    return re.sub(r"\brun\.", f"{name}.", content) if isinstance(content, str) else content


@pytest.mark.parametrize("name", OTHER_LISTS)
def test_other_lists_have_the_same_stages(name: str) -> None:
    """Each list's dvc.yaml has the stages of the first one, run from the root for its own list."""
    other = read_yaml(f"{name}/dvc.yaml")
    assert set(other) == {"vars", "stages"}
    assert other["vars"] == ["../params.yaml"]
    assert tuple(other["stages"]) == OTHER_LISTS[name]
    for stage, content in other["stages"].items():
        assert content.pop("wdir") == ".."
        assert content == renamed(STAGE_TABLE[stage], name)
        assert content != STAGE_TABLE[stage]


def test_the_selection_has_no_results_of_the_test_set() -> None:
    """No stage of the selection depends on test images, or writes metrics of them."""
    for stage in read_yaml("selection/dvc.yaml")["stages"].values():
        text = str(stage["deps"]) + str(stage.get("metrics", "")) + str(stage.get("plots", ""))
        assert "test" not in text
        assert "metrics.json" not in text


def params_read(stage: str) -> set[str]:
    """Return the keys that a stage's module asks of `Params`, with ``${…}`` for names.

    The list that has the data set is ``run``, as in dvc.yaml.
    """
    keys = set()
    for node in ast.walk(ast.parse((ROOT / f"pipeline/{stage}.py").read_text())):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "params.get"):
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
            keys.add("".join(texts).replace("${item.listed}", "run"))
    return keys


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_params_that_it_reads(stage: str) -> None:
    """A stage depends on the parameters that its module reads, except those that change no result."""
    read = {key for key in params_read(stage) if key.partition(".")[0] not in UNTRACKED}
    assert set(STAGE_TABLE[stage]["params"]) == read != set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_outputs_are_those_that_paths_names(stage: str) -> None:
    """The outputs that dvc.yaml declares are those that `paths` names."""
    d, v, e = "${item.dataset}", "${item.variant}", "${item.ensemble}"
    expected = {
        "download": [paths.raw(d)],
        "preprocess": [*(paths.prepared(d, split) for split in paths.SPLITS), paths.summary(d)],
        "train": [
            paths.models(d, v),
            paths.training(d, v),
            paths.curve(d, v, "train"),
            paths.curve(d, v, "validation"),
        ],
        "evaluate": [
            paths.predictions(d, v),
            paths.metrics(d, v),
            paths.mistakes(d, v),
            paths.calibration(d, v),
        ],
        "ensemble": [
            paths.predictions(d, e),
            paths.metrics(d, e),
            paths.mistakes(d, e),
            paths.calibration(d, e),
        ],
        "export": [paths.exports(d, v), paths.export(d, v)],
        "profile": [paths.profile(d, v), paths.memory(d, v)],
        "report": [paths.page(d), paths.report(d)],
    }
    entries = [
        entry if isinstance(entry, str) else next(iter(entry))
        for kind in ("outs", "metrics", "plots")
        for entry in STAGE_TABLE[stage].get(kind, [])
    ]
    assert sorted(entries) == sorted(map(str, expected[stage]))


def test_git_keeps_the_results_and_dvc_the_rest() -> None:
    """Outputs below results, and reports in Markdown, are kept by git; git ignores the others."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for stage in STAGE_TABLE.values():
        for kind in ("outs", "metrics", "plots"):
            for entry in stage.get(kind, []):
                path, settings = (
                    (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
                )
                by_git = settings.get("cache") is False
                assert by_git == (path.startswith("results/") or path.endswith(".md")), path
                parents = {f"/{parent}/" for parent in Path(path).parents}
                known = bool(parents & set(ignored)) or path.endswith(".html")
                assert known != by_git, path


@pytest.mark.parametrize("drawer", MAY_IMPORT)
def test_drawers_import_in_one_direction(drawer: str) -> None:
    """A drawer imports only those drawers that it may build on, and no stage or command."""
    files = modules_of(f"pipeline/{drawer}")
    assert len(files) > 1
    for file in files:
        imported = {drawer_of(module) for module in imported_modules(file)} - {""}
        assert imported <= {drawer, *MAY_IMPORT[drawer]}, file


def test_there_are_no_other_drawers() -> None:
    """Every folder of the pipeline is one of the known drawers."""
    assert {file.parent.name for file in (ROOT / "pipeline").glob("*/__init__.py")} == set(
        MAY_IMPORT
    )


def test_the_pipeline_does_not_know_the_flows() -> None:
    """Nothing in the pipeline imports the flows or Prefect."""
    assert not packages(set(modules_of("pipeline"))) & {
        "dvc_flow",
        "prefect",
        "benchmarks",
        "tests",
    }


def test_no_stage_imports_another() -> None:
    """No stage imports another one; only the check imports stages, for their types."""
    stages = {f"pipeline.{stage}" for stage in STAGES}
    for file in modules_of("pipeline"):
        if file.name != "check.py":
            assert not imported_modules(file) & stages, file


def test_flows_orchestrate_and_compute_nothing() -> None:
    """The flows import nothing of the pipeline, and no library that computes."""
    used = packages(set(modules_of("flows")))
    assert not used & {"pipeline", "numpy", "pandas", "scipy", "sklearn", "tensorflow", "keras"}


@pytest.mark.parametrize("stage", STAGES)
def test_only_stages_that_compute_with_tensorflow_import_it(stage: str) -> None:
    """Stages that do not compute with a network start without TensorFlow."""
    heavy = packages(closure(ROOT / f"pipeline/{stage}.py")) & {"tensorflow", "keras"}
    assert bool(heavy) == (stage in COMPUTES_WITH_TENSORFLOW)


# --- a real DVC repository -------------------------------------------------------------------

DATASET, VARIANTS = "tiny", ("tiny_conv", "tiny_dense")


def items(*stages: str) -> set[str]:
    """Return the names of stages in the repository, one for each variant if they have one.

    It has no ensemble.
    """
    by_variant: dict[str, tuple[str, ...]] = {"ensemble": ()}
    by_variant |= dict.fromkeys(("train", "evaluate", "export", "profile"), VARIANTS)
    return {
        f"{stage}@{DATASET}{end}"
        for stage in stages
        for end in ([f"-{name}" for name in by_variant[stage]] if stage in by_variant else [""])
    }


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def changed(repository: Path) -> set[str]:
    """Return the stages whose inputs changed, without those that would only follow them."""
    status: dict[str, Any] = json.loads(run("dvc", "status", "--json", cwd=repository))
    return set(status)


def git_status(root: Path) -> str:
    return run("git", "status", "--porcelain", cwd=root)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("pipeline/__init__.py", items(*STAGES)),
        ("pipeline/core/errors.py", items(*STAGES)),
        ("pipeline/datasets/idx.py", items(*STAGES)),
        ("pipeline/network/device.py", items("train", "evaluate", "export", "profile")),
        ("pipeline/training/batches.py", items("train", "profile")),
        ("pipeline/exporting/onnx_model.py", items("export")),
        ("pipeline/scores/load.py", items("report")),
        ("pipeline/scores/metrics.py", items("evaluate", "report")),
        ("pipeline/scores/tables.py", items("evaluate", "report")),
        ("pipeline/scores/ensembles.py", items("report")),
        ("pipeline/scores/ranking.py", items("report")),
        ("pipeline/page/charts.py", items("report")),
        ("pipeline/page/templates/parts.html", items("report")),
        *((f"pipeline/{stage}.py", items(stage)) for stage in STAGES),
        ("pipeline/check.py", set()),
        ("pipeline/compare.py", set()),
        ("pipeline/rank.py", set()),
    ],
)
def test_changed_code_reruns_the_stages_that_use_it(
    repository: Path, file: str, expected: set[str]
) -> None:
    """A change in a folder of code concerns the stages that import from it, and no others."""
    with open(repository / file, "a") as code:
        code.write("\n")
    assert changed(repository) == expected


def setting(key: str, value: object) -> Callable[[Any], None]:
    def change(params: Any) -> None:
        *path, last = key.split(".")
        for step in path:
            params = params[step]
        assert params[last] != value
        params[last] = value

    return change


CONV = {"train@tiny-tiny_conv", "profile@tiny-tiny_conv"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("datasets.tiny.download.mirrors", ["/nowhere"], items("download")),
        ("datasets.tiny.preprocess.validation_size", 33, items("preprocess", "report")),
        (
            "datasets.tiny.classes",
            ["a", "b", "c"],
            items("preprocess", "train", "profile", "report"),
        ),
        ("datasets.tiny.report", {"label_errors": [1]}, items("report")),
        ("datasets.tiny.train.epochs", 3, items("train", "report")),
        ("datasets.mnist.classes", 11, set()),
        ("preprocess.seed", 1, items("preprocess", "report")),
        ("train.precision", "float32", items("train", "profile", "report")),
        ("train.log_every_steps", 10, items("train", "report")),
        ("variants.tiny_conv.batch_size", 8, CONV | items("report")),
        ("variants.tiny_conv.learning_rate", 0.1, {"train@tiny-tiny_conv", "report@tiny"}),
        ("evaluate.memory_budget_mb", 100, items("evaluate", "export", "profile", "report")),
        ("profile.training_steps", 2, items("profile")),
        ("report.mistakes_shown", 3, items("report")),
        ("runtime.checkpoint_every", {"steps": 1}, set()),
        ("record.variants", ["lenet5"], set()),
        ("selection.variants", ["lenet5"], set()),
    ],
)
def test_changed_params_rerun_the_stages_that_read_them(
    repository: Path, key: str, value: object, expected: set[str]
) -> None:
    """A changed parameter concerns the stages that read it, and no others."""
    edit_params(repository / "params.yaml", setting(key, value))
    assert changed(repository) == expected


RETRAINED = {
    "train@tiny-tiny_dense", "evaluate@tiny-tiny_dense", "export@tiny-tiny_dense", "report@tiny",
}  # fmt: skip


@pytest.mark.slow
class TestRealRepository:
    """DVC, run for real on the small data set."""

    def test_a_second_reproduction_runs_nothing(self, repository: Path) -> None:
        """A second reproduction runs nothing, and leaves nothing to commit."""
        assert stages_run(run("dvc", "repro", cwd=repository)) == []
        assert git_status(repository) == ""
        assert run("dvc", "status", cwd=repository).startswith("Data and pipelines are up to date")

    def test_changing_a_variants_rate_retrains_that_variant_only(self, repository: Path) -> None:
        """Another learning rate trains, evaluates and exports one variant, and writes the report."""
        edit_params(repository / "params.yaml", setting("variants.tiny_dense.learning_rate", 0.02))
        assert set(stages_run(run("dvc", "repro", cwd=repository))) == RETRAINED

    def test_changing_the_report_runs_nothing_else(self, repository: Path) -> None:
        """A change of the report's code or parameters writes the report, and does nothing else."""
        with open(repository / "pipeline/report.py", "a") as file:
            file.write("# touched\n")
        edit_params(repository / "params.yaml", setting("report.mistakes_shown", 3))
        assert stages_run(run("dvc", "repro", cwd=repository)) == ["report@tiny"]

    def test_changing_the_interval_of_checkpoints_runs_nothing(self, repository: Path) -> None:
        """How often checkpoints are written changes no result, so it reruns nothing."""
        edit_params(repository / "params.yaml", setting("runtime.checkpoint_every", {"steps": 7}))
        assert stages_run(run("dvc", "repro", cwd=repository)) == []
        assert git_status(repository) == " M params.yaml\n"

    def test_another_mirror_changes_no_data(self, repository: Path) -> None:
        """Other mirrors make DVC check the raw files, and rerun nothing that depends on them."""
        edit_params(
            repository / "params.yaml",
            lambda params: params["datasets"]["tiny"]["download"]["mirrors"].insert(0, "/nowhere"),
        )
        output = run("dvc", "repro", cwd=repository)
        assert stages_run(output) == ["download@tiny"]
        assert output.count("already there") == 4

    def test_an_experiment_is_run_and_compared(self, repository: Path) -> None:
        """`dvc exp run -S`, `params diff`, `metrics diff` and `plots diff` work."""
        run("dvc", "exp", "run", "-S", "variants.tiny_dense.learning_rate=0.0001", cwd=repository)
        assert "variants.tiny_dense.learning_rate" in run("dvc", "params", "diff", cwd=repository)
        metrics = run("dvc", "metrics", "diff", cwd=repository)
        assert "results/tiny/tiny_dense/metrics.json" in metrics
        assert "tiny_conv" not in metrics
        assert "accuracy" in run("dvc", "metrics", "show", cwd=repository)
        run("dvc", "plots", "diff", "HEAD", cwd=repository)
        page = (repository / "dvc_plots/index.html").read_text()
        for name, mark in (
            ("curve_validation_csv", '"type": "line"'),
            ("curve_train_csv", '"type": "log"'),
            ("mistakes_csv", '"type": "rect"'),
            ("calibration_csv", '"domain": [0, 1]'),
        ):
            plot = page.partition(f'id = "results_tiny_tiny_dense_{name}"')[2]
            plot = plot.partition("vegaEmbed")[0]
            assert mark in plot, name
            assert '"rev": "workspace"' in plot, name
            assert '"rev": "HEAD"' in plot or name == "mistakes_csv", name  # there were none

    def test_several_seeds_are_trained_and_reported(self, repository: Path) -> None:
        """`seeds: [0, 1]` trains a variant twice; metrics and report have mean and deviation."""
        edit_params(
            repository / "params.yaml",
            lambda params: params["variants"]["tiny_dense"].update(seeds=[0, 1]),
        )
        assert set(stages_run(run("dvc", "repro", cwd=repository))) == RETRAINED
        assert "accuracy_deviation" in run("dvc", "metrics", "diff", cwd=repository)
        assert ", 2 seeds" in (repository / "reports/tiny.md").read_text()

    def test_an_ensemble_is_evaluated_and_reported(self, repository: Path) -> None:
        """A new ensemble is evaluated with the models that are there, and reported."""

        def change(params: Any) -> None:
            members = [{"variant": variant, "seeds": [0]} for variant in VARIANTS]
            params["ensembles"]["both"] = {"members": members}
            params["run"]["ensembles"] = ["both"]

        edit_params(repository / "params.yaml", change)
        assert stages_run(run("dvc", "repro", cwd=repository)) == [
            "ensemble@tiny-both", "report@tiny",
        ]  # fmt: skip
        assert "| both | 2 | " in (repository / "reports/tiny.md").read_text()
        assert "results/tiny/both/metrics.json" in run("dvc", "metrics", "show", cwd=repository)
        edit_params(repository / "params.yaml", setting("variants.tiny_dense.learning_rate", 0.02))
        ran = stages_run(run("dvc", "repro", cwd=repository))
        assert set(ran) == RETRAINED | {"ensemble@tiny-both"}
        assert ran.index("train@tiny-tiny_dense") < ran.index("ensemble@tiny-both")
        assert ran[-1] == "report@tiny"

    @pytest.mark.parametrize("name", OTHER_LISTS)
    def test_another_list_is_reproduced_by_itself(self, repository: Path, name: str) -> None:
        """The stages of another list run in the root, and the first list's are not affected."""
        shutil.copytree(ROOT / name, repository / name)

        def change(params: Any) -> None:
            params["datasets"]["tiny_too"] = params["datasets"]["tiny"]
            params[name] = {
                "datasets": ["tiny_too"], "variants": ["tiny_dense"], "ensembles": [],
            }  # fmt: skip

        edit_params(repository / "params.yaml", change)
        expected = [
            f"{stage}@tiny_too-tiny_dense" if stage in ("train", "evaluate", "export", "profile")
            else f"{stage}@tiny_too"
            for stage in OTHER_LISTS[name] if stage != "ensemble"
        ]  # fmt: skip
        ran = stages_run(run("dvc", "repro", f"{name}/dvc.yaml", cwd=repository))
        assert sorted(ran) == sorted(f"{name}/dvc.yaml:{stage}" for stage in expected)
        assert (repository / "models/tiny_too/tiny_dense/seed_0.safetensors").is_file()
        for path in ("results/tiny_too/tiny_dense/metrics.json", "reports/tiny_too.md"):
            assert (repository / path).is_file() == (name == "record")
        assert stages_run(run("dvc", "repro", cwd=repository)) == []

    def test_results_made_again_have_the_same_bytes(self, repository: Path) -> None:
        """Made again by force, all results but measurements have the same bytes, in git too."""
        kept = [
            path
            for folder in ("models", "predictions", "data/prepared", "results", "reports")
            for path in (repository / folder).rglob("*")
            if path.is_file()
        ]
        before = {path: path.read_bytes() for path in kept}
        shutil.rmtree(repository / ".dvc/cache/runs")
        stages = [stage for stage in STAGES if stage != "profile"]
        targets = [item for stage in stages for item in sorted(items(stage))]
        output = run("dvc", "repro", "--force", "--single-item", *targets, cwd=repository)
        assert stages_run(output) == targets
        assert {path: path.read_bytes() for path in kept} == before
        assert git_status(repository) == ""

    def test_a_fresh_clone_makes_the_same_results(self, repository: Path, tmp_path: Path) -> None:
        """In a clone without a cache all but the measurements is made again, and git is clean."""
        clone = tmp_path / "clone"
        run("git", "clone", "-q", str(repository), str(clone), cwd=tmp_path)
        output = run("dvc", "repro", cwd=clone)
        expected = items("download", "preprocess", "train", "evaluate", "export", "report")
        assert set(stages_run(output)) == expected
        assert git_status(clone) == ""
        assert run("dvc", "status", cwd=clone).startswith("Data and pipelines are up to date")

    def test_results_are_restored_from_a_remote(self, repository: Path, tmp_path: Path) -> None:
        """Models and predictions can be pushed to a folder, and pulled into a fresh clone."""
        run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"), cwd=repository)
        run("dvc", "push", cwd=repository)
        run("git", "commit", "-qam", "remote", cwd=repository)
        run("git", "clone", "-q", str(repository), str(tmp_path / "clone"), cwd=tmp_path)
        run("dvc", "pull", cwd=tmp_path / "clone")
        for name in ("models/tiny/tiny_conv/seed_0.safetensors", "predictions/tiny/tiny_conv.csv"):
            assert (tmp_path / "clone" / name).read_bytes() == (repository / name).read_bytes()
