"""What a run shows in Prefect: the stages' output, progress, metrics and reports."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

from flows.graph import Node, metrics_against_head
from flows.terminal import share_done

PROGRESS_INTERVAL_S = 5.0


class StageLog:
    """Forwards a stage's lines to the run's log, and its progress to an artifact."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.logger = get_run_logger()
        self.artifact: Any = None
        self.updated = 0.0

    def __call__(self, line: str) -> None:
        """Log a line, and update the progress if the line has any."""
        share = share_done(line)
        if share is None:
            self.logger.info("%s", line)
        elif share == 100 or time.monotonic() - self.updated >= PROGRESS_INTERVAL_S:
            self.updated = time.monotonic()
            self.logger.info("%s", line)
            try:
                self._show(share, line)
            except (httpx.HTTPError, PrefectException) as error:
                # An unreachable server must not stop a training.
                self.logger.warning("no progress artifact: %s", error)

    def _show(self, share: float, line: str) -> None:
        if self.artifact is None:
            self.artifact = create_progress_artifact(share, key=key(self.stage), description=line)
        else:
            update_progress_artifact(self.artifact, share, description=line)


def key(name: str) -> str:
    """Return a name as a valid key of a Prefect artifact."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def publish_results(root: Path, nodes: Sequence[Node]) -> None:
    """Publish the metrics, with their change since the last commit, and the stages' reports.

    Parameters
    ----------
    root : Path
    nodes : sequence of Node
        The stages of the run; Markdown files among their outputs in git are reports.
    """
    rows = metrics_against_head(root)
    if rows:
        create_table_artifact(rows, key="metrics", description="Metrics against HEAD")
    for path in (root / name for node in nodes for name in node.in_git if name.endswith(".md")):
        if path.exists():
            text = path.read_text(encoding="utf-8")
            create_markdown_artifact(text, key=key(f"report-{path.stem}"))
