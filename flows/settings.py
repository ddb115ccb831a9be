"""What a project adds to its flow, in the table ``[tool.dvc-flow]`` of its pyproject.toml."""

import shlex
import subprocess
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from flows.errors import ParamsError, one_line
from flows.execute import environment

PROJECT_FILE = "pyproject.toml"


class Settings(BaseModel):
    """The keys of the table.

    Attributes
    ----------
    check : str or None
        A command that checks params.yaml before anything runs. It is called at the project's root,
        and fails with a reason on stderr.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    check: str | None = None


def read_settings(root: Path) -> Settings:
    """Return a project's settings; the defaults if it has none.

    Raises
    ------
    ParamsError
        If they cannot be read, or a key is unknown.
    """
    path = root / PROJECT_FILE
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return Settings.model_validate(tables.get("tool", {}).get("dvc-flow", {}))
    except (OSError, ValueError, ValidationError) as error:
        raise ParamsError(f"{path}: [tool.dvc-flow] cannot be read ({one_line(error)})") from error


def check_params(root: Path) -> None:
    """Run the project's own check of its parameters, if there is one.

    Raises
    ------
    ParamsError
        If it fails; with its last line.
    """
    check = read_settings(root).check
    if check is None:
        return
    try:
        done = subprocess.run(  # noqa: S603 - the project's own command
            shlex.split(check),
            cwd=root,
            env=environment({}),
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise ParamsError(f"{check}: cannot be run ({error.strerror})") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit {done.returncode}"]
        raise ParamsError(lines[-1].removeprefix("error: "))
