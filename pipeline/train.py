"""Train a variant on a data set, for its budget of samples or epochs.

An interrupted training resumes from its last checkpoint and gives byte-identical results.
"""

import os
import statistics
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.core import paths
from pipeline.core.files import require_writable, sha256, write_json, write_text
from pipeline.core.params import Params
from pipeline.core.progress import Progress
from pipeline.core.stage import imported_code, require_unchanged, run_stage
from pipeline.datasets.splits import Classes, Split, map_split
from pipeline.network import storage
from pipeline.network.build import Description, build
from pipeline.network.device import Device, find_device
from pipeline.network.framework import keras, tf
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.loop import History, curve, train
from pipeline.training.recipe import BudgetOverride, Runtime, Train, Variant, count_steps


def summarise(
    histories: Mapping[int, History], parameters: int, batch_size: int, precision: str
) -> dict[str, Any]:
    """Return the size of a training and what it reached, averaged over seeds."""
    last = [history.validation[-1] for history in histories.values()]
    steps = int(last[0]["step"])
    return {
        "seeds": list(histories),
        "precision": precision,
        "parameters": parameters,
        "steps": steps,
        "samples": steps * batch_size,
        "epochs": round(last[0]["epoch"], 4),
        "validation_loss": round(statistics.mean(row["loss"] for row in last), 6),
        "validation_accuracy": round(statistics.mean(row["accuracy"] for row in last), 6),
    }


def affects_rounding(device: Device, precision: str) -> dict[str, Any]:
    """Return the machine properties that can affect floating-point results."""
    if device.kind == "GPU":
        return {"device": str(device), "precision": precision}
    rest = {"threads": _count_threads(), "precision": precision}
    if not device.instructions:
        return {"device": str(device), **rest}
    return {"instructions": device.instructions, **rest}


def _count_threads() -> int:
    """Return how many threads TensorFlow starts: one for each core that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main(dataset: str, variant: str) -> None:
    """Train `variant` on `dataset`; write models, learning curves and a summary."""
    params = Params()
    row: Variant = params.get(f"variants.{variant}", Variant)
    settings: Train = params.get("train", Train)
    override: BudgetOverride = params.get(f"datasets.{dataset}.train", BudgetOverride)
    classes: int = params.get(f"datasets.{dataset}.classes", Classes)
    runtime: Runtime = params.get("runtime", Runtime)
    splits = {name: map_split(paths.prepared(dataset, name)) for name in ("train", "validation")}
    images = splits["train"].images
    seeds = row.seeds or settings.seeds
    require_writable(
        paths.training(dataset, variant),
        *(paths.model(dataset, variant, seed) for seed in seeds),
        *(paths.curve(dataset, variant, name) for name in splits),
    )
    steps = count_steps(override.apply(row.budget), row.batch_size, len(images))

    device = find_device()
    precision = device.precision(settings.precision)
    strategy = device.strategy(row.batch_size)
    tf.config.experimental.enable_op_determinism()
    description = Description(
        dataset=dataset,
        variant=variant,
        image_shape=list(images.shape[1:]),
        classes=classes,
        network=row.network(),
    )
    key = checkpoint.key_of(
        {
            "code": sorted(imported_code().values()),
            "data": {
                f"{split}/{name}": sha256(paths.prepared(dataset, split) / f"{name}.npy")
                for split in splits
                for name in Split._fields
            },
            "params": [each.model_dump() for each in (row, settings, override)],
            "classes": classes,
            "machine": affects_rounding(device, precision),
            "versions": [tf.__version__, keras.__version__, np.__version__],
        }
    )
    print(
        f"{dataset}/{variant}: {description.parameters:,} parameters, {steps:,} steps of "
        f"{row.batch_size}, {f'{len(seeds)} seeds, ' if len(seeds) > 1 else ''}"
        f"{precision} on the {device}",
        flush=True,
    )
    histories = {}
    with checkpoint.exclusive(paths.checkpoints(dataset, variant), key) as folder:
        storage.remove_all(paths.models(dataset, variant))
        with Progress(
            f"train {dataset}/{variant}",
            steps * len(seeds),
            "steps",
            rate_unit="images",
            rate_per_unit=row.batch_size,
        ) as progress:
            for seed in seeds:
                with strategy.scope():
                    network = build(description, seed=seed, precision=precision)
                    histories[seed] = train(
                        network, row, settings, seed, splits, steps, progress,
                        Checkpoints(folder / f"seed_{seed}", runtime.checkpoint_every),
                    )  # fmt: skip
                storage.save(paths.model(dataset, variant, seed), network, description)

        for name in splits:
            write_text(paths.curve(dataset, variant, name), curve(histories, name))
        write_json(
            paths.training(dataset, variant),
            summarise(histories, description.parameters, row.batch_size, precision),
        )
        require_unchanged(params)  # if it fails, the checkpoints stay, in case the edit is reverted


if __name__ == "__main__":
    run_stage(main, "dataset", "variant")
