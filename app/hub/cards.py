"""What a card's front matter says of a version: licence, tags, base model."""

import re

from app.front_matter import lenient_front_matter
from app.schemas import TAG, VersionForm


def card_form(card: str | None, max_tags: int) -> VersionForm:
    """What a card declares of what an upload's form can say, its base model apart."""
    metadata = lenient_front_matter(card)
    license_ = metadata.get("license")
    tags = metadata.get("tags")
    kept = [tag for tag in tags if isinstance(tag, str) and re.match(TAG, tag)] if isinstance(tags, list) else []
    return VersionForm(
        license=license_[:255] if isinstance(license_, str) else None, tags=list(dict.fromkeys(kept))[:max_tags]
    )


def card_base(card: str | None) -> str | None:
    """The base model that a card names, if it names one."""
    base = lenient_front_matter(card).get("base_model")
    if isinstance(base, list) and len(base) == 1:
        base = base[0]
    return base if isinstance(base, str) and base else None
