import pytest
from pydantic import ValidationError

from pipeline.page.settings import DatasetReport


def test_nothing_has_to_be_known_of_a_test_set() -> None:
    """Parts and label errors may be left out."""
    known = DatasetReport.model_validate({})
    assert (known.parts, known.label_errors) == ({}, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"parts": {"first": [0]}}, "at least 2 items"),
        ({"parts": {"first": [0, 1, 2]}}, "at most 2 items"),
        (
            {"parts": {"first": [5, 5]}},
            r"expected the first image and the one .*, received \[5, 5\]",
        ),
        ({"parts": {"first": [7, 5]}}, "expected the first image and the one after the last"),
        ({"parts": {"first": [-1, 5]}}, "greater than or equal to 0"),
        ({"label_errors": []}, "at least 1 item"),
        ({"label_errors": [3, 3]}, "expected each once, received 3 2 times"),
        ({"label_errors": [-3]}, "greater than or equal to 0"),
        ({"label_error": [3]}, "unknown key 'label_error'; did you mean 'label_errors'"),
    ],
)
def test_nonsense_is_rejected(content: dict[str, object], message: str) -> None:
    """A part that is empty or runs backwards, and an image listed twice, are rejected."""
    with pytest.raises(ValidationError, match=message):
        DatasetReport.model_validate(content)
