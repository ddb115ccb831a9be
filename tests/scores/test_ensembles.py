from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.scores.ensembles import Ensemble


def ensemble(*members: tuple[str, list[Any]]) -> Ensemble:
    listed = [{"variant": variant, "seeds": seeds} for variant, seeds in members]
    return Ensemble.model_validate({"members": listed})


def test_models_are_named_by_variant_and_seed() -> None:
    """Each seed of each member is a model, in the order of the list."""
    both = ensemble(("net", [3, 0]), ("other", [1]), ("net", [7]))
    assert both.models == [("net", 3), ("net", 0), ("other", 1), ("net", 7)]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "at least 1 item"),
        ([("net", [0])], "expected at least two models"),
        ([("net", [])], "at least 1 item"),
        ([("net", [0, 0])], "expected each once, received 0 2 times"),
        ([("net", [0, 1]), ("net", [1])], "expected each model once: a variant is listed twice"),
        ([("net", [0]), ("net", [0])], "expected each model once"),
        ([("net", [-1, 0])], "greater than or equal to 0"),
        ([("net", ["0", 1])], "valid integer"),
        ([(3, [0, 1])], "valid string"),
    ],
)
def test_other_lists_are_rejected(members: list[tuple[Any, list[Any]]], message: str) -> None:
    """One model alone, or one listed twice, is no ensemble."""
    with pytest.raises(ValidationError, match=message):
        ensemble(*members)


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([("net", [0, 1]), ("other", [5])], ""),
        ([("nett", [0, 1])], "there is no variant 'nett' in the run; did you mean 'net'?"),
        ([("net", [0]), ("else", [0])], "there is no variant 'else' in the run; "),
        ([("net", [0, 2])], "net is not trained with seed 2; its seeds are 0, 1"),
        ([("net", [0]), ("other", [0])], "other is not trained with seed 0; its seeds are 5"),
    ],
)
def test_what_is_not_trained_is_named(members: list[tuple[str, list[int]]], problem: str) -> None:
    """A variant that is not run, or a seed that it is not trained with, is named with a hint."""
    told = ensemble(*members).untrained({"net": [0, 1], "other": [5]})
    assert told.startswith(problem)
    assert bool(told) == bool(problem)
