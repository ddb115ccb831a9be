"""Ensembles as params.yaml lists them: trained models, named by variant and seed."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, NonNegativeInt, model_validator

from pipeline.core.params import Distinct, Section, nearest

ONLY_SEED = 0  # an ensemble has one result, whatever the seeds of its members


class Members(Section):
    """Models of one variant, by their seeds."""

    variant: str
    seeds: Distinct[NonNegativeInt]


class Ensemble(Section):
    """Models whose probabilities are averaged; which ones is fixed before any is evaluated."""

    members: Annotated[list[Members], Field(min_length=1)]

    @model_validator(mode="after")
    def _several_models_each_once(self) -> "Ensemble":
        models = self.models
        if len(models) < 2:
            raise ValueError("expected at least two models")
        if len(set(models)) < len(models):
            raise ValueError("expected each model once: a variant is listed twice with a seed")
        return self

    @property
    def models(self) -> list[tuple[str, int]]:
        """The variant and seed of each model."""
        return [(each.variant, seed) for each in self.members for seed in each.seeds]

    def untrained(self, trained: Mapping[str, Sequence[int]]) -> str:
        """Return why a member is not in `trained`, the seeds of each variant; empty if all are."""
        for variant, seed in self.models:
            if variant not in trained:
                return f"there is no variant {variant!r} in the run; {nearest(variant, trained)}"
            if seed not in trained[variant]:
                seeds = ", ".join(map(str, trained[variant]))
                return f"{variant} is not trained with seed {seed}; its seeds are {seeds}"
        return ""
