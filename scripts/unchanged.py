"""Say which models, predictions and prepared data in dvc.lock differ from the last commit's."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FOLDERS = ("data/", "models/", "predictions/")


def hashes_of(lock: str) -> dict[str, str]:
    """Return the hashes in a dvc.lock of what lies in `FOLDERS`, by path."""
    stages: dict[str, Any] = (YAML(typ="safe").load(lock) or {}).get("stages", {})
    return {
        out["path"]: out["md5"]
        for stage in stages.values()
        for out in stage.get("outs", [])
        if out["path"].startswith(FOLDERS)
    }


def main() -> int:
    """Name what differs; return 1 if something does."""
    committed = subprocess.run(
        ["git", "show", "HEAD:./dvc.lock"],  # noqa: S607
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    before, now = hashes_of(committed.stdout), hashes_of(Path("dvc.lock").read_text())
    changed = sorted(path for path in before.keys() & now.keys() if before[path] != now[path])
    for path in changed:
        print(f"error: {path} differs from the last commit's", file=sys.stderr)
    if not changed:
        print(f"{len(before.keys() & now.keys())} outputs are those of the last commit")
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())
