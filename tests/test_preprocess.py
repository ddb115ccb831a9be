import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import download, idx, paths, preprocess
from pipeline.data import Split, map_split
from pipeline.errors import DataError
from tests.conftest import (
    CLASSES,
    assert_one_clear_line,
    edit_params,
    make_images,
    run_stage,
    write_raw,
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw", make_images(120, seed=1), make_images(60, seed=2))
    return tmp_path / "raw"


def test_each_training_image_goes_to_one_split(raw: Path) -> None:
    """Each training image trains or validates, and the test set is left alone."""
    splits = preprocess.prepare(raw, CLASSES, 30, seed=0)
    known = make_images(120, seed=1).images
    both = np.concatenate([splits["train"].images, splits["validation"].images])
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in known)
    np.testing.assert_array_equal(splits["test"].images, make_images(60, seed=2).images)


def test_images_keep_their_labels(raw: Path) -> None:
    """Each image keeps its own label."""
    splits = preprocess.prepare(raw, CLASSES, 30, seed=0)
    labels = {
        image.tobytes(): label for image, label in zip(*make_images(120, seed=1), strict=True)
    }
    for split in ("train", "validation"):
        for image, label in zip(*splits[split], strict=True):
            assert labels[image.tobytes()] == label


def test_the_validation_split_is_stratified_and_seeded() -> None:
    """Each class validates in proportion; the seed alone decides which images."""
    labels = np.repeat(np.arange(3, dtype=np.uint8), [60, 30, 10])
    train, validation = preprocess.split_validation(labels, 20, seed=0)
    assert np.bincount(labels[validation]).tolist() == [12, 6, 2]
    assert len(train) == 80
    again = preprocess.split_validation(labels, 20, seed=0)
    np.testing.assert_array_equal(validation, again[1])
    other = preprocess.split_validation(labels, 20, seed=1)
    assert not np.array_equal(validation, other[1])


def test_the_summary_agrees_with_numpy() -> None:
    """Counts, mean and deviation are those that NumPy computes."""
    split = make_images(3000)
    summary = preprocess.summarise({"train": split, "test": make_images(9)}, CLASSES)
    assert summary["pixel_mean"] == round(float(split.images.mean()), 4)
    assert summary["pixel_deviation"] == round(float(split.images.std()), 4)
    assert summary["images"] == {"train": 3000, "test": 9}
    assert summary["images_per_class"] == {"train": [1000] * 3, "test": [3] * 3}
    assert summary["image_shape"] == [12, 12, 1]


def test_the_stage_writes_arrays_and_summary(project: Path) -> None:
    """The stage leaves three mapped splits of shape (n, height, width, 1), and the summary."""
    download.main("tiny")
    preprocess.main("tiny")
    sizes = {split: len(map_split(paths.prepared("tiny", split)).labels) for split in paths.SPLITS}
    assert sizes == {"train": 90, "validation": 30, "test": 60}
    assert map_split(paths.prepared("tiny", "test")).images.shape == (60, 12, 12, 1)
    assert json.loads(paths.summary("tiny").read_text())["images"] == sizes


def test_fewer_labels_than_images_are_refused(raw: Path) -> None:
    """60 images with 59 labels are refused."""
    idx.write(raw / "test_labels", make_images(59).labels)
    with pytest.raises(DataError, match="60 test images, but 59 test labels"):
        preprocess.prepare(raw, CLASSES, 30, seed=0)


def test_a_label_out_of_range_is_refused(raw: Path) -> None:
    """A label that is no class is refused, with its place and value."""
    labels = make_images(120, seed=1).labels.copy()
    labels[7] = 3
    idx.write(raw / "train_labels", labels)
    with pytest.raises(DataError, match="label 3 at index 7, expected 0 to 2"):
        preprocess.prepare(raw, CLASSES, 30, seed=0)


def test_test_images_of_another_size_are_refused(raw: Path) -> None:
    """Training and test images must be of one size."""
    idx.write(raw / "test_images", np.zeros((60, 14, 14), np.uint8))
    with pytest.raises(DataError, match=r"shape \(12, 12, 1\), but test images of shape \(14, 14"):
        preprocess.prepare(raw, CLASSES, 30, seed=0)


@pytest.mark.parametrize("size", [120, 2, 119])
def test_an_impossible_validation_split_is_refused(size: int) -> None:
    """A validation split that cannot be stratified is refused, with the remedy."""
    with pytest.raises(DataError, match="change the data set's validation_size"):
        preprocess.split_validation(make_images(120).labels, size, seed=0)


def test_bad_raw_data_is_one_clear_line_and_writes_nothing(project: Path) -> None:
    """Damaged raw data ends with one clear line, and nothing is prepared."""
    write_raw(paths.raw("tiny"), make_images(120), Split(*make_images(60)))
    whole = (paths.raw("tiny") / "test_images").read_bytes()
    (paths.raw("tiny") / "test_images").write_bytes(whole[:-20])
    assert_one_clear_line(
        run_stage("preprocess", "tiny", cwd=project), "test_images: truncated or damaged gzip data"
    )
    assert not (project / "data/prepared").exists()


def test_a_data_set_of_another_size_and_class_count_is_one_entry(project: Path) -> None:
    """Another image size and class count need an entry in params.yaml, and no code."""

    def change(params: dict) -> None:  # type: ignore[type-arg]
        params["datasets"]["wide"] = params["datasets"]["tiny"] | {"classes": 2}

    edit_params(project / "params.yaml", change)
    random = np.random.default_rng(0)
    split = Split(
        random.integers(0, 256, (80, 9, 17, 1), dtype=np.uint8),
        np.arange(80, dtype=np.uint8) % 2,
    )
    write_raw(paths.raw("wide"), split, split)
    preprocess.main("wide")
    assert json.loads(paths.summary("wide").read_text())["image_shape"] == [9, 17, 1]
