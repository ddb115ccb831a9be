"""Compare the variants of a data set: in Markdown for git, and as a page with pictures."""

from typing import Any

from pipeline.core import paths
from pipeline.core.files import write_text
from pipeline.core.params import Params
from pipeline.core.stage import require_unchanged, run_stage
from pipeline.datasets.splits import Classes, SplitReader, class_names
from pipeline.page.render import render
from pipeline.page.settings import DatasetReport, Report
from pipeline.page.view import make_view
from pipeline.scores.comparison import compare_pairs, compare_with_members
from pipeline.scores.ensembles import Ensemble
from pipeline.scores.load import load_ensemble, load_json, load_result


def main(dataset: str) -> None:
    """Write the report of `dataset` as Markdown and as a page."""
    params = Params()
    listed = params.list_of(dataset)
    settings: Report = params.get("report", Report)
    known: DatasetReport = params.get(f"datasets.{dataset}.report", DatasetReport)
    classes = class_names(params.get(f"datasets.{dataset}.classes", Classes))
    variants: list[str] = params.get(f"{listed}.variants", list[str])
    names: list[str] = params.get(f"{listed}.ensembles", list[str])
    table: dict[str, Any] = params.get("variants", dict[str, Any])
    ensembles: dict[str, Ensemble] = params.get("ensembles", dict[str, Ensemble])
    made_with = {
        dataset: {
            "preprocess": params.get(f"datasets.{dataset}.preprocess", dict[str, Any]),
            "train": params.get(f"datasets.{dataset}.train", dict[str, Any]),
        },
        "preprocess": params.get("preprocess", dict[str, Any]),
        "train": params.get("train", dict[str, Any]),
        "evaluate": params.get("evaluate", dict[str, Any]),
        "report": settings.model_dump(),
        "variants": {name: table[name] for name in variants},
        **({"ensembles": {name: ensembles[name].model_dump() for name in names}} if names else {}),
    }
    summary = load_json(paths.summary(dataset))
    labels: list[int] = summary["images_per_class"]["test"]
    trained = [load_result(dataset, variant, labels) for variant in variants]
    voted = [load_ensemble(dataset, name, labels) for name in names]
    results = trained + voted
    members = [compare_with_members(each, ensembles[each.variant], trained) for each in voted]
    with SplitReader(paths.prepared(dataset, "test")) as test:
        view = make_view(
            dataset, results, compare_pairs(results), members, summary, classes, known, made_with,
            test,
        )  # fmt: skip
    write_text(paths.page(dataset), render("report.html", **view))
    write_text(paths.report(dataset), render("report.md", **view))
    print(f"{dataset}: {paths.report(dataset)} and {paths.page(dataset)}")
    print(view["summary"])
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset")
