from pathlib import Path

from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed, Failed, Pending

from flows.execute import Outcome
from flows.graph import Node
from flows.policy import Policy
from flows.stages import Reproduction, summarise

Reasons = tuple[str, ...]


def node(name: str, upstream: Reasons = (), changes: Reasons = (), missing: Reasons = ()) -> Node:
    return Node(name, upstream, Policy(), changes, missing, lost=(), in_git=())


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
    reproduction = Reproduction(Path(), jobs=1)
    reproduction.outcomes |= {"cached": Outcome.CACHED, "ran": Outcome.RAN}
    assert reproduction.is_unchanged(node("a", ("cached",)))
    assert not reproduction.is_unchanged(node("b", ("cached", "ran")))
    assert not reproduction.is_unchanged(node("c", ("failed",)))
    assert not reproduction.is_unchanged(node("d", changes=("modified x",)))
    assert not Reproduction(Path(), jobs=1, force=True).is_unchanged(node("e"))


def test_what_is_missing_may_be_missing_where_a_remote_has_it() -> None:
    """With --pull a stage whose files are absent, but else unchanged, needs no process."""
    absent = node("a", missing=("deleted a.txt",))
    assert not Reproduction(Path(), jobs=1).is_unchanged(absent)
    assert Reproduction(Path(), jobs=1, pull=True).is_unchanged(absent)
