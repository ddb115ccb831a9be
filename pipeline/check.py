"""Check all of params.yaml before anything runs, by the very types that the stages use."""

from typing import Annotated, Any

from pydantic import StringConstraints

from pipeline.core.errors import ModelError, ParamsError
from pipeline.core.params import NAME, Params, Run, Section
from pipeline.core.stage import run_stage
from pipeline.datasets.splits import Classes
from pipeline.download import Source
from pipeline.network.chunks import Evaluate, Profile
from pipeline.network.layers import Shape, place_layers
from pipeline.page.settings import Report
from pipeline.preprocess import DatasetPreprocess, Preprocess
from pipeline.training.recipe import BudgetOverride, Runtime, Train, Variant

Name = Annotated[str, StringConstraints(pattern=NAME.pattern)]
ANY_IMAGE = Shape(4096, 4096, 1)  # large enough for any kernel: sizes are known with the data


class Dataset(Section):
    """A row of the data sets in params.yaml."""

    classes: Classes
    download: Source
    preprocess: DatasetPreprocess
    train: BudgetOverride


TYPES: dict[str, Any] = {
    "run": Run,
    "datasets": dict[Name, Dataset],
    "variants": dict[Name, Variant],
    "preprocess": Preprocess,
    "train": Train,
    "evaluate": Evaluate,
    "profile": Profile,
    "report": Report,
    "runtime": Runtime,
}


def check(params: Params) -> None:
    """Check every section.

    Raises
    ------
    ParamsError
        If a value is wrong or missing, or layers cannot follow each other; the first one is named.
    """
    for key, kind in TYPES.items():
        params.get(key, kind)
    for name in params.content["variants"]:
        variant: Variant = params.get(f"variants.{name}", Variant)
        try:
            place_layers(variant, ANY_IMAGE, classes=2)
        except ModelError as error:
            raise ParamsError(f"{params.path}: variants.{name}: {error}") from error


def main() -> None:
    """Check params.yaml."""
    check(Params())


if __name__ == "__main__":
    run_stage(main)
