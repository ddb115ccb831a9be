from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dvc_flow.errors import ParamsError
from dvc_flow.params import changed_params, set_params
from tests.helpers import ROOT

TEXT = """\
train:        # a comment
  rate: 0.1   # another one
  layers: [{type: conv, filters: 4}, {type: dense}]
  schedule:
    warmup: 0.05

  # a note
  seed: 0
"""


ALIASES = """\
common: &common
  rate: 0.1
rows:
  first:
    drop: &drop {rate: 0.5}
    layers:
      - *drop
      - *drop  # the last one

# a note
after: 1
one:
  train: *common
  # its end
last: *common
"""


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("assignment", "old", "new"),
    [
        ("train.rate=0.2", "0.1 ", "0.2 "),
        ("train.layers.0.filters=8", "filters: 4", "filters: 8"),
        ("train.layers=[]", "[{type: conv, filters: 4}, {type: dense}]", "[]"),
        ("train.schedule={warmup: 0}", "warmup: 0.05", "{warmup: 0}"),
        ("train.seed=1", "seed: 0", "seed: 1"),
    ],
)
def test_one_value_changes_and_nothing_else(
    params: Path, assignment: str, old: str, new: str
) -> None:
    """The value is replaced; comments, blank lines and layout stay."""
    set_params(params.parent, [assignment], None, {})
    changed = params.read_text()
    assert changed == TEXT.replace(old, new)
    assert YAML(typ="safe").load(changed) != YAML(typ="safe").load(TEXT)


@pytest.mark.parametrize(
    ("assignment", "old"),
    [
        ("rows.first.layers=[]", "\n      - *drop\n      - *drop"),
        ("rows={}", None),
        ("one={train: 2}", "\n  train: *common"),
        ("common.rate=0.2", "0.1"),
    ],
)
def test_a_block_may_end_with_an_alias(tmp_path: Path, assignment: str, old: str | None) -> None:
    """A block whose last value is an alias is replaced as a whole, and nothing after it."""
    path = tmp_path / "params.yaml"
    path.write_text(ALIASES)
    set_params(tmp_path, [assignment], None, {})
    content = YAML(typ="safe").load(path.read_text())
    assert content["after"] == 1
    assert "# a note\nafter: 1\n" in path.read_text()
    if old is not None:
        head, _, tail = ALIASES.partition(old)
        assert path.read_text().startswith(head.rstrip())
        assert path.read_text().endswith(tail)


@pytest.mark.parametrize("key", ["one.train.rate", "last", "rows.first.layers.1.rate"])
def test_an_alias_is_not_set(tmp_path: Path, key: str) -> None:
    """What is an alias is refused: setting it would change another key as well."""
    path = tmp_path / "params.yaml"
    path.write_text(ALIASES)
    with pytest.raises(ParamsError, match="is an alias, and its value is another key's too"):
        set_params(tmp_path, [f"{key}=9"], None, {})
    assert path.read_text() == ALIASES


def test_the_projects_own_params_keep_every_line(tmp_path: Path) -> None:
    """In the real params.yaml, one line differs."""
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text)
    set_params(tmp_path, ["variants.lenet5.learning_rate=0.002", "run.datasets=[digits]"], None, {})
    lines = zip(text.splitlines(), (tmp_path / "params.yaml").read_text().splitlines(), strict=True)
    assert [new.strip() for old, new in lines if old != new] == [
        "datasets: [digits]",
        "learning_rate: 0.002",
    ]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.rte=1", "train: there is no 'rte'; did you mean 'rate'"),
        ("trin.rate=1", "the top: there is no 'trin'; did you mean 'train'"),
        ("train.layers.7=1", "train.layers: there is no '7'"),
        ("train.rate.x=1", "train.rate: there is no 'x'; it is a single value"),
        ("train.rate", "expected key=value"),
        ("train.rate=", "expected key=value"),
        ("train.rate=[", "is not a value in YAML"),
        ("train.rate=[&a 1, &a 2]", "is not a value in YAML"),
    ],
)
def test_what_cannot_be_set_is_refused(params: Path, assignment: str, message: str) -> None:
    """An unknown key, or no value, is refused with the remedy, and nothing is written."""
    with pytest.raises(ParamsError, match=message):
        set_params(params.parent, ["train.seed=5", assignment], None, {})
    assert params.read_text() == TEXT


def test_a_file_that_is_missing_or_broken_is_one_line(tmp_path: Path) -> None:
    """Without a readable params.yaml nothing can be set."""
    with pytest.raises(ParamsError, match="cannot be read"):
        set_params(tmp_path, ["a=1"], None, {})
    for broken in ("a: [", "a: &x 1\nb: &x 2"):
        (tmp_path / "params.yaml").write_text(broken)
        with pytest.raises(ParamsError, match="cannot be read") as error:
            set_params(tmp_path, ["a=1"], None, {})
        assert "\n" not in str(error.value)


def test_a_change_can_be_for_a_while(params: Path) -> None:
    """Afterwards the file has its bytes again, whatever happened."""
    with pytest.raises(RuntimeError), changed_params(params.parent, ["train.seed=1"], None, {}):
        assert "seed: 1" in params.read_text()
        raise RuntimeError
    assert params.read_text() == TEXT
