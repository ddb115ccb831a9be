import csv
import io
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import predict
from pipeline.answers.models import Model
from pipeline.answers.pictures import prepare, read_file
from pipeline.answers.settings import Pictures
from tests.answers.helpers import (
    SETTINGS,
    add_pictures,
    draw_two,
    encode,
    inverted,
    run_command,
    save_model,
)
from tests.helpers import assert_one_clear_line

PICTURES = Pictures(longer_side=20, centre="mass")


@pytest.fixture
def drawn(project: Path) -> Path:
    """A project with a model of two variants, and a folder of pictures."""
    add_pictures()
    save_model("tiny", "tiny_conv", temperature=0.5)
    save_model("tiny", "tiny_dense", 5)
    inside = project / "drawn/more"
    inside.mkdir(parents=True)
    draw_two().save(project / "drawn/two.png")
    inverted(draw_two(300)).save(inside / "other.JPG", "JPEG")
    (inside / "notes.txt").write_text("no picture")
    return project


def call(*arguments: str) -> None:
    predict.main(predict.parse_arguments(arguments))


def expected(name: str, variant: str = "tiny_conv") -> list[tuple[str, float]]:
    """Return the best guesses for a picture, from its own preparation and the model's own."""
    model = Model("tiny", variant, SETTINGS.model_copy(update={"precision": "auto"}))
    image = prepare(read_file(Path(name)), (28, 28, 1), PICTURES, name)
    probabilities = model.probabilities(image[None])[0]
    best = np.argsort(-probabilities)[:3]
    return [(str(label), float(probabilities[label])) for label in best]


def test_text_has_a_line_for_each_picture(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each picture has a line with the class, its confidence, and the two after it."""
    call("drawn/two.png", "--variant", "tiny_conv")
    (first, first_share), (second, second_share), (third, third_share) = expected("drawn/two.png")
    assert capsys.readouterr().out == (
        f"drawn/two.png: {first}  {first_share:.1%}  "
        f"(then {second} {second_share:.1%}, {third} {third_share:.1%})\n"
    )


def test_csv_has_a_row_for_each_picture(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CSV has a header and a row for each picture of a folder, in order."""
    call("drawn", "--variant", "tiny_conv", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["file"] for row in rows] == ["drawn/more/other.JPG", "drawn/two.png"]
    for row in rows:
        best = expected(row["file"])
        assert [row["class"], row["second"], row["third"]] == [name for name, _ in best]
        columns = ("confidence", "second_confidence", "third_confidence")
        assert [float(row[each]) for each in columns] == pytest.approx(
            [share for _, share in best], abs=1e-5
        )


def test_json_has_an_entry_for_each_picture(
    drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON has an entry for each picture, with its guesses."""
    call("drawn/two.png", "drawn/more/other.JPG", "--variant", "tiny_dense", "--format", "json")
    entries = json.loads(capsys.readouterr().out)
    assert [each["file"] for each in entries] == ["drawn/two.png", "drawn/more/other.JPG"]
    for each in entries:
        best = expected(each["file"], "tiny_dense")
        assert [guess["class"] for guess in each["guesses"]] == [name for name, _ in best]
        assert [guess["confidence"] for guess in each["guesses"]] == pytest.approx(
            [share for _, share in best], abs=1e-6
        )


def test_the_same_picture_may_be_named_twice(
    drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that is named twice is answered twice."""
    call("drawn/two.png", "drawn/two.png")
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_show_writes_what_the_network_sees(drawn: Path) -> None:
    """`--show` writes each prepared image as a PNG file, whose pixels are those of the image."""
    call("drawn", "--show", "seen")
    assert sorted(path.name for path in (drawn / "seen").iterdir()) == [
        "0000_other.png", "0001_two.png",
    ]  # fmt: skip
    image = prepare(read_file(Path("drawn/two.png")), (28, 28, 1), PICTURES, "it")
    seen = np.asarray(Image.open("seen/0001_two.png"))
    np.testing.assert_array_equal(seen, image[..., 0])


def test_pictures_of_several_chunks_are_shown_under_names_of_their_own(drawn: Path) -> None:
    """More pictures than a chunk holds are all written by `--show`, none over another."""
    params = drawn / "params.yaml"
    params.write_text(params.read_text().replace("chunk_size: auto", "chunk_size: 2"))
    for number in range(5):
        (drawn / f"all/{number}").mkdir(parents=True)
        draw_two(100 + number).save(drawn / f"all/{number}/same.png")
    call("all", "--show", "seen")
    assert sorted(path.name for path in (drawn / "seen").iterdir()) == [
        f"{number:04}_same.png" for number in range(5)
    ]


@pytest.mark.slow
def test_the_command_reads_standard_input(drawn: Path) -> None:
    """A hyphen is a picture on standard input; progress is not on standard output."""
    done = run_command(
        "predict", "-", "--variant", "tiny_conv", "--format", "csv", cwd=drawn,
        given=(drawn / "drawn/two.png").read_bytes(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    header, row = done.stdout.splitlines()
    assert header.startswith("file,class,confidence,second")
    assert row.split(",")[:2] == ["-", expected("drawn/two.png")[0][0]]
    assert "predict with tiny/tiny_conv: 1/1 pictures (100%)" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("form", ["text", "csv", "json"])
def test_an_unreadable_picture_among_good_ones(drawn: Path, form: str) -> None:
    """The others are answered, a warning names it, and the command ends with one clear line."""
    (drawn / "drawn/bad.png").write_bytes(b"bad")
    done = run_command("predict", "drawn", "drawn/none.png", "--format", form, cwd=drawn)
    assert_one_clear_line(done, "2 of 4 pictures could not be read; see above")
    assert done.stdout.count("two.png") == done.stdout.count("other.JPG") == 1
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert "warning: drawn/bad.png: is not a picture" in done.stderr
    assert "warning: drawn/none.png: cannot be read (No such file or directory)" in done.stderr
    if form == "json":
        assert len(json.loads(done.stdout)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["drawn", "--variant", "tiny_con"],
            "has no trained 'tiny_con'; did you mean 'tiny_conv'?",
        ),
        (["drawn", "--dataset", "tinny"], "tinny: has no trained model"),
        (["empty"], "empty: has no picture in it"),
        (["drawn", "--show", "params.yaml"], "cannot be written"),
    ],
)
def test_bad_input_is_one_clear_line(drawn: Path, arguments: list[str], message: str) -> None:
    """An unknown variant or data set, an empty folder or an unwritable one ends with one line."""
    (drawn / "empty").mkdir()
    assert_one_clear_line(run_command("predict", *arguments, cwd=drawn), message)


def test_empty_standard_input_is_no_picture(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing on standard input is no picture, which names standard input."""
    reading, writing = os.pipe()
    os.close(writing)
    with open(reading) as stream:
        monkeypatch.setattr("sys.stdin", stream)
        with pytest.raises(predict.UnreadableError, match="1 of 1 pictures could not be read"):
            call("-")
    assert "warning: standard input: is not a picture" in capsys.readouterr().err


def test_a_pipe_is_read_like_a_file(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A named pipe, as of a shell's process substitution, is read like a file."""
    os.mkfifo("pipe")
    content = encode(draw_two())
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(content))
    writer.start()
    call("pipe")
    writer.join()
    assert capsys.readouterr().out.startswith("pipe: ")


def test_a_data_set_without_settings_takes_pictures_as_they_are(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a data set that does not say how its images were made, pictures are only resized."""
    save_model("tiny", "tiny_conv", side=12, channels=3, classes=3, class_names=["ä", "b", "c"])
    draw_two(24).convert("RGB").save("two.png")
    call("two.png", "--format", "json", "--show", "seen")
    [entry] = json.loads(capsys.readouterr().out)
    assert {each["class"] for each in entry["guesses"]} == {"ä", "b", "c"}
    assert np.asarray(Image.open("seen/0000_two.png")).shape == (12, 12, 3)
