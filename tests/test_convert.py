import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML

from pipeline import convert, download, preprocess
from pipeline.core import paths
from pipeline.core.errors import DataError, PipelineError
from pipeline.datasets.splits import Split, SplitReader
from tests.answers.helpers import run_command
from tests.helpers import assert_one_clear_line, edit_params, no_parts

TRAIN, TEST, SIDE = 36, 12, 6
Arrays = dict[str, NDArray[Any]]


def make_arrays(classes: int = 3, channels: int = 0, first: int = 0) -> Arrays:
    """Return images of noise with labels, by role."""
    random = np.random.default_rng(0)
    arrays: Arrays = {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        shape = (count, SIDE, SIDE + 1) + ((channels,) if channels else ())
        arrays[f"{part}_images"] = random.integers(0, 256, shape, np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % classes + first
    return arrays


@pytest.fixture(autouse=True)
def in_project(project: Path) -> Path:
    return project


def call(source: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Convert a data set into the folder `made`; return the row that is printed."""
    convert.main(convert.parse_arguments([source, "made", *arguments]))
    printed = capsys.readouterr()
    assert printed.err.startswith("# add to the datasets in params.yaml")
    content: dict[str, Any] = YAML(typ="safe").load(f"datasets:\n{printed.out}")["datasets"]
    return content


def run_through(row: dict[str, Any]) -> dict[str, Split]:
    """Put a row into params.yaml, run the first two stages, and return the parts' arrays."""
    [name] = row

    def change(params: Any) -> None:
        params["datasets"].update(row)
        params["run"]["datasets"] = [name]

    edit_params(paths.PARAMS, change)
    done = run_command("check")
    assert done.returncode == 0, done.stderr
    download.main(name)
    preprocess.main(name)
    parts = {}
    for part in paths.SPLITS:
        with SplitReader(paths.prepared(name, part)) as reader:
            parts[part] = reader.read(0, len(reader))
    return parts


def assert_right(
    row: dict[str, Any], arrays: Arrays, labels: Callable[[NDArray[Any]], NDArray[Any]] = np.asarray
) -> None:
    """Check that the pipeline has the pixels and labels of the arrays."""
    parts = run_through(row)
    images, found = parts["test"]
    expected = arrays["test_images"].reshape(images.shape)
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(found, labels(arrays["test_labels"]))
    together = np.concatenate([parts[each][0] for each in ("train", "validation")])
    codes = np.concatenate([parts[each][1] for each in ("train", "validation")])
    received = sorted(zip(map(bytes, together), codes.tolist(), strict=True))
    wanted = labels(arrays["train_labels"]).tolist()
    assert received == sorted(zip(map(bytes, arrays["train_images"]), wanted, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["keras", "medmnist"])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_an_npz_file_runs_through_the_pipeline(
    naming: str, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arrays under either names, grey or coloured, come through with their pixels and labels."""
    arrays = make_arrays(channels=channels)
    if naming == "keras":
        keras = {"images": "x", "labels": "y"}
        named = {f"{keras[r.split('_')[1]]}_{r.split('_')[0]}": a for r, a in arrays.items()}
    else:
        named = {
            role: array.reshape(-1, 1) if role.endswith("labels") else array
            for role, array in arrays.items()
        } | {"val_images": arrays["test_images"]}
    np.savez("source.npz", allow_pickle=False, **named)
    row = call("source.npz", capsys)
    assert row["made"]["classes"] == 3
    assert ("images" in row["made"]["preprocess"]) == (channels == 3)
    assert_right(row, arrays)


@pytest.mark.parametrize("name", [None, "my_own"])
def test_the_row_has_the_files_hashes(name: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """The row names the data set after the folder, or as wished, with its files' hashes."""
    np.savez("source.npz", allow_pickle=False, **make_arrays())
    row = call("source.npz", capsys, *(["--name", name] if name else []))
    [(found, content)] = row.items()
    assert found == (name or "made")
    assert content["download"]["mirrors"] == [str(Path("made").resolve())]
    for role in paths.ROLES:
        digest = hashlib.sha256((Path("made") / role).read_bytes()).hexdigest()
        assert content["download"]["files"][role] == {"name": role, "sha256": digest}


def test_the_files_are_the_same_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Converting twice gives the same bytes and the same row."""
    np.savez("source.npz", allow_pickle=False, **make_arrays())
    first = call("source.npz", capsys)
    assert call("source.npz", capsys) == first
    assert no_parts(Path("made"))


def write_csv(arrays: Arrays, columns: Callable[[int], str] = "pixel{}".format) -> str:
    """Write square images as two CSV files; return their names."""
    for part in ("train", "test"):
        images = arrays[f"{part}_images"].reshape(len(arrays[f"{part}_labels"]), -1)
        table = pd.DataFrame(images, columns=[columns(place) for place in range(images.shape[1])])
        table.insert(0, "label", arrays[f"{part}_labels"])
        table.to_csv(f"{part}.csv", index=False)
    return "train.csv,test.csv"


def square(arrays: Arrays) -> Arrays:
    """Return the arrays with square images."""
    return {
        role: array[:, :, :SIDE] if role.endswith("images") else array
        for role, array in arrays.items()
    }


@pytest.mark.slow
def test_csv_files_run_through_the_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    """Two CSV files as on Kaggle come through with their pixels and labels."""
    arrays = square(make_arrays())
    assert_right(call(write_csv(arrays), capsys), arrays)


@pytest.mark.slow
def test_text_labels_are_the_classes(capsys: pytest.CaptureFixture[str]) -> None:
    """Labels that are text become numbers in the order of the names, which the row has."""
    arrays = square(make_arrays())
    names = np.array(["cow", "ant", "bee"])
    for role in ("train_labels", "test_labels"):
        arrays[role] = names[arrays[role]]
    row = call(write_csv(arrays), capsys)
    assert row["made"]["classes"] == ["ant", "bee", "cow"]
    assert_right(row, arrays, lambda labels: np.searchsorted(["ant", "bee", "cow"], labels))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "classes"), [(1, ["1", "2", "3"]), (-1, ["-1", "0", "1"])])
def test_labels_that_do_not_run_from_0_keep_their_names(
    first: int, classes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels from 1 on, and negative ones, become numbers with their own names."""
    arrays = make_arrays(first=first)
    np.savez("source.npz", allow_pickle=False, **arrays)
    row = call("source.npz", capsys)
    assert row["made"]["classes"] == classes
    assert_right(row, arrays, lambda labels: labels - first)


@pytest.mark.slow
def test_large_labels_are_classes_with_names(capsys: pytest.CaptureFixture[str]) -> None:
    """Labels beyond the largest number of classes become numbers, with their own names."""
    arrays = make_arrays()
    for role in ("train_labels", "test_labels"):
        arrays[role] = arrays[role] * 5000 + 7
    np.savez("source.npz", allow_pickle=False, **arrays)
    row = call("source.npz", capsys)
    assert row["made"]["classes"] == ["7", "5007", "10007"]
    assert_right(row, arrays, lambda labels: (labels - 7) // 5000)


def write_folders(arrays: Arrays, names: Sequence[str], kind: str = "png") -> Arrays:
    """Write pictures into a folder for each class; return the arrays in the files' order."""
    ordered: Arrays = {}
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = Path("source") / part / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:03}.{kind}")
        order = np.argsort(labels, kind="stable")
        ordered |= {f"{part}_images": images[order], f"{part}_labels": labels[order]}
    return ordered


@pytest.mark.slow
@pytest.mark.parametrize("channels", [0, 3])
def test_folders_run_through_the_pipeline(
    channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures in a folder for each class come through, grey or coloured, with its name."""
    arrays = write_folders(make_arrays(channels=channels), ["ant", "bee", "cow"])
    (Path("source/train/ant") / "notes.txt").write_text("no picture")
    row = call("source", capsys)
    assert row["made"]["classes"] == ["ant", "bee", "cow"]
    assert_right(row, arrays)


@pytest.mark.slow
def test_folders_of_numbers_are_sorted_as_names(capsys: pytest.CaptureFixture[str]) -> None:
    """Folders named by the digits are classes 0 to 9."""
    arrays = write_folders(make_arrays(classes=10), [*"0123456789"])
    row = call("source", capsys)
    assert row["made"]["classes"] == 10
    assert_right(row, arrays)


@pytest.mark.parametrize("channels", [0, 3])
def test_a_size_makes_pictures_equal(channels: int, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--size` pictures of any size become squares, and grey ones stay grey."""
    for part in ("train", "test"):
        for label, name in enumerate(("ant", "bee")):
            folder = Path("source") / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                shape = (10 + number, 8) + ((channels,) if channels else ())
                Image.fromarray(np.full(shape, 90 * (label + 1), np.uint8)).save(
                    folder / f"{number}.png"
                )
    row = call("source", capsys, "--size", "5")
    assert ("images" in row["made"]["preprocess"]) == bool(channels)
    size = (Path("made") / "train_images").stat().st_size
    assert size == 4 + 4 * (3 + bool(channels)) + 8 * 25 * max(channels, 1)
    pixels = np.frombuffer((Path("made") / "train_images").read_bytes(), np.uint8)
    last = pixels[-25 * max(channels, 1) :].reshape(5, 5, -1)
    assert (last[2, 2] == 180).all()


def savez(**changes: Any) -> str:
    """Write an .npz file with some arrays replaced or, where None, left out."""
    arrays = {key: value for key, value in (make_arrays() | changes).items() if value is not None}
    np.savez("source.npz", allow_pickle=True, **arrays)
    return "source.npz"


def with_line(text: str) -> str:
    """Write CSV files of which the first has another header."""
    names = write_csv(square(make_arrays()))
    content = Path("train.csv").read_text().partition("\n")[2]
    Path("train.csv").write_text(f"{text}\n{content}")
    return names


def folders(*more: Callable[[], Any]) -> str:
    """Write folders of pictures, and do what is wrong with them."""
    write_folders(make_arrays(), ["ant", "bee", "cow"])
    for each in more:
        each()
    return "source"


def save_wide() -> None:
    Image.new("L", (9, 9)).save("source/train/bee/wide.png")


def remove_test() -> None:
    for path in sorted(Path("source/test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def remove_pictures() -> None:
    for path in Path("source/test").rglob("*.png"):
        path.unlink()


PIXELS = ",".join(f"pixel{place}" for place in range(SIDE**2))
BAD: dict[str, tuple[Callable[[], str], str]] = {
    "missing": (lambda: "none.npz", "none.npz: cannot be read as .npz"),
    "no npz": (lambda: str(Path("no.npz").write_text("x"))[:0] + "no.npz", "cannot be read as .npz"),
    "pickle": (lambda: savez(train_labels=np.array([{}] * TRAIN)), "cannot be read as .npz"),
    "array": (lambda: savez(test_labels=None), "has no y_test or test_labels; it has "),
    "floats": (lambda: savez(train_images=np.zeros((TRAIN, 6, 6))), "train images are float64, expected integers"),
    "range": (
        lambda: savez(train_images=np.full((TRAIN, 6, 6), 256)), "of 256 to 256, expected integers",
    ),
    "negative": (lambda: savez(train_images=np.full((TRAIN, 6, 6), -1)), "of -1 to -1, expected"),
    "flat": (lambda: savez(train_images=np.zeros((TRAIN, 36), np.uint8)), "images of shape (36, 36)"),
    "channels": (
        lambda: savez(train_images=np.zeros((TRAIN, 6, 6, 4), np.uint8)), "of shape (36, 6, 6, 4)",
    ),
    "labels": (lambda: savez(train_labels=np.zeros(3, int)), "36 train images and 3 labels"),
    "columns": (lambda: savez(train_labels=np.zeros((TRAIN, 3), int)), "36 train images and 108"),
    "fractions": (lambda: savez(train_labels=np.arange(TRAIN) / 2), "labels are float64"),
    "not a number": (
        lambda: savez(train_labels=np.full(TRAIN, np.nan)), "labels are float64",
    ),
    "unknown label": (lambda: savez(test_labels=np.full(TEST, 3)), "the test label 3 is not in the"),
    "shapes": (
        lambda: savez(test_images=np.zeros((TEST, 5, 5), np.uint8)),
        "test images of shape (5, 5), and training images of shape (6, 7)",
    ),
    "one class": (
        lambda: savez(train_labels=np.full(TRAIN, "a"), test_labels=np.full(TEST, "a")),
        "has 1 classes, expected 2 to",
    ),
    "csv": (lambda: "none.csv,test.csv", "none.csv: cannot be read as CSV"),
    "no label": (lambda: with_line(f"labels,{PIXELS}"), "no column 'label'; did you mean 'labels'?"),
    "square": (lambda: write_csv(make_arrays()), "train.csv: 42 columns beside the label are no"),
    "text": (
        lambda: write_csv(square(make_arrays())) + str(
            Path("train.csv").write_text(f"label,{PIXELS}\n0,{','.join(['x'] * SIDE**2)}\n")
        )[:0],
        "train images are ",
    ),
    "missing label": (
        lambda: savez(
            train_labels=np.array(["a", "b"] * 18), test_labels=np.array(["a", "c"] * 6)
        ),
        "the test label 'c' is not in the training set",
    ),
    "empty label": (
        lambda: write_csv(
            square(make_arrays()) | {"train_labels": np.array(["a", None, "b"] * 12)}
        ),
        "train labels: one is missing",
    ),
    "empty csv": (
        lambda: write_csv(square(make_arrays())) + str(Path("train.csv").write_text(""))[:0],
        "train.csv: cannot be read as CSV",
    ),
    "nothing": (lambda: "none", "none: expected an .npz file, TRAIN.csv,TEST.csv, or a folder"),
    "no test": (lambda: folders(remove_test), "source/test: expected a folder for each class"),
    "no pictures": (lambda: folders(remove_pictures), "source/test: has no picture in its folders"),
    "sizes": (lambda: folders(save_wide), "wide.png: has 9 × 9 pixels, the others 7 × 6; give them"),
    "class": (
        lambda: folders(lambda: Path("source/test/dog").mkdir()),
        "source/test: has the class 'dog', which source/train lacks",
    ),
    "damaged": (
        lambda: folders(lambda: Path("source/train/bee/bad.png").write_bytes(b"bad")),
        "bad.png: is not a picture",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str) -> None:
    """Each kind of bad input ends with one line that says what is wrong, and no file."""
    make, message = BAD[name]
    with pytest.raises(PipelineError) as error:
        convert.main(convert.parse_arguments([make(), "made"]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("made").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nothing", "damaged", "range"])
def test_bad_input_ends_the_command_with_one_clear_line(name: str) -> None:
    """The command itself ends with one clear line."""
    make, message = BAD[name]
    assert_one_clear_line(run_command("convert", make(), "made"), message)


@pytest.mark.parametrize("name", ["My Own", "../out", "ä", "-x", ""])
def test_a_name_that_cannot_be_is_rejected(name: str) -> None:
    """A name that params.yaml would not take is rejected before anything is written."""
    source = savez()
    if name:
        with pytest.raises(DataError, match="cannot name a data set; choose a --name"):
            convert.main(convert.parse_arguments([source, "made", f"--name={name}"]))
        assert not Path("made").exists()
    with pytest.raises(DataError, match="'my-own' cannot name a data set"):
        convert.main(convert.parse_arguments([source, "My-Own"]))


@pytest.mark.parametrize("size", ["0", "-3", "x"])
def test_a_size_that_cannot_be_is_rejected(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A size of no pixels, or none at all, is rejected by the command line."""
    with pytest.raises(SystemExit):
        convert.parse_arguments(["source", "made", f"--size={size}"])
    assert "--size" in capsys.readouterr().err


def test_an_unwritable_folder_is_named() -> None:
    """If the folder cannot be written, the error says so."""
    source = savez()
    Path("made").write_text("a file where a folder should be")
    with pytest.raises(PipelineError, match="made/train_images: cannot be written"):
        convert.main(convert.parse_arguments([source, "made"]))
    assert re.fullmatch("a file.*", Path("made").read_text())
