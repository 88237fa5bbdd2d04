"""An ensemble request: one row of the batch for every member, in lockstep, with one token for all.

The lead is the row that waits, holds the lease on all members' adapters, samples and reports. The other members have a
place in the batch, keys and values of their own, and nothing to say.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from serving.adapter_set import adapter_set
from serving.base_model import BaseModel
from serving.ensemble import Uncertainty, averaged, predict, shares
from serving.errors import EnsembleEmpty, EnsembleTooLarge, InvalidSampling
from serving.generation import BARE_BASE, Event, Generation
from serving.row import Row
from serving.sampling import Sampling, TokenChoice


def row_for(generation: Generation, base: BaseModel, on_event: Callable[[Event], None], max_rows: int) -> Row:
    """The row that stands for a request.

    Raises EmptyPrompt, PromptTooLong, TokenOutOfRange; for ensembles EnsembleEmpty, EnsembleWeights, EnsembleTooLarge
    and InvalidSampling.
    """
    if generation.combine == "sum":
        return Row(generation, base, on_event)
    return EnsembleRow(generation, base, on_event, max_rows)


class EnsembleRow(Row):
    """The first member of an ensemble, which leads the others.

    Weights of the same version add up, and members without weight fall away: neither changes the mean. The rest is in
    the order of their digests, so that the order of asking changes nothing.
    """

    def __init__(
        self, generation: Generation, base: BaseModel, on_event: Callable[[Event], None], max_rows: int
    ) -> None:
        if not generation.adapters:
            raise EnsembleEmpty
        scored = generation.sampling.prompt_logprobs
        if scored is not None:
            raise InvalidSampling("prompt_logprobs", scored, "left out for an ensemble, which does not score prompts")
        asked = shares([weight for _, weight in generation.adapters])
        chosen = adapter_set([(digest, share) for (digest, _), share in zip(generation.adapters, asked, strict=True)])
        if len(chosen) > max_rows:
            raise EnsembleTooLarge(len(chosen), max_rows)
        alone = [_member(generation, digest) for digest, _ in chosen]
        super().__init__(alone[0], base, on_event)
        self.shares = tuple(share for _, share in chosen)
        self._others = tuple(_Follower(self, one, base) for one in alone[1:])
        self._uncertainties: list[Uncertainty] = []

    @property
    def members(self) -> tuple[Row, ...]:
        return (self, *self._others)

    @property
    def uncertainty(self) -> Uncertainty | None:
        return averaged(self._uncertainties)

    def choose(self, logits: Sequence[Tensor], best: int) -> TokenChoice:
        prediction = predict(torch.stack(tuple(logits)), self.shares)
        self._uncertainties.append(prediction.uncertainty)
        choice = self.sampler.choose(prediction.logprobs, int(prediction.logprobs.argmax()))
        for other in self._others:
            other.follow(choice.token)
        return choice._replace(uncertainty=prediction.uncertainty)


class _Follower(Row):
    """Any other member."""

    def __init__(self, lead: EnsembleRow, generation: Generation, base: BaseModel) -> None:
        # What is sampled is the lead's; here only the limit counts.
        sampling = Sampling(max_tokens=generation.sampling.max_tokens)
        super().__init__(replace(generation, sampling=sampling), base, _say_nothing)
        self._lead = lead

    @property
    def lead(self) -> Row:
        return self._lead

    def follow(self, token: int) -> None:
        """Take the token that was chosen for all."""
        self.last_token = token


def _member(generation: Generation, digest: str) -> Generation:
    """The same request to one member alone."""
    return replace(generation, adapters=() if digest == BARE_BASE else ((digest, 1.0),), combine="sum")


def _say_nothing(event: Event) -> None:
    """The lead reports for all."""
