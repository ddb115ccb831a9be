"""Models on disk: a file holds numbers and their description, and reading it runs no code.

A model file is a safetensors file: weights by layer name and, in its header as JSON, the network,
the image shape and the classes.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import ValidationError

from pipeline.core.errors import ModelError, one_line
from pipeline.core.files import whole_file
from pipeline.network.build import Description, LoadedModel, build_for_inference
from pipeline.network.folding import fold
from pipeline.network.framework import keras

HEADER_KEY = "alexnet_mnist"
SEED_FILE = re.compile(r"seed_(\d+)\.safetensors")
FLOAT32_BYTES = 4
REMEDY = "train it again"


def trained_seeds(folder: Path) -> list[int]:
    """Return the seeds of the models in a variant's folder, sorted.

    Raises
    ------
    ModelError
        If there is no model.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    seeds = sorted(int(match[1]) for match in map(SEED_FILE.fullmatch, names) if match)
    if not seeds:
        raise ModelError(f"{folder}: expected models, seed_<number>.safetensors; train the variant")
    return seeds


def remove_all(folder: Path) -> None:
    """Remove a variant's models, so that none of an earlier training remains."""
    with suppress(ModelError):
        for seed in trained_seeds(folder):
            (folder / f"seed_{seed}.safetensors").unlink()


def save(path: Path, network: keras.Model, description: Description) -> None:
    """Write a trained network, its batch norms folded, to `path`; equal ones give equal bytes.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    folded, weights = fold(network, description)
    # A single key, since safetensors does not keep the order of several.
    header = {HEADER_KEY: folded.model_dump_json()}
    content = safetensors.numpy.save(weights, metadata=header)
    with whole_file(path) as file:
        file.write(content)


def describe(path: Path) -> Description:
    """Return the description of the model in a file.

    Raises
    ------
    ModelError
        If the file is missing or corrupt, or was not written by `save`.
    """
    with _reading(path), safetensors.safe_open(path, "numpy") as file:
        return _header(path, file)


def load(path: Path, precision: str = "float32") -> LoadedModel:
    """Return the model in a file, for inference.

    Parameters
    ----------
    path : Path
    precision : {"float32", "mixed_bfloat16"}
        See `build_for_inference`.

    Raises
    ------
    ModelError
        If the file is missing or corrupt, or was not written by `save`.
    """
    with _reading(path), safetensors.safe_open(path, "numpy") as file:
        description = _header(path, file)
        if description.parameters * FLOAT32_BYTES > path.stat().st_size:  # or too large for memory
            raise ModelError(f"{path}: is too short for its {description.parameters:,} weights")
        loaded = build_for_inference(description, precision)
        weights = {weight.path: weight for weight in loaded.network.trainable_variables}
        if set(file.keys()) != set(weights):
            raise ModelError(f"{path}: its weights do not match its layers; {REMEDY}")
        for name, weight in weights.items():
            array = file.get_tensor(name)
            if array.shape != tuple(weight.shape) or array.dtype != np.float32:
                raise ModelError(
                    f"{path}: {name}: expected float32 of shape {tuple(weight.shape)}, "
                    f"received {array.dtype} of shape {array.shape}; {REMEDY}"
                )
            weight.assign(array)
    return loaded


def _header(path: Path, file: Any) -> Description:
    header = (file.metadata() or {}).get(HEADER_KEY)
    if header is None:
        raise ModelError(f"{path}: has no {HEADER_KEY!r} header: is it from another project?")
    return Description.model_validate(json.loads(header))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as a model ({error}); {REMEDY}") from error
    except (ValidationError, ValueError) as error:
        reason = one_line(error)
        raise ModelError(f"{path}: its description is damaged ({reason}); {REMEDY}") from error
