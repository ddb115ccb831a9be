"""Results as the stages write them, made up."""

import json
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core import paths
from pipeline.scores.load import Result
from pipeline.scores.predictions import collect

TABLE = pd.DataFrame(
    {
        "seed": 0,
        "index": range(6),
        "label": [0, 1, 2, 0, 1, 2],
        "prediction": [0, 2, 2, 1, 1, 0],
        "confidence": [0.9, 0.8, 0.7, 0.99, 0.6, 0.8],
    }
)
LABELS = [2, 2, 2]  # test images of each class in TABLE
CALIBRATION = pd.DataFrame(
    {
        "seed": 0,
        "calibrated": [0, 0, 1, 1],
        "confidence": [0.5, 0.9, 0.4, 0.8],
        "accuracy": [0.5, 1.0, 0.5, 1.0],
        "images": [2, 4, 2, 4],
    }
)


def misread(count: int, images: int = 200) -> pd.DataFrame:
    """Return predictions of which the first `count` are wrong."""
    wrong = np.arange(images) < count
    return pd.DataFrame(
        {
            "seed": 0, "index": range(images), "label": 0, "prediction": wrong.astype(int),
            "confidence": 0.9,
        }
    )  # fmt: skip


def make_result(
    variant: str, errors: float, predictions: pd.DataFrame = TABLE, seeds: int = 1
) -> Result:
    """Return the results of a variant with so many errors of 6 images."""
    curve = pd.DataFrame(
        {"seed": 0, "epoch": [1.0, 2.0], "loss": [0.5, 0.25], "accuracy": [0.75, 0.875]}
    )
    accuracy = 1 - errors / 6
    several: dict[str, Any] = {}
    if seeds > 1:
        shares = accuracy + 0.0123 * (np.arange(seeds) - (seeds - 1) / 2)
        several = {
            "accuracy_deviation": float(np.std(shares, ddof=1)),
            "by_seed": {str(seed): {"accuracy": float(shares[seed])} for seed in range(seeds)},
        }
    return Result(
        variant,
        training={
            "seeds": list(range(seeds)), "parameters": 12345, "samples": 30495, "epochs": 3.64,
            "precision": "float32",
        },
        metrics={
            "precision": "mixed_bfloat16", "n": 6, "errors": errors, "accuracy": accuracy,
            "balanced_accuracy": accuracy, "nll": 0.12345, "ece": 0.01, "temperature": 1.5,
            "calibrated_nll": 0.1, "calibrated_ece": 0.01, **several,
        },
        profile={
            "device": "CPU (Some)", "versions": {"tensorflow": "2", "keras": "3"},
            "training_images_per_second": 321.0, "evaluation_images_per_second": 1000.0,
            "chunk_size": 7, "peak_memory_mb": 12.3,
        },
        predictions=collect([predictions]),
        training_curve=curve,
        validation_curve=curve,
        calibration=CALIBRATION,
        memory=pd.DataFrame({"images": [1, 6], "peak_memory_mb": [2.5, 10.0]}),
    )  # fmt: skip


def make_ensemble(name: str, errors: int, predictions: pd.DataFrame = TABLE) -> Result:
    """Return the results of an ensemble, which is neither trained nor profiled."""
    whole = make_result(name, errors, predictions)
    return Result(name, whole.metrics, whole.predictions, whole.calibration)


def write_result(result: Result) -> None:
    """Write results of the data set `tiny` where its stages would."""

    def csv(table: pd.DataFrame) -> str:
        return table.to_csv(index=False)

    variant = result.variant
    evaluated = [
        (paths.metrics("tiny", variant), json.dumps(result.metrics)),
        (paths.mistakes("tiny", variant), csv(result.predictions.mistakes)),
        (paths.calibration("tiny", variant), csv(result.calibration)),
    ]
    trained = [
        (paths.training("tiny", variant), json.dumps(result.training)),
        (paths.profile("tiny", variant), json.dumps(result.profile)),
        (paths.curve("tiny", variant, "train"), csv(result.training_curve)),
        (paths.curve("tiny", variant, "validation"), csv(result.validation_curve)),
        (paths.memory("tiny", variant), csv(result.memory)),
    ]
    for path, content in evaluated + (trained if result.training else []):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
