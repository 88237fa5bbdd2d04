"""What a promotion asks for, checked and made ready: the set, its merge, the prompts to compare on."""

from dataclasses import dataclass
from typing import Any

from app.generation import ChosenSet, choose_set
from app.house import House
from app.merging_service import Draft, draft_merge
from app.problems import Refusal
from app.schemas import MergeBody, SourceBody
from app.schemas_promotion import PromotionBody
from serving.admission import check_prompt
from store.references import validate_name


@dataclass(frozen=True, slots=True)
class PromotionDraft:
    """A promotion that was found possible."""

    merge: Draft
    chosen: ChosenSet
    alias: str
    prompts: list[tuple[int, ...]]
    body: PromotionBody

    @property
    def payload(self) -> dict[str, Any]:
        """What the job needs, whatever aliases and logged prompts are by then."""
        return {
            "merge": self.merge.payload,
            "adapters": [list(pair) for pair in self.chosen.for_engine],
            "alias": self.alias,
            "prompts": [list(prompt) for prompt in self.prompts],
            "max_tokens": self.body.max_tokens,
            "bar": self.body.bar.model_dump(),
        }


def draft_promotion(house: House, body: PromotionBody) -> PromotionDraft:
    """Resolve the set, plan its merge, gather the prompts; nothing is computed.

    Raises:
        Refusal, MergeError, StoreError, ServingError: with what is wrong.
    """
    fields = set(MergeBody.model_fields)
    merge = draft_merge(house.shelves, MergeBody.model_validate(body.model_dump(include=fields)))
    sources = []
    for version, source in zip(merge.versions, merge.recipe.sources, strict=True):
        if not isinstance(source.weight, int | float):
            detail = f"The weight of {version.ref} varies over the model; a set that is served has one number each."
            raise Refusal(422, "bad-weights", detail, field="sources")
        sources.append(SourceBody(ref=version.ref, weight=source.weight))
    chosen = choose_set(house, house.base.name, sources)
    prompts = _prompts(house, body, chosen)
    return PromotionDraft(merge, chosen, validate_name(body.alias, "alias"), prompts, body)


def _prompts(house: House, body: PromotionBody, chosen: ChosenSet) -> list[tuple[int, ...]]:
    if body.prompts is None:
        logged = house.prompt_log.of(chosen.for_engine)
        if not logged:
            detail = "No prompts of this set were logged (SPOLIA_LOGGED_PROMPTS keeps them); give prompts."
            raise Refusal(422, "no-prompts", detail, field="prompts")
        return logged
    prompts = [house.prompts.text(item) if isinstance(item, str) else house.prompts.chat(item) for item in body.prompts]
    for prompt in prompts:
        check_prompt(prompt, house.base)
    return prompts
