"""How a stage is run: retries, time limit, GPUs, memory; `meta.dvc-flow` in dvc.yaml says it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
)

from dvc_flow.errors import PolicyError, nearest

KEY = "dvc-flow"  # the rest of `meta` is the project's own
NETWORK_RETRIES = 3


class Policy(BaseModel):
    """The keys of a stage's ``meta.dvc-flow``.

    A retry waits ``retry_delay_s``, doubled each time, plus or minus a random part. A stage that
    runs ``alone`` starts when no other is running, and none starts until it has finished. What a
    stage leaves running in the background is ended with it, unless ``background`` allows it.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    retries: Annotated[int, Field(ge=0, le=20)] = 0
    retry_delay_s: PositiveFloat = 2.0
    timeout_minutes: PositiveFloat | None = None
    gpus: NonNegativeInt = 0
    memory_gb: NonNegativeFloat = 0.0
    alone: bool = False
    background: bool = False


def read_policy(stage: str, meta: Any, touches_network: bool) -> Policy:
    """Return the policy that a stage declares, with defaults for the rest.

    Parameters
    ----------
    stage : str
        For the message of an error.
    meta : dict or None
        The stage's ``meta`` in dvc.yaml.
    touches_network : bool
        Whether DVC itself fetches for this stage (an import); only then are there retries by
        default.

    Raises
    ------
    PolicyError
        If a key is unknown or a value is invalid.
    """
    declared = meta.get(KEY) if isinstance(meta, Mapping) else None
    defaults = {"retries": NETWORK_RETRIES} if touches_network else {}
    try:
        return Policy.model_validate(defaults | dict(declared or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "extra_forbidden":
            key = str(first["loc"][0])
            hint = nearest(key, Policy.model_fields)
            raise PolicyError(f"{stage}: meta.{KEY}: unknown key {key!r}; {hint}") from None
        place = ".".join(["meta", KEY, *map(str, first["loc"])])
        raise PolicyError(
            f"{stage}: {place}: {first['msg']}, received {first['input']!r}"
        ) from None
    except (TypeError, ValueError):
        raise PolicyError(
            f"{stage}: meta.{KEY}: expected keys with values, received {declared!r}"
        ) from None
