"""The readers of bytes that others wrote, each as a function of those bytes.

A reader returns or raises a PipelineError; anything else is a defect.
"""

import contextlib
import gzip
import io
import json
import lzma
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.check import check
from pipeline.core.errors import PipelineError
from pipeline.core.params import Params
from pipeline.datasets import idx
from pipeline.datasets.mirrors import extract
from pipeline.datasets.splits import Split, SplitReader, save_split
from pipeline.network import storage
from pipeline.network.build import Description, build
from pipeline.scores.load import load_json, load_mistakes
from pipeline.scores.predictions import COLUMNS
from pipeline.scores.revisions import (
    digest_of,
    inputs_of,
    parse_metrics,
    parse_mistakes,
    parse_predictions,
    parse_yaml,
    stages_of,
)
from pipeline.training.checkpoint import Checkpoint, Checkpoints, Interval
from pipeline.training.recipe import Variant
from tests.helpers import ROOT

MISTAKES = ",".join(COLUMNS) + "\n0,1,2,3,0.8\n"

Reader = Callable[[Path, bytes], object]

DESCRIPTION = {
    "dataset": "a", "variant": "b", "image_shape": [4, 4, 1], "classes": 2,
    "network": {
        "input_size": None, "initializer": {"type": "he_normal"},
        "layers": [{"type": "conv", "filters": 2, "kernel": 3}, {"type": "dense", "units": 3}],
    },
}  # fmt: skip


def read_idx(folder: Path, content: bytes) -> object:
    (folder / "raw").write_bytes(content)
    return idx.read(folder / "raw", (3,))


def read_zip(folder: Path, content: bytes) -> object:
    (folder / "archive").write_bytes(content)
    extract(folder / "archive", "a/images", folder / "extracted")
    return (folder / "extracted").read_bytes()


def read_npy(folder: Path, content: bytes) -> object:
    (folder / "images.npy").write_bytes(content)
    with SplitReader(folder) as reader:
        return reader.read(0, 3)


def read_params(folder: Path, content: bytes) -> object:
    (folder / "params.yaml").write_bytes(content)
    params = Params(folder / "params.yaml")
    with contextlib.suppress(PipelineError):
        check(params)
    return params.get("variants.lenet5", Variant)


def read_model(folder: Path, content: bytes) -> object:
    (folder / "model").write_bytes(content)
    return storage.load(folder / "model")


def read_checkpoint(folder: Path, content: bytes) -> object:
    path = folder / "checkpoints" / f"step_000000001-{'0' * 64}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return Checkpoints(path.parent, Interval(steps=1)).newest()


def read_predictions(folder: Path, content: bytes) -> object:
    (folder / "predictions.csv").write_bytes(content)
    load_mistakes(folder / "predictions.csv", [0], [5] * 10)
    text = content.decode(errors="replace")
    with contextlib.suppress(PipelineError):
        parse_mistakes("HEAD", text, {}, {"images_per_class": {"test": [5] * 10}})
    return parse_predictions("HEAD", text)


def read_metrics(folder: Path, content: bytes) -> object:
    (folder / "metrics.json").write_bytes(content)
    load_json(folder / "metrics.json")
    metrics = parse_metrics("HEAD", Path("metrics.json"), content.decode(errors="replace"))
    with contextlib.suppress(PipelineError):
        parse_mistakes("HEAD", MISTAKES, metrics, metrics)
    return metrics


def read_lock(folder: Path, content: bytes) -> object:
    stages = stages_of("lock", parse_yaml("lock", content.decode(errors="replace")))
    list(inputs_of(stages, ("digits", "lenet5")))
    return [digest_of(stage, Path("data/raw/digits")) for stage in stages.values()]


def prepare(folder: Path) -> dict[str, tuple[Reader, list[bytes]]]:
    """Return each reader with good contents to begin from, and ones that promise too much."""
    save_split(folder, Split(np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.uint8)))
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    idx.write(folder / "images", images)
    plain = (folder / "images").read_bytes()
    description = Description.model_validate(DESCRIPTION)
    storage.save(folder / "model", build(description), description)
    checkpoints = Checkpoints(folder / "good", Interval(steps=1))
    checkpoints.save(Checkpoint(1, {"a": np.zeros(3)}, {"history": []}))
    saved = checkpoints.newest_path()
    assert saved is not None
    predictions = ",".join(COLUMNS) + "\n0,0,1,1,0.9\n0,1,2,3,0.8\n"
    metrics = {"n": 10, "errors": 1, "accuracy": 0.9, "evaluation": {"chunk_size": 3}}
    archives = []
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as archive:
            archive.writestr("a/images", plain)
            archive.writestr("labels", plain[:20])
        archives.append(packed.getvalue())
    promises = struct.pack(">4I", 0x803, 2**31, 2**16, 2**16)
    nested = (b"[" * 2000, b"[" * 2000 + b"]" * 2000)
    return {
        "idx": (
            read_idx,
            [
                each(content)
                for content in (plain, promises)
                for each in (bytes, gzip.compress, lzma.compress)
            ],
        ),
        "zip": (read_zip, archives),
        "npy": (read_npy, [(folder / "images.npy").read_bytes()]),
        "params": (read_params, [(ROOT / "params.yaml").read_bytes(), *nested, b"a: " * 99]),
        "model": (read_model, [(folder / "model").read_bytes()]),
        "checkpoint": (read_checkpoint, [saved.read_bytes()]),
        "predictions": (read_predictions, [predictions.encode()]),
        "metrics": (read_metrics, [json.dumps(metrics).encode(), b"[" * 100_000]),
        "lock": (read_lock, [(ROOT / "dvc.lock").read_bytes()[:4000], b"- " * 40_000]),
    }
