"""Run one stage with ``--pull``: fetch what it needs, then hand it to ``dvc repro``.

``python -m flows.single STAGE [--lost] [--force]`` runs as its own process, since DVC's locks are
not safe for threads.
"""

import argparse
import sys
from contextlib import chdir
from pathlib import Path

from dvc.cli import main as dvc
from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.repo.reproduce import get_active_graph

from flows.errors import FlowError, StageFailed, one_line
from flows.graph import changes_of
from flows.remote import fetch_run, inputs_of, is_recorded

UNCHANGED = "Stage '{}' didn't change, skipping"  # as DVC says it


def obtain(root: Path, name: str, *, anyway: bool) -> bool:
    """Fetch the inputs of a stage from the cache or a remote, unless nothing changed.

    An output that is needed is fetched as a whole, even if the stage reads only a part of it: a
    part alone would look like a change of the stage that made it.

    Parameters
    ----------
    root : Path
    name : str
        The stage, as DVC addresses it.
    anyway : bool
        Run it even if nothing changed.

    Returns
    -------
    bool
        Whether there is a reason to run it; if not, nothing is fetched.

    Raises
    ------
    StageFailed
        If an input cannot be fetched.
    """
    # DVC names stages as seen from the current folder.
    with chdir(root), Repo(str(root), _wait_for_lock=True) as repo, lock_repo(repo):
        graph = get_active_graph(repo.index.graph)
        stage = next(each for each in graph if each.addressing == name)
        upstream = list(graph.successors(stage))
        if not anyway and not changes_of(stage, upstream)[0]:
            return False
        missing = [out for out in inputs_of(stage, upstream) if is_recorded(out)]
        names = ", ".join(map(str, missing))
        try:
            if missing:
                print(f"{name}: fetching {names}", flush=True)
                repo.pull([out.fs_path for out in missing], force=True)
        except (DvcException, OSError) as error:
            makers = " ".join(sorted({out.stage.addressing for out in missing}))
            raise StageFailed(
                f"{name}: {names} could not be fetched ({one_line(error)}); check "
                f"that DVC's remote answers, or make them again: dvc repro --force {makers}"
            ) from error
        try:
            fetch_run(repo, stage)
        # Each kind of remote has a library of its own; without earlier runs, the stage runs.
        except Exception as error:
            print(f"{name}: earlier runs could not be fetched ({one_line(error)})", flush=True)
    return True


def main() -> int:
    """Fetch what the stage needs and reproduce it; return DVC's exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.single", description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("--lost", action="store_true", help="its outputs are nowhere")
    parser.add_argument("--force", action="store_true", help="run it even if nothing changed")
    asked = parser.parse_args()
    try:
        if not obtain(Path.cwd(), asked.stage, anyway=asked.lost or asked.force):
            print(UNCHANGED.format(asked.stage))
            return 0
    except (FlowError, DvcException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    force = ["--force"] * asked.force
    return int(dvc(["--wait-for-lock", "repro", "--single-item", *force, asked.stage]))


if __name__ == "__main__":
    sys.exit(main())
