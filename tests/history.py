"""A repository with a history of results, made up, in the places of today and of version 0.1."""

import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.helpers import run

# In the place of preprocessing and evaluation: a seed chooses which `wrong` images are misread.
MEASURE = """
import hashlib, json, random, sys
from pathlib import Path
from ruamel.yaml import YAML

def path(name):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    return Path(name)

stage, dataset, variant, layout = sys.argv[1:]
params = YAML(typ="safe").load(open("params.yaml"))
images = params["datasets"][dataset]["preprocess"]["images"]
if stage == "preprocess":
    summary = {
        "images_per_class": {"test": [images // 10] * 10},
        "sha256": {"test_labels": hashlib.sha256(str(images).encode()).hexdigest()},
    }
    path(variant).write_text(json.dumps(summary))
    sys.exit()

row = params["variants"][variant]
wrong = set(random.Random(row["seed"]).sample(range(images), row["wrong"]))
lines = [f"{i},{i % 10},{(i + (i in wrong)) % 10},0.9" for i in range(images)]
metrics = {"n": images, "errors": len(wrong), "accuracy": 1 - len(wrong) / images}
header = "index,label,prediction,confidence"
predictions = path(f"predictions/{dataset}/{variant}.csv")
if layout == "old":
    predictions.write_text("\\n".join([header, *lines]) + "\\n")
    metrics["evaluation"] = {"images_per_second": 1500.0, "peak_memory_mb": 75.0, "chunk_size": 60}
    path(f"metrics/{dataset}/{variant}.json").write_text(json.dumps(metrics))
else:
    lines = [f"0,{line}" for line in lines]
    predictions.write_text("\\n".join([f"seed,{header}", *lines]) + "\\n")
    folder = f"results/{dataset}/{variant}"
    mistakes = [f"seed,{header}", *(lines[i] for i in sorted(wrong))]
    path(f"{folder}/mistakes.csv").write_text("\\n".join(mistakes) + "\\n")
    path(f"{folder}/metrics.json").write_text(json.dumps(metrics))
    profile = {"evaluation_images_per_second": 2000.0, "peak_memory_mb": 70.0}
    path(f"{folder}/profile.json").write_text(json.dumps(profile))
"""
STAGES = """
stages:
  preprocess:
    matrix:
      dataset: [digits]
    cmd: python pipeline/measure.py preprocess ${{item.dataset}} {summary} {layout}
    params:
      - datasets.${{item.dataset}}.preprocess
    metrics:
      - {summary}:
          cache: false
  evaluate:
    matrix:
      dataset: [digits]
      variant: [net, other]
    cmd: python pipeline/measure.py evaluate ${{item.dataset}} ${{item.variant}} {layout}
    deps:
      - pipeline/measure.py
      - {summary}
    params:
      - variants.${{item.variant}}
"""
NEW = (
    STAGES.format(summary="results/${item.dataset}/summary.json", layout="new")
    + """\
    outs:
      - predictions/${item.dataset}/${item.variant}.csv
    metrics:
      - results/${item.dataset}/${item.variant}/metrics.json:
          cache: false
      - results/${item.dataset}/${item.variant}/profile.json:
          cache: false
    plots:
      - results/${item.dataset}/${item.variant}/mistakes.csv:
          cache: false
"""
)
OLD = (
    STAGES.format(summary="data/summary/${item.dataset}.json", layout="old")
    + """\
    metrics:
      - metrics/${item.dataset}/${item.variant}.json:
          cache: false
    plots:
      - predictions/${item.dataset}/${item.variant}.csv
"""
)


def set_params(root: Path, images: int = 1000, **net: int) -> None:
    """Set the number of test images, and which images `net` misreads: ``seed`` and ``wrong``."""
    params: dict[str, Any] = {
        "datasets": {"digits": {"preprocess": {"images": images}}},
        "variants": {"net": net, "other": {"seed": 9, "wrong": 30}},
    }
    with open(root / "params.yaml", "w") as file:
        YAML(typ="safe").dump(params, file)


def save(root: Path, tag: str) -> None:
    """Commit all changes under a tag."""
    run("git", "add", "-A", cwd=root)
    run("git", "commit", "-qm", tag, cwd=root)
    run("git", "tag", tag, cwd=root)


def commit(root: Path, tag: str, images: int = 1000, **net: int) -> None:
    """Set the params, reproduce, and commit under a tag."""
    set_params(root, images, **net)
    run("dvc", "repro", "-q", cwd=root)
    save(root, tag)


def make_history(root: Path) -> Path:
    """Make two commits of version 0.1, then a base, another seed, a regression, fewer images."""
    (root / "pipeline").mkdir(parents=True)
    (root / "pipeline/measure.py").write_text(MEASURE)
    (root / "dvc.yaml").write_text(OLD)
    (root / ".gitignore").write_text("/predictions/\n")
    run("git", "init", "-q", cwd=root)
    run("dvc", "init", "-q", cwd=root)
    commit(root, "old", seed=0, wrong=20)
    commit(root, "old_regression", seed=0, wrong=90)
    for folder in ("metrics", "data"):
        shutil.rmtree(root / folder)
    (root / "dvc.yaml").write_text(NEW)
    commit(root, "base", seed=0, wrong=20)
    commit(root, "seed", seed=1, wrong=21)
    commit(root, "regression", seed=0, wrong=90)
    commit(root, "smaller", images=500, seed=0, wrong=90)
    return root
