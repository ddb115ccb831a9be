"""Ten shapes of dvc.yaml as public projects have them: each is left as `dvc repro` leaves it.

The shapes are those of tutorials, templates and research projects; the commands are trivial ones.
"""

import shutil
from pathlib import Path

import pytest

from tests.flows.comparing import compare_runs
from tests.flows.conftest import dvc_status, run

SHAPES: dict[str, dict[str, str]] = {
    # The shape of most tutorials: a line of stages, params by section, metrics and plots.
    "tutorial": {
        "params.yaml": "prepare: {split: 0.2, seed: 1}\ntrain: {trees: 50}\n",
        "src/prepare.sh": "mkdir -p data/prepared\nfor part in train test; do cp data/raw.txt data/prepared/$part; done\n",
        "src/train.sh": "cat data/prepared/train params.yaml > model.bin\n",
        "src/evaluate.sh": "mkdir -p eval/plots\necho '{\"auc\": 0.9}' > eval/metrics.json\necho 'x,y\n1,2' > eval/plots/roc.csv\n",
        "data/raw.txt": "raw\n",
        "dvc.yaml": """
stages:
  prepare:
    cmd: sh src/prepare.sh
    deps: [data/raw.txt, src/prepare.sh]
    params: [prepare.seed, prepare.split]
    outs: [data/prepared]
  train:
    cmd: sh src/train.sh
    deps: [data/prepared, src/train.sh]
    params: [train]
    outs: [model.bin]
  evaluate:
    cmd: sh src/evaluate.sh
    deps: [data/prepared, model.bin, src/evaluate.sh]
    metrics: [{eval/metrics.json: {cache: false}}]
    plots: [{eval/plots/roc.csv: {x: x, y: y, cache: false}}]
""",
    },
    # Results declared at the top, outside the stages; a model registry's artifacts.
    "declared at the top": {
        "params.yaml": "train: {epochs: 3}\n",
        "train.sh": "mkdir -p results/plots models\necho '{\"acc\": 1}' > results/metrics.json\necho 'step,loss\n0,1' > results/plots/loss.csv\necho weights > models/model.pkl\n",
        "dvc.yaml": """
params: [params.yaml]
metrics: [results/metrics.json]
plots:
  - results/plots/loss.csv: {x: step, y: loss, title: Loss}
  - both:
      y: {results/plots/loss.csv: [loss]}
artifacts:
  classifier: {path: models/model.pkl, type: model, desc: The best one, labels: [cnn]}
stages:
  train:
    desc: Train it
    cmd: sh train.sh
    deps: [train.sh]
    params: [train.epochs]
    outs:
      - models/model.pkl: {desc: weights, type: model, labels: [cnn], meta: {owner: me}}
      - results/metrics.json: {cache: false}
      - results/plots: {cache: false}
""",
    },
    # Variables and templates: own vars, another params file, nested values, a dictionary in cmd.
    "templates": {
        "params.yaml": "models: {us: {threshold: 10, file: us.txt}}\n",
        "config/app.yaml": "out_dir: build\nflags: {verbose: true, depth: 3, name: 'a b'}\n",
        "in.txt": "in\n",
        "dvc.yaml": """
vars:
  - config/app.yaml
  - greeting: hello
stages:
  build:
    vars: [{local: here}]
    cmd: mkdir -p ${out_dir} && echo ${greeting} ${local} ${models.us.threshold} ${flags} > ${out_dir}/${models.us.file}
    deps: [in.txt]
    params: [models.us.threshold, config/app.yaml: [flags]]
    outs: [ "${out_dir}/${models.us.file}" ]
""",
    },
    # One stage for each of a list, a dictionary and a product; a stage that joins them.
    "many of a kind": {
        "params.yaml": "sets: [north, south]\nmodels: {small: {width: 1}, large: {width: 9}}\n",
        "in.txt": "in\n",
        "dvc.yaml": """
stages:
  clean:
    foreach: ${sets}
    do:
      cmd: mkdir -p clean && cat in.txt > clean/${item}.txt && echo ${item} >> clean/${item}.txt
      deps: [in.txt]
      outs: [ "clean/${item}.txt" ]
  shape:
    foreach: ${models}
    do:
      cmd: echo ${key} ${item.width} > ${key}.txt
      params: [ "models.${key}.width" ]
      outs: [ "${key}.txt" ]
  fit:
    matrix:
      set: ${sets}
      model: [small, large]
    cmd: mkdir -p fit && cat clean/${item.set}.txt ${item.model}.txt > fit/${item.set}-${item.model}.txt
    deps: [ "clean/${item.set}.txt", "${item.model}.txt" ]
    outs: [ "fit/${item.set}-${item.model}.txt" ]
  table:
    cmd: cat fit/north-small.txt fit/south-small.txt fit/north-large.txt > table.txt
    deps: [fit/north-small.txt, fit/south-small.txt, fit/north-large.txt]
    outs: [table.txt]
""",
    },
    # Several projects in one repository, each with its dvc.yaml, that use each other's outputs.
    "a monorepo": {
        "shared/data.txt": "data\n",
        "features/params.yaml": "size: 3\n",
        "features/dvc.yaml": """
stages:
  extract:
    cmd: cat ../shared/data.txt > features.txt
    deps: [../shared/data.txt]
    params: [size]
    outs: [features.txt]
""",
        "models/churn/dvc.yaml": """
stages:
  train:
    cmd: cat ../../features/features.txt > model.txt
    deps: [../../features/features.txt]
    outs: [model.txt]
""",
        "dvc.yaml": """
stages:
  serve:
    wdir: models
    cmd: mkdir -p ../image && cp churn/model.txt ../image/model.txt
    deps: [churn/model.txt]
    outs: [../image]
""",
    },
    # Outputs that stay between runs, and stages that always run, as data collectors have them.
    "a collector": {
        "dvc.yaml": """
stages:
  collect:
    cmd: mkdir -p inbox && echo day >> inbox/days.txt && cp inbox/days.txt latest.txt
    always_changed: true
    outs:
      - inbox: {persist: true}
      - latest.txt
  count:
    cmd: wc -l < inbox/days.txt > count.txt
    deps: [inbox]
    outs: [{count.txt: {cache: false, persist: true}}]
  archive:
    cmd: cp count.txt archive.txt
    deps: [count.txt]
    outs: [archive.txt]
""",
    },
    # Commands as lists, long and folded ones, with quotes, pipes and shell variables.
    "commands": {
        "in.txt": "b\na\n",
        "dvc.yaml": """
stages:
  steps:
    cmd:
      - sort in.txt > sorted.txt
      - 'printf "%s\\n" "it''s $HOME" | wc -l > lines.txt'
      - >-
        cat sorted.txt lines.txt
        | tr a-z A-Z
        > "with space.txt"
    deps: [in.txt]
    outs: [sorted.txt, lines.txt, with space.txt]
  long:
    cmd: |
      for word in one two three four five six seven eight nine ten; do echo "$word $word"; done > long.txt
      echo "and a second line, which DVC runs as a command of its own" >> long.txt
    outs: [long.txt]
""",
    },
    # Params from JSON, TOML and Python; a whole file and a single key with dots.
    "params of every kind": {
        "params.yaml": "lr: 1.0e-3\nnone: null\ntext: 'yes'\nlist: [1, 2.5, a]\n",
        "params.json": '{"model": {"layers": [8, 8]}, "on": true}\n',
        "config.toml": "[train]\nepochs = 2\nrate = 1e-06\n",
        "settings.py": "SEED = 3\n\nclass Data:\n    size = 1_000\n    names = ['a', 'b']\n",
        "dvc.yaml": """
stages:
  all:
    cmd: cat params.yaml params.json config.toml settings.py > all.txt
    params:
      - lr
      - none
      - text
      - list
      - params.json: [model.layers, "on"]
      - config.toml: [train.epochs, train.rate]
      - settings.py: [SEED, Data.size, Data.names]
    outs: [all.txt]
  whole:
    cmd: cat config.toml > whole.txt
    params:
      - config.toml:
    outs: [whole.txt]
""",
    },
    # Data added with `dvc add`, folders as dependencies, code folders with ignored files.
    "added data": {
        ".dvcignore": "__pycache__\n*.tmp\n",
        "code/a.py": "1\n",
        "code/__pycache__/a.pyc": "x\n",
        "images/cats/1.txt": "cat\n",
        "images/dogs/2.txt": "dog\n",
        "images/skip.tmp": "tmp\n",
        "dvc.yaml": """
stages:
  index:
    cmd: find images -name '*.txt' | sort > index.csv
    deps: [images, code]
    outs: [index.csv]
  resize:
    cmd: rm -rf small && cp -r images small && rm -f small/skip.tmp
    deps: [images, index.csv]
    outs: [small]
  one:
    cmd: cat small/cats/1.txt > one.txt
    deps: [small/cats]
    outs: [one.txt]
""",
    },
    # Sweeps over seeds into nested folders, whose summary depends on a folder above them.
    "a sweep": {
        "params.yaml": "seeds: [0, 1, 2]\nrate: 0.1\n",
        "dvc.yaml": """
stages:
  run:
    foreach: ${seeds}
    do:
      cmd: mkdir -p runs/${item}/logs && echo ${item} > runs/${item}/out.txt && echo '{"loss":${item}}' > runs/${item}/logs/m.json
      params: [rate]
      outs: [ "runs/${item}/out.txt" ]
      metrics: [ { "runs/${item}/logs/m.json": { cache: false } } ]
  summary:
    cmd: cat runs/*/out.txt > summary.txt
    deps: [runs]
    outs: [summary.txt]
  best:
    cmd: head -1 summary.txt > best.txt
    deps: [summary.txt]
    params: [seeds]
    outs: [{best.txt: {cache: false}}]
""",
    },
}  # fmt: skip
CHANGED = {"params.yaml", "params.json", "config.toml", "in.txt", "shared/data.txt", "data/raw.txt"}


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_public_shape_is_left_as_dvc_repro_leaves_it(
    empty_repository: Path, tmp_path: Path, shape: str, jobs: int
) -> None:
    """Made, made again, and made after a change, all files have the bytes that `dvc repro` leaves."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for root in (theirs, ours):
        shutil.copytree(empty_repository, root, symlinks=True)
        for name, text in SHAPES[shape].items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text.lstrip("\n"))
        if shape == "added data":
            assert run("dvc", "add", "-q", "images", cwd=root).returncode == 0
    for turn in ("made", "made again", "changed"):
        if turn == "changed":
            for root in (theirs, ours):
                for name in CHANGED & SHAPES[shape].keys():
                    text = (root / name).read_text()
                    (root / name).write_text(text.replace("1", "7").replace("a\n", "c\n"))
        compare_runs(theirs, ours, jobs, all_pipelines=True)
    assert dvc_status(ours) == dvc_status(theirs)
