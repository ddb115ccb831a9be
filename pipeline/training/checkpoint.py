"""Checkpoints: an interrupted training resumes from the last one, to byte-identical results.

They lie outside DVC's outputs, which DVC deletes before it runs a stage, in a folder named by a
hash of everything that the training depends on: those of other code, params or data are never
found. A file's name holds the SHA-256 of its content, so that a corrupt one is detected.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt, model_validator

from pipeline.core.errors import OutputError, TrainingError
from pipeline.core.files import PART_SUFFIX, sha256, try_lock, whole_file
from pipeline.core.params import Section

NOTES_KEY = "alexnet_mnist_checkpoint"
FILE_NAME = re.compile(r"step_\d+-[0-9a-f]{64}\.safetensors")
KEPT = 2  # the newest, and one in case it is corrupt


class Interval(Section):
    """How often to save: an interval in steps or in seconds."""

    steps: PositiveInt | None = None
    seconds: PositiveFloat | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Interval":
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("expected either steps or seconds, and not both")
        return self


class Checkpoint(NamedTuple):
    """A training after `step` steps: arrays by name, and notes for JSON."""

    step: int
    arrays: dict[str, NDArray[Any]]
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training, in their own folder.

    Parameters
    ----------
    folder : Path
    interval : Interval
    clock : callable
        Returns the time in seconds.
    """

    def __init__(
        self, folder: Path, interval: Interval, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder, self.interval, self.clock = folder, interval, clock
        self.saved_at = clock()

    def is_due(self, step: int) -> bool:
        """Tell whether it is time to save."""
        steps, seconds = self.interval.steps, self.interval.seconds
        return (steps is not None and step % steps == 0) or (
            seconds is not None and self.clock() - self.saved_at >= seconds
        )

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint atomically, and remove those that it replaces.

        A full disk does not abort training: it continues without this checkpoint and prints a
        warning.
        """
        content = safetensors.numpy.save(
            checkpoint.arrays, metadata={NOTES_KEY: json.dumps(checkpoint.notes)}
        )
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / f"step_{checkpoint.step:09}-{digest}.safetensors"
        try:
            with whole_file(path) as file:
                file.write(content)
        except OutputError as error:
            print(f"warning: no checkpoint at step {checkpoint.step:,}: {error}", flush=True)
        else:
            for old in self._paths()[KEPT:]:
                old.unlink(missing_ok=True)
        self.saved_at = self.clock()

    def newest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint, or None; corrupt ones are removed."""
        for part in self.folder.glob(f"*{PART_SUFFIX}"):
            part.unlink(missing_ok=True)
        for path in self._paths():
            try:
                return _read(path)
            except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
                print(f"warning: {path} is corrupt ({error}); using an older one", flush=True)
                path.unlink(missing_ok=True)
        return None

    def newest_path(self) -> Path | None:
        """Return the path of the newest checkpoint."""
        return next(iter(self._paths()), None)

    def _paths(self) -> list[Path]:
        """Return the files, the newest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if FILE_NAME.fullmatch(path.name)]
        return sorted(found, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.partition("-")[0].removeprefix("step_"))


def _read(path: Path) -> Checkpoint:
    if sha256(path) not in path.name:
        raise ValueError("its content does not match the hash in its name")
    with safetensors.safe_open(path, "numpy") as file:
        notes = json.loads(file.metadata()[NOTES_KEY])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return Checkpoint(_step_of(path), arrays, notes)


def key_of(inputs: Mapping[str, Any]) -> str:
    """Return a hash of everything that a training depends on."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def exclusive(folder: Path, key: str) -> Iterator[Path]:
    """Lock a variant's checkpoints in `folder`, and remove those of other inputs.

    Yields
    ------
    Path
        The folder for a `key` from `key_of`. It is removed when the block ends without an error.

    Raises
    ------
    TrainingError
        If another process holds the lock.
    OutputError
        If the folder cannot be written.
    """
    lock = folder / "lock"
    descriptor = try_lock(lock)
    if descriptor is None:
        raise TrainingError(f"{folder}: another process is training this; wait for it, or stop it")
    try:
        for other in folder.iterdir():
            if other.is_dir() and other.name != key:
                shutil.rmtree(other, ignore_errors=True)
        yield folder / key
        shutil.rmtree(folder / key, ignore_errors=True)
    finally:
        os.close(descriptor)


def are_finite(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Tell whether all numbers are finite."""
    return all(bool(np.isfinite(array).all()) for array in arrays.values())
