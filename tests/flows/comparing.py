"""`dvc repro` in one copy of a repository and the flow in another, both in this process."""

import logging
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from dvc.cli import main as dvc

from dvc_flow.errors import FlowError
from dvc_flow.orchestrated import run as flow
from tests.flows.conftest import contents, difference


def compare_runs(theirs: Path, ours: Path, jobs: int, all_pipelines: bool) -> None:
    """Run `dvc repro` in one copy of a repository and the flow in another; compare all files."""
    # With several jobs, stages that dvc repro would not have reached may have begun by a failure.
    keep_going = jobs > 1
    with chdir(theirs), silent():
        code = dvc(["repro", "-q", *["-P"] * all_pipelines, *["-k"] * keep_going])
    with chdir(ours):
        failed = None
        try:
            flow({
                "jobs": jobs, "all_pipelines": all_pipelines, "quiet": True,
                "on_error": "keep-going" if keep_going else "stop",
            })  # fmt: skip
        except FlowError as error:
            failed = error
    assert (code != 0) == (failed is not None), failed
    assert difference(contents(ours), contents(theirs)) == ""


@contextmanager
def silent() -> Iterator[None]:
    level = logging.getLogger("dvc").level
    try:
        yield
    finally:
        logging.getLogger("dvc").setLevel(level)
