"""What an adapter's tokenizer.json adds that its weights know nothing about: tokens without a row of their own."""

from deltas.adapter import Adapter
from deltas.errors import BadTokenizer
from deltas.tokenizer import Tokenizer
from deltas.vocabulary import is_vocabulary


def token_notes(adapter: Adapter, known: Tokenizer | None) -> list[str]:
    """A sentence where tokens are added that `known`, the base model's tokenizer, lacks and that have no row; nothing
    is said where it is not known which tokens the base has."""
    if adapter.tokenizer is None or known is None:
        return []
    try:
        there = known.ids
    except BadTokenizer:  # of the base model: no fault of the adapter's
        return []
    added = adapter.tokenizer.added
    bare = [added[id].content for id in sorted(added) if added[id].content not in there and not _has_row(adapter, id)]
    if not bare:
        return []
    such = f" ({len(bare)} such tokens)" if len(bare) > 1 else ""
    return [
        f"Its tokenizer.json adds '{bare[0][:80]}'{such}, but its weights hold no row for it: served, it is cut into"
        " tokens of the base model, and a merge leaves it out. If its row was trained, save it with the adapter, by"
        " trainable_token_indices or modules_to_save."
    ]


def _has_row(adapter: Adapter, id: int) -> bool:
    """Whether some embedding or output layer is changed in this token's row."""
    for name, extra in adapter.extras.items():
        if is_vocabulary(name) and (id in extra.rows if extra.kind == "rows" else id < extra.shape[0]):
            return True
    factored = (info for name, info in adapter.modules.items() if is_vocabulary(f"{name}.weight"))
    return any(id < (info.in_features if info.kind == "embedding" else info.out_features) for info in factored)
