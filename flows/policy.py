"""How a stage is to be run: retries, time limit, GPUs, memory; declared in dvc.yaml's `meta`."""

from typing import Annotated, Any

from pydantic import Field, ValidationError

from flows.errors import PolicyError
from pipeline.params import Section

NETWORK_RETRIES = 3


class Policy(Section):
    """What a stage's ``meta`` may say.

    A retry waits ``retry_delay_s``, doubled each time, more or less a random part of it.
    """

    retries: Annotated[int, Field(ge=0, le=20)] = 0
    retry_delay_s: Annotated[float, Field(gt=0)] = 2.0
    timeout_minutes: Annotated[float, Field(gt=0)] | None = None
    gpus: Annotated[int, Field(ge=0)] = 0
    memory_gb: Annotated[float, Field(ge=0)] = 0.0


def read_policy(stage: str, meta: Any, touches_network: bool) -> Policy:
    """Return the policy that a stage declares, with defaults for what it leaves out.

    Parameters
    ----------
    stage : str
        For the message of an error.
    meta : dict or None
        The stage's ``meta`` in dvc.yaml.
    touches_network : bool
        Whether DVC itself fetches for this stage (an import); only then does it retry by default.

    Raises
    ------
    PolicyError
        If a key is unknown or a value makes no sense.
    """
    defaults = {"retries": NETWORK_RETRIES} if touches_network else {}
    try:
        return Policy.model_validate(defaults | dict(meta or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(["meta", *map(str, first["loc"])])
        reason = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            reason += f", received {first['input']!r}"
        raise PolicyError(f"dvc.yaml: {stage}: {place}: {reason}") from None
    except (TypeError, ValueError):
        raise PolicyError(
            f"dvc.yaml: {stage}: meta: expected keys with values, received {meta!r}"
        ) from None
