import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from pipeline.compare import as_json, as_markdown, as_text, compare_revisions, main
from pipeline.errors import DataError
from pipeline.revisions import Revisions
from tests.browser import open_page
from tests.conftest import edit_params, environment, make_repository

# What stands in for training and evaluation: `wrong` images that a seed chooses are misread.
MEASURE = """
import json, random, sys
from ruamel.yaml import YAML
dataset, variant = sys.argv[1:]
params = YAML(typ="safe").load(open("params.yaml"))["variants"][variant]
images = params.get("images", 1000)
wrong = set(random.Random(params["seed"]).sample(range(images), params["wrong"]))
with open(f"predictions/{dataset}/{variant}.csv", "w") as file:
    print("index,label,prediction,confidence", file=file)
    for i in range(images):
        print(f"{i},{i % 10},{(i + (i in wrong)) % 10},0.9", file=file)
with open(f"metrics/{dataset}/{variant}.json", "w") as file:
    json.dump({"n": images, "errors": len(wrong), "accuracy": 1 - len(wrong) / images}, file)
"""
PIPELINE = """
stages:
  evaluate:
    matrix:
      dataset: [digits]
      variant: [net, other]
    cmd: python measure.py ${item.dataset} ${item.variant}
    deps: [measure.py]
    params: ["variants.${item.variant}"]
    metrics:
      - metrics/${item.dataset}/${item.variant}.json: {cache: false}
    plots:
      - predictions/${item.dataset}/${item.variant}.csv
"""


def run(root: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=root, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def set_variant(root: Path, **net: int) -> None:
    row = ", ".join(f"{key}: {value}" for key, value in net.items())
    other = "other: {seed: 9, wrong: 30}"
    (root / "params.yaml").write_text(f"variants:\n  net: {{{row}}}\n  {other}\n")


def commit(root: Path, tag: str, **net: int) -> None:
    set_variant(root, **net)
    run(root, "dvc", "repro", "-q")
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", tag)
    run(root, "git", "tag", tag)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a base, another seed, a regression, and a smaller test set."""
    root = tmp_path_factory.mktemp("history") / "project"
    for folder in ("metrics/digits", "predictions/digits"):
        (root / folder).mkdir(parents=True)
    (root / "measure.py").write_text(MEASURE)
    (root / "dvc.yaml").write_text(PIPELINE)
    run(root, "git", "init", "-q")
    run(root, "dvc", "init", "-q")
    commit(root, "base", seed=0, wrong=20)
    commit(root, "seed", seed=1, wrong=21)
    commit(root, "regression", seed=0, wrong=90)
    commit(root, "smaller", seed=0, wrong=90, images=500)
    return root


@pytest.fixture
def repository(history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may change, as the current folder."""
    root = Path(shutil.copytree(history, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(root)
    return root


def test_a_change_of_seed_is_no_evidence_and_a_regression_is_worse(repository: Path) -> None:
    """Each revision is held against the first one, with the images that flipped."""
    comparisons, errors, _ = compare_revisions(
        Revisions(repository), ["base", "seed", "regression"]
    )
    assert errors == []
    found = {(each.variant, each.revision): each for each in comparisons}
    assert {key: each.verdict for key, each in found.items()} == {
        ("net", "seed"): "no evidence of a difference",
        ("other", "seed"): "no evidence of a difference",
        ("net", "regression"): "worse",
        ("other", "regression"): "no evidence of a difference",
    }
    worse = found["net", "regression"]
    assert len(worse.broken) - len(worse.fixed) == 70
    assert worse.changed == ["variants.net.wrong: 20 → 90"]
    assert worse.adjusted_p == pytest.approx(4 * worse.difference.p)
    assert found["other", "seed"].fixed == found["other", "seed"].broken == []


def test_code_that_changed_is_named(repository: Path) -> None:
    """A changed file of code is told by its name."""
    with open(repository / "measure.py", "a") as file:
        file.write("# touched\n")
    run(repository, "dvc", "repro", "-q")
    comparisons, *_ = compare_revisions(Revisions(repository), ["smaller", "workspace"])
    assert {tuple(each.changed) for each in comparisons} == {("measure.py",)}


def test_an_experiment_is_a_revision(repository: Path) -> None:
    """A DVC experiment is compared by its name, wherever it is based."""
    set_variant(repository, seed=0, wrong=20, images=500)
    run(repository, "dvc", "repro", "-q")
    run(repository, "dvc", "exp", "save", "-n", "fewer-mistakes")
    comparisons, errors, _ = compare_revisions(Revisions(repository), ["smaller", "fewer-mistakes"])
    assert errors == []
    assert [each.verdict for each in comparisons if each.variant == "net"] == ["better"]


def test_predictions_come_from_a_remote(repository: Path, tmp_path: Path) -> None:
    """What the cache lacks is fetched; the images are compared pair by pair."""
    run(repository, "dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    for tag in ("base", "regression"):
        run(repository, "git", "checkout", "-q", tag)
        run(repository, "dvc", "push", "-q")
    shutil.rmtree(repository / ".dvc/cache")
    comparisons, *_ = compare_revisions(Revisions(repository), ["base", "regression"])
    assert [each.unpaired_because for each in comparisons] == ["", ""]


def test_without_predictions_intervals_are_not_paired(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where predictions cannot be had, that is said, and the counts are compared."""
    shutil.rmtree(repository / ".dvc/cache")
    assert main(["base", "regression"]) == 0
    told = capsys.readouterr().out
    assert "worse (not paired)" in told
    assert "no predictions of base and regression in DVC's cache or remote" in told


def test_equal_predictions_need_not_be_at_hand(repository: Path) -> None:
    """Two revisions with the same hash of predictions are known to have no image flipped."""
    shutil.rmtree(repository / ".dvc/cache")
    comparisons, *_ = compare_revisions(Revisions(repository), ["base", "regression"])
    other = next(each for each in comparisons if each.variant == "other")
    assert (other.unpaired_because, other.difference.value, other.difference.p) == ("", 0, 1)


@pytest.mark.parametrize(
    "arguments", [["base", "base"], ["base", "seed", "--tolerance", "nan"], ["workspace"]]
)
def test_a_call_that_compares_nothing_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One revision against itself, or a tolerance that is no number, is refused."""
    with pytest.raises(SystemExit):
        main(arguments)
    assert "expected" in capsys.readouterr().err


def test_predictions_of_another_length_are_not_paired(repository: Path) -> None:
    """Test sets of another size are told, and the rest is compared."""
    comparisons, errors, _ = compare_revisions(Revisions(repository), ["base", "smaller"])
    reasons = {each.variant: each.unpaired_because for each in comparisons}
    assert reasons == {"net": "base has 1,000 test images, smaller has 500", "other": ""}
    assert errors == []


@pytest.mark.parametrize(
    ("tolerance", "revision", "code"),
    [("0", "regression", 1), ("10", "regression", 0), ("0", "seed", 0)],
)
def test_fail_if_worse_exits_as_it_should(
    repository: Path, capsys: pytest.CaptureFixture[str], tolerance: str, revision: str, code: int
) -> None:
    """A real loss beyond the tolerance fails; a smaller one and a change of seed do not."""
    assert main(["base", revision, "--fail-if-worse", "--tolerance", tolerance]) == code
    told = capsys.readouterr().err
    assert ("error: worse than base: digits / net at regression" in told) == bool(code)


def without_metrics(root: Path) -> None:
    run(root, "git", "rm", "-rq", "metrics")


def without_variant(root: Path) -> None:
    run(root, "git", "rm", "-q", "metrics/digits/net.json")


def with_broken_params(root: Path) -> None:
    (root / "params.yaml").write_text("variants: [")


def with_broken_metrics(root: Path) -> None:
    (root / "metrics/digits/net.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_metrics, "bad: has no metrics; reproduce and commit there"),
        (without_variant, "bad: has no metrics of digits / net"),
        (with_broken_params, "bad: params.yaml is not valid YAML"),
        (with_broken_metrics, "bad: metrics/digits/net.json cannot be read"),
    ],
)
def test_a_bad_revision_is_one_line_and_the_rest_is_compared(
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    reason: str,
) -> None:
    """The line names the revision; the exit code says that something is missing."""
    damage(repository)
    run(repository, "git", "add", "-A")
    run(repository, "git", "commit", "-qm", "bad")
    run(repository, "git", "tag", "bad")
    assert main(["base", "bad", "regression", "nosuch"]) == 1
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert [line for line in lines if line.startswith(f"error: {reason}")]
    assert [line for line in lines if line.startswith("error: nosuch: is no revision")]
    assert len(lines) == 2
    assert "regression" in told.out


def test_a_shallow_clone_says_how_to_get_the_rest(repository: Path, tmp_path: Path) -> None:
    """A revision that a shallow clone lacks is told with the remedy."""
    run(
        repository,
        "git",
        "clone",
        "-q",
        "--depth",
        "1",
        f"file://{repository}",
        str(tmp_path / "c"),
    )
    with pytest.raises(DataError, match="HEAD~1: .*git fetch --unshallow"):
        Revisions(tmp_path / "c").resolve("HEAD~1")


def test_a_folder_without_dvc_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside a repository the remedy is told, without a traceback."""
    monkeypatch.chdir(tmp_path)
    assert main([]) == 1
    assert "is not a DVC repository" in capsys.readouterr().err


def test_one_comparison_is_told_in_three_formats(repository: Path) -> None:
    """Text, Markdown and JSON have the same verdicts; JSON has every image that flipped."""
    outcome = compare_revisions(Revisions(repository), ["base", "regression"])
    assert "Against base: 1 worse, 1 no evidence of a difference (2 comparisons" in as_text(outcome)
    rows = [line for line in as_markdown(outcome).splitlines() if line.startswith("| digits")]
    assert rows[0].endswith("| worse |")
    entries = json.loads(as_json(outcome))
    assert entries[0]["verdict"] == "worse"
    assert len(entries[0]["broken"]) > 10


def test_a_page_shows_each_metric_over_the_revisions(repository: Path, tmp_path: Path) -> None:
    """The page has the table, and a chart of each metric with every revision."""
    target = tmp_path / "page.html"
    revisions = ["base", "seed", "regression"]
    assert main([*revisions, "--format", "html", "--output", str(target)]) == 0
    page = target.read_text()
    assert page.count('<figure><div role="img" aria-label="Chart of test accuracy over') == 1
    assert 'class="text worse"' in page
    for revision in revisions:
        assert f">{revision}</text>" in page


@pytest.mark.slow
def test_the_page_opens_offline(repository: Path, tmp_path: Path) -> None:
    """In a real browser, on a phone's width: no console message, no request, no sideways scroll."""
    target = tmp_path / "page.html"
    main(["base", "regression", "--format", "html", "--output", str(target)])
    with open_page(target, 390, "dark") as page:
        assert page.messages() == []
        assert page.requests() == [target.as_uri()]
        assert page.ask("document.documentElement.scrollWidth") <= 390


def test_one_seed_against_several_is_told(repository: Path) -> None:
    """Where one side has several seeds and the other one, the table says that the first ones are compared."""
    path = repository / "metrics/digits/net.json"
    metrics = json.loads(path.read_text()) | {"by_seed": {}, "accuracy_deviation": 0.004}
    path.write_text(json.dumps(metrics))
    told = as_text(compare_revisions(Revisions(repository), ["smaller", "workspace"]))
    assert "82.00% → 82.00% ± 0.40" in told
    assert "no evidence of a difference (first seeds)" in told


def test_where_the_first_revision_is_bad_the_next_one_is_the_baseline(repository: Path) -> None:
    """The rest is compared, against the first revision that can be read."""
    comparisons, errors, _ = compare_revisions(
        Revisions(repository), ["nosuch", "base", "regression"]
    )
    assert {(each.baseline, each.revision) for each in comparisons} == {("base", "regression")}
    assert len(errors) == 1


def test_results_from_before_there_were_seeds_are_compared(repository: Path) -> None:
    """Predictions without a column of seeds are those of one, and pair with those that have it."""
    text = (repository / "measure.py").read_text()
    text = text.replace('"index,label', '"seed,index,label').replace('f"{i},', 'f"0,{i},')
    (repository / "measure.py").write_text(text)
    commit(repository, "seeded", seed=0, wrong=20, images=1000)
    comparisons, errors, _ = compare_revisions(Revisions(repository), ["base", "seeded"])
    assert errors == []
    assert [each.unpaired_because for each in comparisons] == ["", ""]
    assert [each.difference.value for each in comparisons] == [0, 0]


@pytest.mark.slow
def test_a_real_history_is_judged_as_statsmodels_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real trainings on `digits`: another seed is no evidence, a tenth of the training is worse."""
    root = make_repository(
        tmp_path / "project",
        lambda params: params["run"].update(datasets=["digits"], variants=["lenet5"]),
    )
    monkeypatch.chdir(root)
    predictions = {}
    for tag, seeds, epochs in (("base", [0], 24), ("seed", [1], 24), ("tenth", [0], 2)):

        def change(params: Any, seeds: list[int] = seeds, epochs: int = epochs) -> None:
            params["train"]["seeds"] = seeds
            params["datasets"]["digits"]["train"]["epochs"] = epochs

        edit_params(root / "params.yaml", change)
        run(root, "dvc", "repro")
        predictions[tag] = pd.read_csv(root / "predictions/digits/lenet5.csv")
        run(root, "git", "add", "-A")
        run(root, "git", "commit", "-qm", tag)
        run(root, "git", "tag", tag)

    comparisons, errors, _ = compare_revisions(Revisions(root), ["base", "seed", "tenth"])
    assert errors == []
    assert {each.revision: each.verdict for each in comparisons} == {
        "seed": "no evidence of a difference",
        "tenth": "worse",
    }
    right = {tag: each["label"] == each["prediction"] for tag, each in predictions.items()}
    p_values = []
    for each in comparisons:
        table = pd.crosstab(right["base"], right[each.revision])
        assert len(each.fixed) == table.loc[False, True]
        assert len(each.broken) == table.loc[True, False]
        p_values.append(mcnemar(table, exact=True).pvalue)
        assert each.difference.p == pytest.approx(min(1, p_values[-1]))
    adjusted = multipletests(p_values, method="holm")[1]
    assert [each.adjusted_p for each in comparisons] == pytest.approx(list(adjusted))
    assert [each.changed for each in comparisons] == [
        ["train.seeds: [0] → [1]"], ["datasets.digits.train.epochs: 24 → 2"],
    ]  # fmt: skip
    assert main(["base", "seed", "--fail-if-worse"]) == 0
    assert main(["base", "tenth", "--fail-if-worse"]) == 1
    assert main(["base", "tenth", "--fail-if-worse", "--tolerance", "50"]) == 0
    report = root / "reports/digits.html"
    assert report.stat().st_size < 3e6
    with open_page(report, 1200, "light") as page:
        assert page.messages() == []
        assert page.requests() == [report.as_uri()]
