"""docs/benchmarks.md: the tables of all machines, from results.json."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.page.text import markdown_table

OURS = "this project"
SMALLEST_SHARE = 0.01
TITLES = {"train": "training", "infer": "inference"}
# AMD's names, by CPU family and whether the CPU has bfloat16.
ZEN = {(25, False): "Zen 3", (25, True): "Zen 4", (26, True): "Zen 5"}
INTRODUCTION = """# Benchmarks

All tables of `make bench`. [performance.md](performance.md) says what they mean.
`python -m benchmarks` writes this page from [results.json](../benchmarks/results.json); do not edit
it."""


def page(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the page in Markdown, from each part's measurements, the latest machine first.

    A part is a section; its latest machine is unfolded.
    """
    sections = [INTRODUCTION]
    for part, (title, note, table) in SECTIONS.items():
        if part not in results:
            continue
        first, *others = ((_origin(each), table(each["figures"])) for each in results[part])
        sections += [f"## {title}", note, "\n\n".join(first)]
        sections += [
            f"<details><summary>{origin}</summary>\n\n{tables}\n\n</details>"
            for origin, tables in others
        ]
    return "\n\n".join(sections) + "\n"


def _origin(measurement: Mapping[str, Any]) -> str:
    at = measurement["machine"]
    zen = ZEN.get((at["cpu_family"], at["bfloat16"])) if "AMD" in at["device"] else None
    family = "" if at["cpu_family"] is None else f"CPU family {at['cpu_family']}, "
    return (
        f"{f'{zen}, ' if zen else ''}{measurement['date']}: {at['cores']} cores of {at['device']}, "
        f"{family}{'with' if at['bfloat16'] else 'without'} bfloat16, {at['memory_gb']:.0f} GB, "
        f"{at['system']}, Python {at['python']}, TensorFlow {at['tensorflow']}, "
        f"Keras {at['keras']}, NumPy {at['numpy']}"
    )


def _cells(form: str, values: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row, which the form names with bars between them."""
    return form.format_map(values).split(" | ")


def throughput(figures: Mapping[str, Any]) -> str:
    """Return a table for each variant and task."""
    header = ["", "images/s", "range", "speed-up", "GFLOP/s", "of a matrix product"]
    sections = []
    for variant, tasks in figures.items():
        for task, measured in tasks.items():
            ours = measured["contenders"][OURS]["images_per_second"]
            rows = []
            for name, each in measured["contenders"].items():
                speed = each["images_per_second"]
                work = speed["median"] * measured["operations_per_image"] / 1e9
                speed_up = "" if name == OURS else f"{ours['median'] / speed['median']:.2f}"
                share = f"{work / each['gigaflops']['median']:.0%}"
                cells = _cells("{median:,.0f} | {low:,.0f} – {high:,.0f}", speed)
                rows.append([name, *cells, speed_up, f"{work:,.0f}", share])
            title = f"**`{variant}`, {TITLES[task]}**, median of {ours['repeats']} rounds:"
            sections += [title, markdown_table(rows, header)]
    return "\n\n".join(sections)


def kernels(figures: Mapping[str, Any]) -> str:
    """Return the kinds of kernels that take most of the time, with their shares."""
    rows = []
    for variant, tasks in figures.items():
        for task, shares in tasks.items():
            large = {kind: share for kind, share in shares.items() if share >= SMALLEST_SHARE}
            told = ", ".join(f"{kind.removeprefix('_')} {each:.1%}" for kind, each in large.items())
            rows.append([f"`{variant}`", TITLES[task], told])
    return markdown_table(rows, ["", "", "kernels"])


def chunks(figures: Mapping[str, Any]) -> str:
    """Return speed and memory by chunk size, and by test-set size."""
    form = "{images_per_second:,.0f} | {peak_memory_mb:,.0f} MB"
    by_chunk, by_images = [], []
    for variant, rows in figures.items():
        for row in sorted(rows["by_chunk"], key=lambda row: int(row["chunk_size"])):
            size = "**{chunk_size:,}** (chosen) | " if row["chosen"] else "{chunk_size:,} | "
            by_chunk.append([f"`{variant}`", *_cells(size + form, row)])
        for row in rows["by_images"]:
            by_images.append([f"`{variant}`", *_cells("{images:,} | " + form, row)])
    header = ["images/s", "peak memory"]
    first = markdown_table(by_chunk, ["", "chunk size", *header])
    return first + "\n\n" + markdown_table(by_images, ["", "test images", *header])


def scale(figures: Sequence[Mapping[str, Any]]) -> str:
    """Return time and memory of whole stages by number of images."""
    form = "{stage} | {images:,} | {seconds:,.1f} s | {each:,.1f} µs | {peak_memory_mb:,.0f} MB"
    rows = [
        _cells(form, {**row, "each": row["seconds"] / row["images"] * 1e6})
        for row in sorted(figures, key=lambda row: (str(row["stage"]), int(row["images"])))
    ]
    return markdown_table(rows, ["stage", "images", "time", "per image", "peak memory"])


def overhead(figures: Mapping[str, Any]) -> str:
    """Return the seconds of start-up and of orchestration."""
    form = "{median:.2f} s | {low:.2f} – {high:.2f} s"
    return "\n\n".join(
        markdown_table(
            [[name, *_cells(form, each)] for name, each in figures[kind].items()],
            [title, "median", "range"],
        )
        for kind, title in (("start_up", "import of"), ("orchestration", "run of"))
    )


def graphs(figures: Mapping[str, Any]) -> str:
    """Return the seconds of ``dvc repro`` and of the flow, and their ratio."""
    form = "{dvc:.2f} s | {flow:.2f} s | {ratio:.2f} | {target:g}"
    rows = [[title, *_cells(form, each)] for title, each in figures.items()]
    return markdown_table(rows, ["graph", "dvc repro", "dvc-flow", "ratio", "at most"])


def checkpoints(figures: Mapping[str, Any]) -> str:
    """Return the share of checkpoints in training time."""
    form = "{seconds:,.1f} s | {saves} | {saving_seconds:.2f} s | {share:.2%}"
    rows = [[f"`{variant}`", *_cells(form, each)] for variant, each in figures.items()]
    return markdown_table(rows, ["", "training", "checkpoints", "time to save", "share"])


# Of each section: its title, how to read it, and what makes its tables.
SECTIONS: dict[str, tuple[str, str, Callable[[Any], str]]] = {
    "throughput": (
        "Throughput",
        "The contenders run in rotation, three seconds at a time. The speed-up is this project's\n"
        "throughput over the contender's. GFLOP/s counts convolutions and dense layers; the last\n"
        "column compares it with a product of two 2,048 × 2,048 matrices in the same process.",
        throughput,
    ),
    "levers": (
        "What each measure gains",
        "Training with one measure turned off at a time; the speed-up is what the measure gains.",
        throughput,
    ),
    "kernels": (
        "Kernels",
        "Shares of this project's kernel time, by TensorFlow's profiler; shares below "
        f"{SMALLEST_SHARE:.0%} are left out.",
        kernels,
    ),
    "chunks": (
        "Evaluation by chunk and test set",
        "Each row is a process of its own. Memory is on top of the loaded model.",
        chunks,
    ),
    "scale": (
        "Scale",
        "Whole processes of real stages, start-up included, with `lenet5` and images of MNIST's\n"
        "shape. Preprocessing counts training and test images.",
        scale,
    ),
    "overhead": (
        "Start-up and orchestration",
        "Whole processes: a stage's imports; then all stages of `lenet5` on the digits, as bare\n"
        "commands, by `dvc repro` and by the Prefect flow.",
        overhead,
    ),
    "graphs": (
        "Any DVC project",
        "Whole processes on graphs whose stages do next to nothing, `dvc repro` and `dvc-flow` in\n"
        "turns; medians. Prefect's server is running on the same cores.",
        graphs,
    ),
    "checkpoints": (
        "Checkpoints",
        "Training on the digits with a checkpoint every minute, and one at the end.",
        checkpoints,
    ),
}
