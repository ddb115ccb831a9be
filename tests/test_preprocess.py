import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import download, preprocess
from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.core.files import sha256
from pipeline.datasets import idx
from pipeline.datasets.splits import Split, map_split
from pipeline.preprocess import DatasetPreprocess
from tests.helpers import (
    CLASSES,
    assert_one_clear_line,
    edit_params,
    make_images,
    run_stage,
    write_idx,
    write_raw,
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw", make_images(120, seed=1), make_images(60, seed=2))
    return tmp_path / "raw"


def prepare(raw: Path, **settings: Any) -> dict[str, Split]:
    """Prepare raw files, and return the splits that have images."""
    folders = {name: raw.parent / name for name in paths.SPLITS}
    row = DatasetPreprocess.model_validate({"validation_size": 30} | settings)
    figures = preprocess.prepare(raw, folders, CLASSES, row, seed=0)
    return {name: map_split(folders[name]) for name in paths.SPLITS if figures["images"][name]}


def test_each_training_image_goes_to_one_split(raw: Path) -> None:
    """Each training image is in one split, and the test set is unchanged."""
    splits = prepare(raw)
    known = make_images(120, seed=1).images
    both = np.concatenate([splits["train"].images, splits["validation"].images])
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in known)
    np.testing.assert_array_equal(splits["test"].images, make_images(60, seed=2).images)


def test_images_keep_their_labels(raw: Path) -> None:
    """Each image keeps its label."""
    splits = prepare(raw)
    labels = {
        image.tobytes(): label for image, label in zip(*make_images(120, seed=1), strict=True)
    }
    for split in ("train", "validation"):
        for image, label in zip(*splits[split], strict=True):
            assert labels[image.tobytes()] == label


def test_the_validation_split_is_stratified_and_seeded() -> None:
    """Each class has its proportion of validation images, and the seed alone decides which."""
    labels = np.repeat(np.arange(3, dtype=np.uint8), [60, 30, 10])
    validates = preprocess.choose_validation(labels, 20, seed=0)
    assert np.bincount(labels[validates]).tolist() == [12, 6, 2]
    np.testing.assert_array_equal(validates, preprocess.choose_validation(labels, 20, seed=0))
    assert not np.array_equal(validates, preprocess.choose_validation(labels, 20, seed=1))


@given(
    counts=st.lists(st.integers(0, 300), min_size=2, max_size=12).filter(sum),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_each_class_has_its_share_to_the_nearest_image(
    counts: list[int], share: float, seed: int
) -> None:
    """The split has the requested size, and each class its share to within one image."""
    labels = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    size = max(1, round(share * len(labels)))
    try:
        validates = preprocess.choose_validation(labels, size, seed)
    except DataError:
        # Rejected only if a class could not be in both splits: its share or rest is below one.
        shares = np.array([count for count in counts if count]) * size / len(labels)
        rests = np.array([count for count in counts if count]) - shares
        assert min(shares.min(), rests.min()) <= 1
        return
    assert validates.sum() == size
    chosen = np.bincount(labels[validates], minlength=len(counts))
    assert np.all(np.abs(chosen - np.array(counts) * size / len(labels)) < 1)


def test_the_summary_agrees_with_numpy() -> None:
    """Counts, mean and deviation equal those that NumPy computes."""
    split, test = make_images(3000), make_images(9)
    summary = preprocess.Summary(CLASSES)
    for start in range(0, 3000, 700):
        summary.add("train", Split(*(array[start : start + 700] for array in split)))
    summary.add("test", test)
    figures = summary.figures((12, 12, 1))
    assert figures["pixel_mean"] == round(float(split.images.mean()), 4)
    assert figures["pixel_deviation"] == round(float(split.images.std()), 4)
    assert figures["images"] == {"train": 3000, "validation": 0, "test": 9}
    assert figures["images_per_class"]["train"] == [1000] * 3
    assert figures["image_shape"] == [12, 12, 1]


def test_the_stage_writes_arrays_and_summary(project: Path) -> None:
    """The stage writes three splits of shape (n, height, width, 1) and their summary."""
    download.main("tiny")
    preprocess.main("tiny")
    sizes = {split: len(map_split(paths.prepared("tiny", split)).labels) for split in paths.SPLITS}
    assert sizes == {"train": 90, "validation": 30, "test": 60}
    assert map_split(paths.prepared("tiny", "test")).images.shape == (60, 12, 12, 1)
    summary = json.loads(paths.summary("tiny").read_text())
    assert summary["images"] == sizes
    assert summary["sha256"] == {role: sha256(paths.raw("tiny") / role) for role in paths.ROLES}


def test_fewer_labels_than_images_are_rejected(raw: Path) -> None:
    """60 images with 59 labels are rejected."""
    idx.write(raw / "test_labels", make_images(59).labels)
    with pytest.raises(DataError, match="60 test images, but 59 test labels"):
        prepare(raw)


def test_a_label_out_of_range_is_rejected(raw: Path) -> None:
    """A label that is not a class is rejected, with its index and value."""
    labels = make_images(120, seed=1).labels.copy()
    labels[7] = 3
    idx.write(raw / "train_labels", labels)
    with pytest.raises(DataError, match="label 3 at index 7, expected 0 to 2"):
        prepare(raw)


def test_test_images_of_another_size_are_rejected(raw: Path) -> None:
    """Training and test images must have the same size."""
    idx.write(raw / "test_images", np.zeros((60, 14, 14), np.uint8))
    with pytest.raises(DataError, match=r"shape \(12, 12, 1\), but test .* of shape \(14, 14, 1"):
        prepare(raw)


def test_without_validation_all_images_are_trained_on(raw: Path) -> None:
    """With a size of 0 no image is chosen, whatever the labels, and all are for training."""
    assert not preprocess.choose_validation(np.array([0, 1, 1], np.uint8), 0, seed=0).any()
    splits = prepare(raw, validation_size=0)
    assert set(splits) == {"train", "test"}
    np.testing.assert_array_equal(splits["train"].images, make_images(120, seed=1).images)


@st.composite
def handwriting(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Draw the labels and the writers of some images."""
    count = draw(st.integers(1, 120))
    labels = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    writers = draw(st.lists(st.integers(-3, 12), min_size=count, max_size=count))
    return np.array(labels, np.uint8), np.array(writers, np.int64)


@given(images=handwriting(), size=st.integers(0, 130), seed=st.integers(0, 2**32))
def test_no_writer_is_on_both_sides(
    images: tuple[np.ndarray, np.ndarray], size: int, seed: int
) -> None:
    """Each writer is on one side, with at most the size asked for, and each class on both."""
    labels, writers = images
    try:
        validates = preprocess.choose_writers(labels, writers, size, seed)
    except DataError as error:
        assert "cannot be a validation split by writers of its own" in str(error)
        return
    assert validates.sum() <= size
    assert not set(writers[validates]) & set(writers[~validates])
    assert set(labels[validates]) == set(labels[~validates]) == set(labels)
    np.testing.assert_array_equal(validates, preprocess.choose_writers(labels, writers, size, seed))
    smallest = min(np.unique(writers[~validates], return_counts=True)[1])
    assert validates.sum() + smallest > size


def test_the_seed_decides_which_writers_validate() -> None:
    """Another seed chooses other writers."""
    labels = np.tile(np.arange(3, dtype=np.uint8), 40)
    writers = np.repeat(np.arange(40), 3)
    chosen = [preprocess.choose_writers(labels, writers, 30, seed) for seed in (0, 1)]
    assert [each.sum() for each in chosen] == [30, 30]
    assert not np.array_equal(chosen[0], chosen[1])


@pytest.mark.parametrize(
    ("labels", "writers", "size", "missing"),
    [
        ([0, 0, 1, 1], [7, 8, 9, 9], 1, 1),
        ([0, 0, 1, 1], [7, 8, 9, 9], 4, 0),
        ([0, 0, 0, 1], [7, 7, 7, 7], 3, 0),
    ],
)
def test_a_class_that_writers_leave_on_one_side_is_named(
    labels: list[int], writers: list[int], size: int, missing: int
) -> None:
    """If a class would be on one side alone, it is named with the remedy."""
    with pytest.raises(
        DataError, match=f"class {missing} would be on one side alone; change the data set's valid"
    ):
        preprocess.choose_writers(np.array(labels, np.uint8), np.array(writers), size, seed=0)


def test_writers_and_a_size_of_0_contradict_each_other() -> None:
    """Writers decide on the validation split, so there has to be one."""
    with pytest.raises(ValidationError, match="writers decide on the validation split, and valid"):
        DatasetPreprocess.model_validate({"validation_size": 0, "writers": {}})


@pytest.mark.parametrize("size", [120, 2, 119])
def test_an_impossible_validation_split_is_rejected(size: int) -> None:
    """A validation split that cannot be stratified is rejected, with the remedy."""
    with pytest.raises(DataError, match="change the data set's validation_size"):
        preprocess.choose_validation(make_images(120).labels, size, seed=0)


def test_a_class_with_one_image_is_named() -> None:
    """A class with one training image, which no size could split, is named with a true remedy."""
    labels = np.array([0] * 50 + [1] + [2] * 50, np.uint8)
    with pytest.raises(DataError, match="class 1 has one training image.*; add images of it"):
        preprocess.choose_validation(labels, 20, seed=0)


def test_bad_raw_data_is_one_clear_line_and_writes_nothing(project: Path) -> None:
    """Damaged raw data ends the stage with one clear line, and nothing is written."""
    write_raw(paths.raw("tiny"), make_images(120), Split(*make_images(60)))
    whole = (paths.raw("tiny") / "test_images").read_bytes()
    (paths.raw("tiny") / "test_images").write_bytes(whole[:-20])
    assert_one_clear_line(
        run_stage("preprocess", "tiny", cwd=project),
        "test_images: truncated or damaged compressed data",
    )
    assert not [path for path in (project / "data/prepared").rglob("*") if path.is_file()]


def test_a_data_set_of_another_size_and_class_count_is_one_entry(project: Path) -> None:
    """A data set with another image size and class count needs a row in params.yaml and no code."""

    def change(params: Any) -> None:
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


def set_preprocess(project: Path, **settings: object) -> None:
    edit_params(
        project / "params.yaml",
        lambda params: params["datasets"]["tiny"].update(preprocess=settings),
    )


def test_the_stage_keeps_writers_apart(project: Path) -> None:
    """With known writers the stage validates on images by some of them, and trains on the rest."""
    set_preprocess(project, validation_size=30, writers={"column": 1, "label_column": 0})
    download.main("tiny")
    train = make_images(120, seed=1)
    writers = np.repeat(np.arange(12), 10)
    table = np.stack([train.labels, writers], axis=1).astype(np.int32)
    write_idx(paths.raw("tiny") / paths.WRITERS, table)
    preprocess.main("tiny")
    by = {image.tobytes(): who for image, who in zip(train.images, writers, strict=True)}
    sides = [
        {by[image.tobytes()] for image in map_split(paths.prepared("tiny", name)).images}
        for name in ("train", "validation")
    ]
    assert not sides[0] & sides[1]
    assert (len(sides[0]), len(sides[1])) == (9, 3)
    hashes = json.loads(paths.summary("tiny").read_text())["sha256"]
    assert hashes[paths.WRITERS] == sha256(paths.raw("tiny") / paths.WRITERS)


def test_writers_that_are_not_there_are_one_clear_line(project: Path) -> None:
    """If the file of the writers is missing, the stage names it in one line."""
    set_preprocess(project, validation_size=30, writers={})
    download.main("tiny")
    assert_one_clear_line(
        run_stage("preprocess", "tiny", cwd=project), "data/raw/tiny/train_writers: cannot be read"
    )
    assert not (project / "data/prepared").exists()


def test_a_data_set_in_colour_with_named_classes_is_one_entry(project: Path) -> None:
    """Colours, offsets and names of classes need settings of the data set and no code."""

    def change(params: Any) -> None:
        params["datasets"]["tiny"] |= {
            "classes": ["cat", "dog"],
            "preprocess": {
                "validation_size": 20,
                "images": {"layout": "NCHW", "range": [0, 1]},
                "labels": {"offset": 1},
            },
        }

    edit_params(project / "params.yaml", change)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (80, 3, 6, 5), dtype=np.uint8)
    labels = np.arange(80, dtype=np.uint8) % 2
    for part in ("train", "test"):
        write_idx(paths.raw("tiny") / f"{part}_images", (pixels / 255).astype(np.float32))
        write_idx(paths.raw("tiny") / f"{part}_labels", labels + 1)
    preprocess.main("tiny")
    test = map_split(paths.prepared("tiny", "test"))
    np.testing.assert_array_equal(test.images, np.moveaxis(pixels, 1, -1))
    np.testing.assert_array_equal(test.labels, labels)
    assert json.loads(paths.summary("tiny").read_text())["image_shape"] == [6, 5, 3]
