"""Check all of params.yaml before anything runs, by the very types that the stages use."""

from typing import Annotated, Any

from pydantic import StringConstraints, model_validator

from pipeline.answers.settings import Pictures
from pipeline.core.errors import ModelError, ParamsError
from pipeline.core.params import NAME, Others, Params, Run, Section
from pipeline.core.paths import WRITERS
from pipeline.core.stage import run_stage
from pipeline.datasets.splits import Classes
from pipeline.download import Source
from pipeline.network.chunks import Evaluate, Profile
from pipeline.network.layers import Shape, place_layers
from pipeline.page.settings import DatasetReport, Report
from pipeline.preprocess import DatasetPreprocess, Preprocess
from pipeline.scores.ensembles import Ensemble
from pipeline.training.recipe import BudgetOverride, Runtime, Train, Variant

Name = Annotated[str, StringConstraints(pattern=NAME.pattern)]
ANY_IMAGE = Shape(4096, 4096, 1)  # large enough for any kernel: sizes are known with the data


class Dataset(Section):
    """A row of the data sets in params.yaml."""

    classes: Classes
    download: Source
    preprocess: DatasetPreprocess
    train: BudgetOverride
    report: DatasetReport
    pictures: Pictures | None = None

    @model_validator(mode="after")
    def _writers_are_downloaded(self) -> "Dataset":
        files = getattr(self.download, "files", None)
        if self.preprocess.writers is not None and not getattr(files, WRITERS, None):
            raise ValueError(
                f"preprocess.writers needs the file that names them: add {WRITERS} to "
                "download.files, or leave the writers out"
            )
        return self


TYPES: dict[str, Any] = {
    "run": Run,
    "selection": Others,
    "record": Others,
    "datasets": dict[Name, Dataset],
    "variants": dict[Name, Variant],
    "ensembles": dict[Name, Ensemble],
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
        If a value is wrong or missing, layers cannot follow each other, or an ensemble has a
        member that is not trained; the first one is named.
    """
    for key, kind in TYPES.items():
        params.get(key, kind)
    variants: dict[str, Variant] = params.get("variants", dict[Name, Variant])
    for name, variant in variants.items():
        try:
            place_layers(variant, ANY_IMAGE, classes=2)
        except ModelError as error:
            raise ParamsError(f"{params.path}: variants.{name}: {error}") from error
    _check_ensembles(params, variants)


def _check_ensembles(params: Params, variants: dict[str, Variant]) -> None:
    settings: Train = params.get("train", Train)
    ensembles: dict[str, Ensemble] = params.get("ensembles", dict[Name, Ensemble])
    for name in ensembles.keys() & variants:
        raise ParamsError(
            f"{params.path}: ensembles.{name}: is the name of a variant, and their results would "
            "lie in one place; choose another one"
        )
    for run in params.lists.values():
        trained = {each: variants[each].seeds or settings.seeds for each in run.variants}
        for name in run.ensembles:
            if problem := ensembles[name].untrained(trained):
                raise ParamsError(f"{params.path}: ensembles.{name}: {problem}")


def main() -> None:
    """Check params.yaml."""
    check(Params())


if __name__ == "__main__":
    run_stage(main)
