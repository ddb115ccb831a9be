"""Compare the variants of a data set: in Markdown for git, and as a page with pictures."""

from typing import Any

from pipeline.core import paths
from pipeline.core.files import write_text
from pipeline.core.params import Params
from pipeline.core.stage import require_unchanged, run_stage
from pipeline.datasets.splits import SplitReader
from pipeline.page.render import render
from pipeline.page.settings import Report
from pipeline.page.view import make_view
from pipeline.scores.comparison import compare_pairs
from pipeline.scores.load import load_json, load_result


def main(dataset: str) -> None:
    """Write the report of `dataset` as Markdown and as a page."""
    params = Params()
    settings: Report = params.get("report", Report)
    variants: list[str] = params.get("run.variants", list[str])
    table: dict[str, Any] = params.get("variants", dict[str, Any])
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
    }
    summary = load_json(paths.summary(dataset))
    labels: list[int] = summary["images_per_class"]["test"]
    results = [load_result(dataset, variant, labels) for variant in variants]
    with SplitReader(paths.prepared(dataset, "test")) as test:
        view = make_view(dataset, results, compare_pairs(results), summary, made_with, test)
    write_text(paths.page(dataset), render("report.html", **view))
    write_text(paths.report(dataset), render("report.md", **view))
    print(f"{dataset}: {paths.report(dataset)} and {paths.page(dataset)}")
    print(view["summary"])
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset")
