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
from pipeline.datasets.splits import Classes, Split, class_names, map_split
from pipeline.network import storage
from pipeline.network.build import Description, build
from pipeline.network.device import Device, find_device
from pipeline.network.framework import keras, tf
from pipeline.network.parts import lay_out, use_cores
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.learner import Learner, make_validation
from pipeline.training.loop import History, curve, train
from pipeline.training.recipe import BudgetOverride, Runtime, Train, Variant, count_steps


def summarise(
    histories: Mapping[int, History], parameters: int, batch_size: int, precision: str
) -> dict[str, Any]:
    """Return the size of a training and what it reached, averaged over seeds."""
    trained = next(iter(histories.values())).train[-1]
    last = [history.validation[-1] for history in histories.values() if history.validation]
    validated = {
        f"validation_{name}": round(statistics.mean(row[name] for row in last), 6)
        for name in ("loss", "accuracy")
        if last
    }
    return {
        "seeds": list(histories),
        "precision": precision,
        "parameters": parameters,
        "steps": int(trained["step"]),
        "samples": int(trained["step"]) * batch_size,
        "epochs": round(trained["epoch"], 4),
        **validated,
    }


def affects_rounding(device: Device, precision: str, parts: int) -> dict[str, Any]:
    """Return the machine properties that can affect floating-point results."""
    if device.kind == "GPU":
        return {"device": str(device), "precision": precision}
    rest = {"threads": 1 if parts > 1 else _count_threads(), "precision": precision}
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
    classes: int | list[str] = params.get(f"datasets.{dataset}.classes", Classes)
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
    if row.augmentation is not None:
        row.augmentation.require_fits(images.shape[1:])

    device = find_device()
    precision = device.precision(settings.precision)
    strategy = device.strategy(row.batch_size)
    tf.config.experimental.enable_op_determinism()
    description = Description(
        dataset=dataset,
        variant=variant,
        image_shape=list(images.shape[1:]),
        classes=len(class_names(classes)),
        network=row.network(),
        class_names=classes if isinstance(classes, list) else None,
    )
    layout = lay_out(description, row.batch_size, device)
    use_cores(layout.parts)
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
            "machine": affects_rounding(device, precision, layout.parts),
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
            with strategy.scope():
                network = build(description, seed=seeds[0], precision=precision)
                learner = Learner(network, row.batch_size, row.averaging, layout.parts)
                validate = make_validation(network, splits["validation"], row.batch_size)
            for seed in seeds:
                with strategy.scope():
                    if seed != seeds[0]:  # what is compiled serves all seeds
                        learner.restart(build(description, seed=seed, precision=precision))
                    histories[seed] = train(
                        learner, validate, row, settings, seed, splits, steps, layout.steps,
                        progress, Checkpoints(folder / f"seed_{seed}", runtime.checkpoint_every),
                    )  # fmt: skip
                calibrated = description.model_copy(
                    update={"temperature": histories[seed].temperature}
                )
                storage.save(paths.model(dataset, variant, seed), network, calibrated)

        for name in splits:
            write_text(paths.curve(dataset, variant, name), curve(histories, name))
        write_json(
            paths.training(dataset, variant),
            summarise(histories, description.parameters, row.batch_size, precision),
        )
        require_unchanged(params)  # if it fails, the checkpoints stay, in case the edit is reverted


if __name__ == "__main__":
    run_stage(main, "dataset", "variant")
