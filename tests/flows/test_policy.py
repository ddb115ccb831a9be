from typing import Any

import pytest

from dvc_flow.errors import PolicyError
from dvc_flow.policy import KEY, NETWORK_RETRIES, Policy, read_policy


def test_what_is_left_out_has_a_default() -> None:
    """A stage without `meta` does not retry, has no time limit, and asks for nothing."""
    assert read_policy("train", None, touches_network=False) == Policy(
        retries=0, timeout_minutes=None, gpus=0, memory_gb=0
    )


def test_only_what_touches_the_network_retries_by_default() -> None:
    """An import retries by default; what `meta` says goes before."""
    assert read_policy("import", None, touches_network=True).retries == NETWORK_RETRIES
    assert read_policy("import", {KEY: {"retries": 1}}, touches_network=True).retries == 1


@pytest.mark.parametrize("meta", [{"owner": "me", "retries": "none"}, "a note", ["a", "b"]])
def test_the_rest_of_meta_is_the_projects_own(meta: Any) -> None:
    """Only the key `dvc-flow` is looked at."""
    assert read_policy("train", meta, touches_network=False) == Policy()


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"retrys": 3}, "unknown key 'retrys'; did you mean 'retries'"),
        ({"retries": -1}, "meta.dvc-flow.retries: .* received -1"),
        ({"timeout_minutes": 0}, "meta.dvc-flow.timeout_minutes: .* received 0"),
        ({"gpus": "one"}, "meta.dvc-flow.gpus: .* received 'one'"),
        ([1], "expected keys with values"),
    ],
)
def test_what_is_wrong_is_refused(meta: Any, message: str) -> None:
    """An unknown key or a wrong value is refused, with stage and place."""
    with pytest.raises(PolicyError, match=f"train: .*{message}"):
        read_policy("train", {KEY: meta}, touches_network=False)
