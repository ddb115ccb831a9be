"""Release a trained model: give the commit's model a version, and promote it to a stage.

``python -m pipeline.release DATASET VARIANT`` compares the model at HEAD with the one that has the
stage, on the same test images, and promotes it unless it is worse. Versions and stages are git
tags, as GTO and DVC read them: ``mnist-lenet5@v1.0.0`` and ``mnist-lenet5#production#1``.
"""

import argparse
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import gto.api
from gto.exceptions import ArtifactNotFound, GTOException
from gto.versions import SemVer

from pipeline.core.errors import DataError, one_line
from pipeline.core.stage import run_command
from pipeline.scores.comparison import Comparison, compare
from pipeline.scores.revisions import Key, Revisions

HEAD = "HEAD"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.release", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("variant", metavar="VARIANT")
    parser.add_argument("--stage", default="production")
    parser.add_argument("--push", action="store_true", help="push the tags to git's remote")
    return parser.parse_args(arguments)


def artifact_name(dataset: str, variant: str) -> str:
    """Return the name of a model in dvc.yaml's artifacts, which has no underscores."""
    return f"{dataset}-{variant}".replace("_", "-")


def require_committed(root: Path, key: Key) -> None:
    """Check that the workspace has the results of HEAD.

    Raises
    ------
    DataError
        If what git tracks is not committed: a tag would name another model than the one at hand.
    """
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],  # noqa: S607
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if status.returncode or status.stdout:
        what = status.stderr.strip() or status.stdout.splitlines()[0].strip()
        raise DataError(
            f"{' / '.join(key)}: a release is a commit, and not all is committed ({what}); commit "
            "first"
        )


def in_stage(root: Path, name: str, stage: str) -> tuple[str, str] | None:
    """Return version and commit of the model that has a stage; None if none has."""
    try:
        found = gto.api.find_versions_in_stage(str(root), name, stage)
    except ArtifactNotFound:  # nothing of this name was released yet
        return None
    return (str(found[0].version), str(found[0].commit_hexsha)) if found else None


def require_newest(root: Path, name: str, stage: str, version: str) -> None:
    """Check that the version that HEAD may have is not older than the one that has a stage.

    Raises
    ------
    DataError
        If it is: a stage is that of the newest version that has it, as GTO and DVC read the tags.
    """
    listed = subprocess.run(  # noqa: S603 - names of params.yaml
        ["git", "tag", "--points-at", HEAD, "--list", f"{name}@v*"],  # noqa: S607
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for tag in listed.stdout.split():
        own = tag.rpartition("@")[2]
        if SemVer(own) < SemVer(version):
            raise DataError(
                f"{name}: HEAD is {own}, and {version} is in {stage}, whose newest version counts; "
                "give HEAD's model a commit of its own: git commit --allow-empty"
            )


def compare_with(revisions: Revisions, commit: str, key: Key) -> Comparison:
    """Compare the model at HEAD with that of a commit.

    Raises
    ------
    DataError
        If one of them has no results.
    """
    before, after = (_measured(revisions, name, key) for name in (commit, HEAD))
    return compare(key, (commit[:10], HEAD), before, after)


def _measured(revisions: Revisions, name: str, key: Key):  # type: ignore[no-untyped-def]
    measured = revisions.read(name)
    if key not in measured:
        raise DataError(f"{name}: has no results of {' / '.join(key)}; reproduce and commit there")
    return measured[key]


def main(arguments: argparse.Namespace) -> None:
    """Promote the model at HEAD, unless it is worse than the one that has the stage."""
    root, key = Path.cwd(), (arguments.dataset, arguments.variant)
    name = artifact_name(*key)
    revisions = Revisions(root)
    require_committed(root, key)
    _measured(revisions, HEAD, key)
    try:
        current = in_stage(root, name, arguments.stage)
        if current is None:
            print(f"{name}: nothing is in {arguments.stage} yet")
        elif current[1] == revisions.resolve(HEAD):
            print(f"{name}: HEAD is in {arguments.stage} already")
            return
        else:
            version, commit = current
            require_newest(root, name, arguments.stage, version)
            compared = compare_with(revisions, commit, key)
            value, p = compared.difference.value, compared.difference.p
            said = f"{compared.verdict} ({100 * value:+.2f} points, p = {p:.2g})"
            print(f"{name}: HEAD beside {commit[:10]}, which is in {arguments.stage}: {said}")
            if compared.verdict == "worse":
                raise DataError(
                    f"{name}: is worse than what is in {arguments.stage}, and stays as it is; "
                    "improve it, or choose another --stage"
                )
        # Registers a version as well, unless the commit has one.
        gto.api.assign(str(root), name, arguments.stage, ref=HEAD, push=arguments.push)
        promoted = in_stage(root, name, arguments.stage)
    except GTOException as error:
        raise DataError(f"{name}: cannot be released ({one_line(error)})") from error
    if promoted is not None:
        print(f"{name}: {promoted[0]} is in {arguments.stage}")
    if not arguments.push:
        print("share it: git push --tags")


if __name__ == "__main__":
    run_command(partial(main, parse_arguments()), "pipeline.release")
