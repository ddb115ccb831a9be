"""What a project adds to its flow, in the table ``[tool.dvc-flow]`` of its pyproject.toml."""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from dvc_flow.errors import ParamsError, SettingsError, one_line

PROJECT_FILE = "pyproject.toml"


class Settings(BaseModel):
    """The keys of the table.

    Attributes
    ----------
    name : str
        The project's, for the server's automations.
    check : str or None
        A command that checks the params before anything runs. It is called at the project's root,
        and fails with a reason as its last line.
    progress : str
        A regular expression for the lines by which stages report progress. Its groups are
        ``percent``, and ``what`` to show.
    environment : dict of str
        Environment variables to add to every stage.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str = "dvc-flow"
    check: str | None = None
    progress: str = r"^(?P<what>.*?(?P<percent>\d{1,3})(\.\d+)? ?%.*)$"
    environment: dict[str, str] = {}

    @field_validator("progress")
    @classmethod
    def _has_groups(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from error
        if not {"percent", "what"} <= groups.keys():
            raise ValueError("expected the groups (?P<percent>…) and (?P<what>…)")
        return pattern


def read_settings(root: Path) -> Settings:
    """Return a project's settings; the defaults if it has none.

    Raises
    ------
    SettingsError
        If they cannot be read, or a key or a value is wrong.
    """
    path = root / PROJECT_FILE
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return Settings.model_validate(tables.get("tool", {}).get("dvc-flow", {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise SettingsError(f"{path}: [tool.dvc-flow] {place}: {first['msg']}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise SettingsError(f"{path}: cannot be read ({one_line(error)})") from error


def check_params(root: Path, check: str | None, environment: Mapping[str, str]) -> None:
    """Run the project's own check of its parameters, if there is one.

    Raises
    ------
    ParamsError
        If it fails; with its last line.
    """
    if check is None:
        return
    try:
        done = subprocess.run(  # noqa: S603 - the project's own command
            shlex.split(check),
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ParamsError(f"{check}: cannot be run ({error.strerror})") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit {done.returncode}"]
        raise ParamsError(lines[-1].removeprefix("error: "))
