import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.core.errors import TrainingError
from pipeline.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    Interval,
    are_finite,
    exclusive,
    key_of,
)

EVERY_STEP = Interval(steps=1)


def at(step: int) -> Checkpoint:
    """Return a checkpoint whose content depends on its step."""
    arrays = {"weights": np.full((2, 3), step, np.float32), "state": np.array([7, step], np.uint32)}
    return Checkpoint(step, arrays, {"history": [{"step": step, "loss": 0.1 + 0.2}]})


def assert_same(found: Checkpoint | None, expected: Checkpoint) -> None:
    assert found is not None
    assert (found.step, found.notes) == (expected.step, expected.notes)
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path: Path) -> None:
    """A checkpoint is read back with its arrays, their types and its notes, to the bit."""
    Checkpoints(tmp_path, EVERY_STEP).save(at(12))
    assert_same(Checkpoints(tmp_path, EVERY_STEP).newest(), at(12))


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    """The newest checkpoint and the one before it are kept, and older ones removed."""
    checkpoints = Checkpoints(tmp_path, EVERY_STEP)
    for step in (8, 9, 10, 11):
        checkpoints.save(at(step))
    assert sorted(path.name[:14] for path in tmp_path.iterdir()) == [
        "step_000000010", "step_000000011",
    ]  # fmt: skip
    assert_same(checkpoints.newest(), at(11))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda path: os.truncate(path, 40),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(b"\xff" * 100),
    ],
)
def test_a_corrupt_checkpoint_is_removed_and_the_one_before_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object]
) -> None:
    """A corrupt checkpoint is reported and removed, and the one before it is used."""
    checkpoints = Checkpoints(tmp_path, EVERY_STEP)
    for step in (1, 2):
        checkpoints.save(at(step))
    newest = checkpoints.newest_path()
    assert newest is not None
    damage(newest)
    assert_same(checkpoints.newest(), at(1))
    assert f"{newest} is corrupt" in capsys.readouterr().out
    assert not newest.exists()


def test_half_written_checkpoints_are_removed(tmp_path: Path) -> None:
    """What a killed process had half-written is ignored, and removed at the next start."""
    part = tmp_path / "step_000000003-00.safetensors.part"
    part.write_bytes(b"half")
    assert Checkpoints(tmp_path, EVERY_STEP).newest() is None
    assert not part.exists()


def test_a_full_disk_does_not_end_a_training(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that does not fit on the disk is reported, and the one before it is kept."""
    checkpoints = Checkpoints(small_disk, EVERY_STEP)
    checkpoints.save(at(1))
    checkpoints.save(Checkpoint(2, {"weights": np.zeros(100_000)}, {}))
    assert "warning: no checkpoint at step 2" in capsys.readouterr().out
    assert_same(checkpoints.newest(), at(1))


def test_checkpoints_are_due_by_steps_or_seconds(tmp_path: Path) -> None:
    """A checkpoint is due after a number of steps, or of seconds since the last one."""
    by_steps = Checkpoints(tmp_path, Interval(steps=5))
    assert [step for step in range(1, 12) if by_steps.is_due(step)] == [5, 10]
    now = [0.0]
    by_seconds = Checkpoints(tmp_path, Interval(seconds=60), clock=lambda: now[0])
    assert not by_seconds.is_due(1)
    now[0] = 61.0
    assert by_seconds.is_due(2)
    by_seconds.save(at(2))
    assert not by_seconds.is_due(3)


@pytest.mark.parametrize(
    "given", [{}, {"steps": 1, "seconds": 1.0}, {"steps": 0}, {"seconds": 0.0}]
)
def test_an_interval_is_either_steps_or_seconds(given: dict[str, float]) -> None:
    """An interval that is neither, or both, or zero, is rejected."""
    with pytest.raises(ValidationError):
        Interval.model_validate(given)


def test_the_key_depends_on_all_inputs_and_on_nothing_else() -> None:
    """Any difference in the inputs gives another key; the order of their names does not."""
    inputs = {"code": ["a", "b"], "params": {"rate": 0.1}}
    assert key_of(inputs) == key_of(dict(reversed(inputs.items())))
    assert key_of(inputs) != key_of(inputs | {"params": {"rate": 0.2}})
    assert key_of(inputs) != key_of(inputs | {"code": ["a", "c"]})


def test_checkpoints_of_other_inputs_are_removed(tmp_path: Path) -> None:
    """A training removes checkpoints of other inputs when it starts, and its own when it ends."""
    (tmp_path / "other/seed_0").mkdir(parents=True)
    with exclusive(tmp_path, "mine") as folder:
        assert folder == tmp_path / "mine"
        assert not (tmp_path / "other").exists()
        folder.mkdir()
    assert not folder.exists()


def test_a_training_that_fails_keeps_its_checkpoints(tmp_path: Path) -> None:
    """After an error the checkpoints are kept."""
    with pytest.raises(RuntimeError), exclusive(tmp_path, "mine") as folder:
        folder.mkdir()
        raise RuntimeError
    assert folder.is_dir()


def test_two_processes_cannot_train_the_same(tmp_path: Path) -> None:
    """While one process holds the checkpoints, another one is rejected; afterwards it is not."""
    refused = pytest.raises(TrainingError, match="another process is training this; wait")
    with exclusive(tmp_path, "a"), refused, exclusive(tmp_path, "a"):
        pass
    with exclusive(tmp_path, "a"):
        pass


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_noticed(bad: float) -> None:
    """A single number that is not finite is noticed in any array."""
    good: dict[str, NDArray[Any]] = {"a": np.zeros(3), "b": np.array([1], np.uint32)}
    assert are_finite(good)
    assert not are_finite(good | {"c": np.array([1.0, bad])})
