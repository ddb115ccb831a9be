"""Download a data set's IDX files, or make them from the digits that scikit-learn includes."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.core import paths
from pipeline.core.files import cannot_write
from pipeline.core.params import Params
from pipeline.core.stage import require_unchanged, run_stage
from pipeline.datasets import idx
from pipeline.datasets.digits import DigitsSource, make_digits
from pipeline.datasets.mirrors import MirrorSource, fetch_all

Source = Annotated[MirrorSource | DigitsSource, Field(discriminator="source")]


def remove_strays(folder: Path) -> None:
    """Remove what an interrupted download left: DVC would take it for a part of the output.

    Raises
    ------
    OutputError
        If a file cannot be removed.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in (*paths.ROLES, paths.WRITERS) and path.is_file():
            try:
                path.unlink()
            except OSError as error:
                raise cannot_write(path, error) from error


def main(dataset: str) -> None:
    """Bring the raw files of `dataset` to their folder."""
    params = Params()
    source: MirrorSource | DigitsSource = params.get(f"datasets.{dataset}.download", Source)
    remove_strays(paths.raw(dataset))
    if isinstance(source, MirrorSource):
        fetch_all(dataset, source, paths.raw(dataset))
    else:
        for role, array in make_digits(source).items():
            idx.write(paths.raw(dataset) / role, array)
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset")
