import re
from types import SimpleNamespace
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed, Failed, Pending

from dvc_flow.engine import Outcome
from dvc_flow.policy import Policy
from dvc_flow.repository import Node
from dvc_flow.stages import Reproduction, summarise
from dvc_flow.terminal import Terminal

Reasons = tuple[str, ...]


def node(name: str, upstream: Reasons = (), changes: Reasons = (), missing: Reasons = ()) -> Node:
    return Node(name, upstream, Policy(), changes, missing)


def reproduction(*, allow_missing: bool = False, **how: Any) -> Reproduction:
    engine: Any = SimpleNamespace(allow_missing=allow_missing)
    progress = re.compile("(?P<percent>x)(?P<what>y)")
    return Reproduction(engine, 1, Terminal(progress), progress, **how)


def test_a_summary_counts_and_names() -> None:
    """What completed is counted by its kind; what did not is named."""
    states: dict[str, State[None]] = {
        "a": Completed(name="Cached"),
        "b": Completed(),
        "c": Completed(name="Restored"),
        "d": Failed(),
        "e": Crashed(),
        "f": Pending(name="NotReady"),
    }
    nodes = [node(name) for name in "abcdefg"]
    assert summarise(nodes, states) == (
        "7 stages: 1 completed; 1 cached; 1 restored; failed: d, e; not run: f, g"
    )


def test_a_stage_is_unchanged_only_if_all_before_it_were() -> None:
    """A changed stage, one that is forced, and one behind a stage that ran need a process."""
    run = reproduction()
    run.outcomes |= {"cached": Outcome.CACHED, "ran": Outcome.RAN}
    assert run.is_unchanged(node("a", ("cached",)))
    assert not run.is_unchanged(node("b", ("cached", "ran")))
    assert not run.is_unchanged(node("c", ("failed",)))
    assert not run.is_unchanged(node("d", changes=("modified x",)))
    assert not reproduction(force=True).is_unchanged(node("e"))


def test_what_is_missing_may_be_missing_where_that_is_allowed() -> None:
    """With --allow-missing a stage whose files are absent, but else unchanged, needs no process."""
    absent = node("a", missing=("deleted a.txt",))
    assert not reproduction().is_unchanged(absent)
    assert reproduction(allow_missing=True).is_unchanged(absent)
