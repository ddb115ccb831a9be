"""What a run shows in Prefect: the stages' output, progress, metrics and reports."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from dvc_flow.errors import one_line
from dvc_flow.repository import Node, Repository
from dvc_flow.terminal import last_progress

PROGRESS_INTERVAL_S = 5.0
BATCH_INTERVAL_S = 1.0
LINES_A_BATCH = 100  # Prefect takes a millisecond for each
LARGEST_REPORT = 500_000  # bytes


class StageLog:
    """Forwards a stage's lines to the run's log, and its progress to an artifact.

    Of a stage that prints more than a log can take, the rest is counted.

    Parameters
    ----------
    stage : str
    progress : pattern
        Finds the progress in a line; its group ``percent`` is shown.
    """

    def __init__(self, stage: str, progress: re.Pattern[str]) -> None:
        self.stage = stage
        self.progress = progress
        self.logger = get_run_logger()
        self.artifact: Any = None
        self.updated = self.begun = 0.0
        self.sent = self.left_out = 0

    def take(self, lines: Sequence[str]) -> None:
        """Log lines, and update the progress if they have any."""
        now = time.monotonic()
        if now - self.begun >= BATCH_INTERVAL_S:
            self._tell_left_out()
            self.begun, self.sent = now, 0
        found = last_progress(self.progress, lines)
        due = found is not None and (
            found[0] == 100 or now - self.updated >= PROGRESS_INTERVAL_S or self.artifact is None
        )
        shown = [line for line in lines if not self.progress.match(line)] if found else lines
        if found is not None and due:
            self.updated = now
            shown = [*shown, found[1]]
            self._show(*found)
        for line in shown[: LINES_A_BATCH - self.sent]:
            self.logger.info("%s", line)
        self.left_out += max(0, len(shown) - (LINES_A_BATCH - self.sent))
        self.sent = min(LINES_A_BATCH, self.sent + len(shown))

    def close(self) -> None:
        """Tell what was left out."""
        self._tell_left_out()

    def _tell_left_out(self) -> None:
        if self.left_out:
            self.logger.info("… %d lines left out", self.left_out)
            self.left_out = 0

    def _show(self, share: float, line: str) -> None:
        try:
            if self.artifact is None:
                self.artifact = create_progress_artifact(
                    share, key=key(self.stage), description=line
                )
            else:
                update_progress_artifact(self.artifact, share, description=line)
        except Exception as error:  # an unreachable server must not stop a training
            self.logger.warning("no progress artifact: %s", one_line(error))


def key(name: str) -> str:
    """Return a name as a valid key of a Prefect artifact."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "stage"


def publish_results(
    repository: Repository, nodes: Sequence[Node], say: Callable[[str], None]
) -> None:
    """Publish the metrics, with their change since the last commit, and the stages' reports.

    The stages have succeeded or failed by now; what cannot be shown is a warning.

    Parameters
    ----------
    repository : Repository
    nodes : sequence of Node
        The stages of the run; Markdown files among their outputs in git are reports.
    say : callable
        Takes a warning.
    """
    try:
        rows = _metrics_against_head(repository)
        if rows:
            create_table_artifact(rows, key="metrics", description="Metrics against HEAD")
    except Exception as error:
        say(f"warning: Prefect shows no metrics ({one_line(error)})")
    for path in (repository.root / name for node in nodes for name in node.in_git):
        if path.suffix == ".md" and path.is_file() and path.stat().st_size <= LARGEST_REPORT:
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
                create_markdown_artifact(text, key=key(f"report-{path.stem}"))
            except Exception as error:
                say(f"warning: Prefect does not show {path.name} ({one_line(error)})")


def _metrics_against_head(repository: Repository) -> list[dict[str, Any]]:
    """Return a row for each changed metric: file, name, old and new value, and the change."""
    with repository.held() as repo:
        if not any(out.metric for out in repo.index.outs):
            return []
        changes = repo.metrics.diff(all=True).get("diff", {})
    return [
        {
            "file": path,
            "metric": name,
            "HEAD": values.get("old"),
            "workspace": values.get("new"),
            "change": values.get("diff"),
        }
        for path, metrics in changes.items()
        for name, values in metrics.items()
    ]
