"""Tensors with a row for each token, and those of their rows that the base model does not have: added tokens'.

PEFT 0.21.2 writes rows of added tokens in embeddings and output layers saved whole (by modules_to_save, or by itself
where the vocabulary was resized, utils/save_and_load.py), or among the rows of trainable_token_indices. Which string
such a row belongs to is said by the tokenizer alone. Rows that no token has are padding (pad_to_multiple_of), and lost.
"""

from collections.abc import Sequence

from deltas.tokenizer import Tokenizer

MODULES = frozenset({"embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out"})


def is_vocabulary(name: str) -> bool:
    """Whether this tensor of a base model has a row for each token."""
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and module.rpartition(".")[2] in MODULES


def why_unknown(ids: Sequence[int], base_rows: int, total: int | None, tokenizer: Tokenizer | None) -> str | None:
    """Why rows beyond the base model's `base_rows` cannot be told apart by strings; None where they can.

    `ids`: theirs, as the adapter counts them, at least one; `total`: the rows of a tensor that has all of them, None
    for one that has some.
    """
    if tokenizer is None:
        return (
            f"has rows of added tokens (ids from {ids[0]} on; the base model has {base_rows} rows): upload its"
            " tokenizer.json with it (part 'tokenizer'), which says what these tokens are"
        )
    if tokenizer.largest >= base_rows:
        return (
            f"belongs to a tokenizer of another vocabulary: its own ids go up to {tokenizer.largest}, beyond the base"
            f" model's {base_rows} rows, without being added tokens"
        )
    if total is None:
        unknown = [id for id in ids if id not in tokenizer.added]
        return f"retrains token {unknown[0]}, which its tokenizer.json does not name" if unknown else None
    beyond = next((token for id, token in sorted(tokenizer.added.items()) if id >= total), None)
    if beyond is not None:
        return f"has {total} rows, but its tokenizer.json gives '{beyond.content[:80]}' id {beyond.id}"
    return None
