"""The tables of docs/performance.md, made from the results."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import write_text
from pipeline.render import markdown_table

OURS = "this project"
SMALLEST_SHARE = 0.01
MARK = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def update(page: Path, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Put the tables of the parts that have results between their marks, and leave the rest.

    Parameters
    ----------
    page : Path
        Markdown with ``<!-- part -->`` and ``<!-- end -->`` around each table.
    results : dict
        What ``python -m benchmarks`` wrote: for each part, a measurement of each machine. The first
        is shown, those after it are folded.
    """

    def fill(match: re.Match[str]) -> str:
        part = match[1]
        if part not in results:
            return match[0]
        first, *others = results[part]
        sections = [f"Measured {_origin(first)}.\n\n{TABLES[part](first['figures'])}"]
        sections += [_folded(_origin(other), TABLES[part](other["figures"])) for other in others]
        return f"<!-- {part} -->\n" + "\n\n".join(sections) + "\n<!-- end -->"

    write_text(page, MARK.sub(fill, page.read_text()))


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def _origin(measurement: Mapping[str, Any]) -> str:
    at = measurement["machine"]
    family = "" if at["cpu_family"] is None else f"CPU family {at['cpu_family']}, "
    return (
        f"on {measurement['date']}: {at['cores']} cores of {at['device']}, {family}"
        f"{'with' if at['bfloat16'] else 'without'} bfloat16, {at['memory_gb']:.0f} GB, "
        f"{at['system']}, Python {at['python']}, TensorFlow {at['tensorflow']}, "
        f"Keras {at['keras']}, NumPy {at['numpy']}"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return "\n".join(markdown_table(header, rows))


def throughput(figures: Mapping[str, Any]) -> str:
    """Return a table for each variant and task; ratios are this project's speed over theirs."""
    sections = []
    for variant, tasks in figures.items():
        for task, measured in tasks.items():
            contenders = measured["contenders"]
            ours = contenders[OURS]["images_per_second"]["median"]
            rows = []
            for name, each in contenders.items():
                speed = each["images_per_second"]
                work = speed["median"] * measured["operations_per_image"] / 1e9
                rows.append(
                    [
                        name,
                        f"{speed['median']:,.0f}",
                        f"{speed['low']:,.0f} – {speed['high']:,.0f}",
                        "" if name == OURS else f"{ours / speed['median']:.2f}",
                        f"{work:,.0f}",
                        f"{work / each['gigaflops']['median']:.0%}",
                    ]
                )
            heads = [
                "", "images/s", "lowest – highest", "this project is faster by", "GFLOP/s",
                "of its matrix product",
            ]  # fmt: skip
            title = {"train": "training", "infer": "inference"}[task]
            repeats = contenders[OURS]["images_per_second"]["repeats"]
            sections.append(
                f"**`{variant}`, {title}**, medians of {repeats} turns:\n\n" + _table(heads, rows)
            )
    return "\n\n".join(sections)


def kernels(figures: Mapping[str, Any]) -> str:
    """Return the largest shares of the time, by kind of kernel."""
    rows = [
        [
            f"`{variant}`",
            {"train": "training", "infer": "inference"}[task],
            ", ".join(
                f"{kind.removeprefix('_')} {share:.1%}"
                for kind, share in shares.items()
                if share >= SMALLEST_SHARE
            ),
        ]
        for variant, tasks in figures.items()
        for task, shares in tasks.items()
    ]
    return _table(["", "", f"kernels with {SMALLEST_SHARE:.0%} or more of the time"], rows)


def chunks(figures: Mapping[str, Any]) -> str:
    """Return speed and memory by the size of the chunk, and by the size of the test set."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [f"{row['images_per_second']:,.0f}", f"{row['peak_memory_mb']:,.0f} MB"]

    heads = ["images/s", "memory over the model"]
    by_chunk = [
        [
            f"`{variant}`",
            f"**{row['chunk_size']:,}** (chosen)" if row["chosen"] else f"{row['chunk_size']:,}",
            *cells(row),
        ]
        for variant, rows in figures.items()
        for row in sorted(rows["by_chunk"], key=lambda row: int(row["chunk_size"]))
    ]
    by_images = [
        [f"`{variant}`", f"{row['images']:,}", *cells(row)]
        for variant, rows in figures.items()
        for row in rows["by_images"]
    ]
    return "\n\n".join(
        [
            _table(["", "images at once", *heads], by_chunk),
            _table(["", "test images", *heads], by_images),
        ]
    )


def scale(figures: Sequence[Mapping[str, Any]]) -> str:
    """Return what a stage's whole process takes, for an image."""
    rows = [
        [
            row["stage"],
            f"{row['images']:,}",
            f"{row['seconds']:,.1f} s",
            f"{row['seconds'] / row['images'] * 1e6:,.1f} µs",
            f"{row['peak_memory_mb']:,.0f} MB",
        ]
        for row in sorted(figures, key=lambda row: (str(row["stage"]), int(row["images"])))
    ]
    return _table(["stage", "images", "time", "for an image", "memory"], rows)


def overhead(figures: Mapping[str, Any]) -> str:
    """Return the seconds of start-up and of orchestration."""
    tables = []
    for kind, head in (("start_up", "importing"), ("orchestration", "running")):
        rows = [
            [name, f"{each['median']:.2f} s", f"{each['low']:.2f} – {each['high']:.2f} s"]
            for name, each in figures[kind].items()
        ]
        tables.append(_table([head, "median", "lowest – highest"], rows))
    return "\n\n".join(tables)


def checkpoints(figures: Mapping[str, Any]) -> str:
    """Return the share of checkpoints in the time of training."""
    rows = [
        [
            f"`{variant}`",
            f"{each['seconds']:,.1f} s",
            str(each["saves"]),
            f"{each['saving_seconds']:.2f} s",
            f"{each['share']:.2%}",
        ]
        for variant, each in figures.items()
    ]
    return _table(["", "training", "checkpoints", "they took", "share"], rows)


TABLES: dict[str, Callable[[Any], str]] = {
    "throughput": throughput,
    "levers": throughput,
    "kernels": kernels,
    "chunks": chunks,
    "scale": scale,
    "overhead": overhead,
    "checkpoints": checkpoints,
}
