import os
from pathlib import Path

import pytest

from dvc_flow.errors import ParamsError, SettingsError
from dvc_flow.params import set_params
from dvc_flow.settings import check_params, read_settings


def write(root: Path, text: str) -> None:
    (root / "pyproject.toml").write_text(text)


def test_a_project_without_settings_has_no_check(tmp_path: Path) -> None:
    """Neither a missing pyproject.toml nor one without the table adds anything."""
    assert read_settings(tmp_path).check is None
    write(tmp_path, "[project]\nname = 'other'\n")
    assert read_settings(tmp_path).check is None
    check_params(tmp_path, None, os.environ)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.dvc-flow]\nchek = 'x'\n", "chek"),
        ("[tool.dvc-flow]\ncheck = 3\n", "check"),
        ("[tool.dvc-flow]\nprogress = '('\n", "progress: .*not a regular expression"),
        ("[tool.dvc-flow]\nprogress = '%'\n", "progress: .*expected the groups"),
        ("[tool.dvc-flow", r"cannot be read"),
    ],
)
def test_wrong_settings_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    """An unknown key, a wrong type or invalid TOML is rejected by name."""
    write(tmp_path, text)
    with pytest.raises(SettingsError, match=message) as error:
        read_settings(tmp_path)
    assert "\n" not in str(error.value)


def test_the_check_says_why(tmp_path: Path) -> None:
    """A check that fails is quoted by its last line."""
    check = 'sh -c "echo noise; echo error: bad rate >&2; exit 1"'
    with pytest.raises(ParamsError, match=r"^bad rate$"):
        check_params(tmp_path, check, os.environ)
    with pytest.raises(ParamsError, match="no-such-command: cannot be run"):
        check_params(tmp_path, "no-such-command", os.environ)


def test_what_the_check_rejects_is_not_set(tmp_path: Path) -> None:
    """After a rejected --set, params.yaml has the bytes of before."""
    check = "grep -q 1 params.yaml"
    (tmp_path / "params.yaml").write_bytes(b"rate: 1  # a comment\r\n")
    with pytest.raises(ParamsError):
        set_params(tmp_path, ["rate=2"], check, os.environ)
    assert (tmp_path / "params.yaml").read_bytes() == b"rate: 1  # a comment\r\n"
    set_params(tmp_path, ["rate=11"], check, os.environ)
    assert (tmp_path / "params.yaml").read_bytes() == b"rate: 11  # a comment\r\n"
