"""Run one stage of a run that pulls: obtain what it needs, and hand it to ``dvc repro``.

``python -m flows.single STAGE [--lost] [--force]``. It is a process of its own beside others, in
one workspace, since DVC's locks are not for threads.
"""

import argparse
import sys
from pathlib import Path

from dvc.cli import main as dvc
from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.repo.reproduce import get_active_graph

from flows.errors import FlowError, StageFailed
from flows.graph import changes_of
from flows.remote import fetch_run, inputs_of, is_recorded

UNCHANGED = "Stage '{}' didn't change, skipping"  # as DVC says it


def obtain(root: Path, name: str, *, anyway: bool) -> bool:
    """Bring what a stage reads into the workspace, from the cache or a remote.

    An input is brought as a whole, even if the stage reads but a part of it: a part alone would
    look like a change of the stage that made it.

    Parameters
    ----------
    root : Path
    name : str
        The stage, as DVC addresses it.
    anyway : bool
        Whether it runs though nothing changed.

    Returns
    -------
    bool
        Whether there is a reason to run it; if there is none, nothing is brought.

    Raises
    ------
    StageFailed
        If something cannot be had.
    """
    with Repo(str(root), _wait_for_lock=True) as repo, lock_repo(repo):
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
        except DvcException as error:
            makers = " ".join(sorted({out.stage.addressing for out in missing}))
            raise StageFailed(
                f"{name}: {names} could not be fetched ({' '.join(str(error).split())}); look "
                f"whether DVC's remote answers, or make them again: dvc repro --force {makers}"
            ) from error
        fetch_run(repo, stage)
    return True


def main() -> int:
    """Obtain what the stage needs and reproduce it; return DVC's exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.single", description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("--lost", action="store_true", help="its outputs are nowhere")
    parser.add_argument("--force", action="store_true", help="run it though nothing changed")
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
