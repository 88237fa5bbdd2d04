"""Added tokens of several sources, put together by what they say: one string is one token, whatever its ids.

Ids beyond the base model's vocabulary are an accident of who added tokens first; they are given anew, in the order of
the sources and of their ids. Rows below are the base's tokens and follow the rule of all extras, Σ w_t Δ_t. An added
token has no row in the base model that a change could be measured from, so its row is the weighted mean

    Σ |w_t| row_t / Σ |w_t|     over the sources t that have the token (the plain mean where all these weights are 0),

of one source the row as it is. A negative weight counts by its size: there is nothing to subtract a row from. The rule
is ours; no paper that we know treats it. Tokenizers contradict each other where they cut the same text differently or
give one string two meanings; these are refused by name, since no order of rows could serve both.
"""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deltas.adapter import Adapter
from deltas.base import BaseWeights
from deltas.tokenizer import FLAGS, AddedToken, Tokenizer
from deltas.vocabulary import is_vocabulary
from merging.errors import ExtrasConflict, TokenConflict


@dataclass(frozen=True, slots=True)
class UnitedToken:
    """An added token of the result: its new id, its entry in its first source, and who brings it."""

    id: int
    token: AddedToken
    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AddedRow:
    """One added token's row in one tensor: its id in the result, and where sources have it."""

    id: int
    members: tuple[int, ...]  # positions among the extra's sources
    places: tuple[int, ...]  # the row in each one's tensor


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """The base model's rows, the tokens beyond them, and the tokenizer that the result's is made from."""

    base_rows: int
    tokens: tuple[UnitedToken, ...]
    kept: tuple[AddedToken, ...]  # entries of added_tokens with ids of the base model's, by id
    tokenizer: Tokenizer

    @property
    def ids(self) -> dict[str, int]:
        """String → new id."""
        return {united.token.content: united.id for united in self.tokens}

    def rows_of(self, adapter: Adapter, name: str) -> dict[int, int]:
        """New id → the source's own, of every added token that has a row in this tensor."""
        return {self.ids[content]: id for content, id in adapter.token_rows(name).items()}

    def to_dict(self, refs: Sequence[str]) -> list[dict[str, Any]]:
        """The united tokens as plan and report list them."""
        return [
            {"id": united.id, "token": united.token.content, "sources": [refs[i] for i in united.sources]}
            for united in self.tokens
        ]

    def file(self) -> bytes:
        """The result's tokenizer.json: the first source's, with the united tokens and without a run's own padding."""
        document = self.tokenizer.document()
        entries = [*(token.entry(token.id) for token in self.kept), *(u.token.entry(u.id) for u in self.tokens)]
        document |= {"added_tokens": entries, "padding": None, "truncation": None}
        document["post_processor"] = _renumbered(document.get("post_processor"), self.ids)
        return json.dumps(document, ensure_ascii=False, indent=2).encode()


def unite_tokens(refs: Sequence[str], adapters: Sequence[Adapter], factored: Sequence[str]) -> Vocabulary | None:
    """The result's vocabulary; None where no source with a tokenizer changes embeddings or output layers as a whole.

    `factored`: the modules with low-rank factors.

    Raises:
        TokenConflict: tokenizers contradict each other or the base model's.
        ExtrasConflict: low-rank factors on a tensor that gets more rows.
    """
    touched = [(a, n) for a in adapters if a.tokenizer is not None for n in a.extras if is_vocabulary(n)]
    base = next((a.base for a, _ in touched if a.base is not None), None)
    first = touched[0][0].tokenizer if touched else None
    rows = sorted({shape[0] for _, name in touched if base is not None and (shape := base.shape(name)) is not None})
    if base is None or first is None or not rows:
        return None
    if len(rows) > 1:
        raise TokenConflict(None, f"the base model's tensors have different numbers of tokens ({rows[0]}, {rows[-1]})")
    given = [(ref, a.tokenizer) for ref, a in zip(refs, adapters, strict=True) if a.tokenizer is not None]
    kept = _agreed(given, rows[0], base)
    united: dict[str, UnitedToken] = {}
    for i, adapter in enumerate(adapters):
        for id, content in adapter.added_tokens.items():
            assert adapter.tokenizer is not None  # otherwise it would have no added tokens
            known = united.get(content)
            if known is None:
                token = adapter.tokenizer.added[id]
                united[content] = UnitedToken(rows[0] + len(united), token, (i,))
            else:
                united[content] = replace(known, sources=(*known.sources, i))
    module = next((name for name in factored if is_vocabulary(f"{name}.weight")), None)
    if united and module is not None:
        raise ExtrasConflict(f"{module}.weight", f"gets rows of added tokens ('{next(iter(united))[:80]}') and has"
                             " low-rank factors of the base model's size")  # fmt: skip
    return Vocabulary(rows[0], tuple(united.values()), kept, first)


def added_rows(
    name: str, refs: Sequence[str], adapters: Sequence[Adapter], sources: Sequence[int], vocabulary: Vocabulary
) -> tuple[AddedRow, ...]:
    """The rows of added tokens in one tensor of the result, by id; `sources`: those that change it.

    Raises:
        ExtrasConflict: it is saved whole, and a token has no row in any of them.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    whole = False
    for member, source in enumerate(sources):
        extra = adapters[source].extras[name]
        whole = whole or extra.kind == "whole"
        for new, own in vocabulary.rows_of(adapters[source], name).items():
            found.setdefault(new, []).append((member, extra.rows.index(own) if extra.kind == "rows" else own))
    missing = next((united for united in vocabulary.tokens if united.id not in found), None)
    if whole and missing is not None:
        raise ExtrasConflict(
            name, f"has no row for the added token '{missing.token.content[:80]}': '{refs[missing.sources[0]]}' brings"
            " one for another tensor alone; save this one in it, too (modules_to_save)"
        )  # fmt: skip
    return tuple(AddedRow(id, *zip(*pairs, strict=True)) for id, pairs in sorted(found.items()))


def mean_row(row: AddedRow, weights: Sequence[float], read: Sequence[Tensor]) -> Tensor:
    """Σ |w_t| row_t / Σ |w_t| in float64; `weights` of the extra's sources, `read` the rows of `row.members`."""
    sizes = torch.tensor([abs(weights[member]) for member in row.members], dtype=torch.float64)
    shares = sizes / sizes.sum() if float(sizes.sum()) > 0 else torch.full_like(sizes, 1 / len(sizes))
    return sum((share * read[k].double() for k, share in enumerate(shares)), torch.zeros((), dtype=torch.float64))


def token_warnings(
    vocabulary: Vocabulary | None,
    refs: Sequence[str],
    adapters: Sequence[Adapter],
    rows: Mapping[str, Set[int]],
) -> list[str]:
    """What the plan says of added tokens; `rows`: the result's tensors that have rows for them, and for which ids."""
    if vocabulary is None:
        return []
    found = []
    if vocabulary.tokens:
        count = len(vocabulary.tokens)
        found.append(
            f"{count} added tokens are united by string (for example '{vocabulary.tokens[0].token.content[:80]}')"
            "; each row is the mean of its sources' rows, weighted by the size of their weights. Resize the base model"
            f" to {vocabulary.base_rows + count} tokens before the result is loaded"
        )
    if vocabulary.tokens and not any(name.rpartition(".")[0].endswith(("lm_head", "embed_out")) for name in rows):
        found.append(
            "no source brings rows of added tokens for the output layer: unless it is tied to the embedding, it keeps"
            " for them what resizing gives it"
        )
    for name, ids in rows.items():
        bare = next((united for united in vocabulary.tokens if united.id not in ids), None)
        if bare is not None:
            found.append(
                f"'{name}' gets no row for the added token '{bare.token.content[:80]}', which no source trained there:"
                " it keeps what resizing gives it"
            )
    for ref, adapter in zip(refs, adapters, strict=True):
        if not adapter.added_tokens:
            continue
        assert adapter.tokenizer is not None  # otherwise it would have no added tokens
        named = [t for id, t in sorted(adapter.tokenizer.added.items()) if id >= vocabulary.base_rows]
        left = next((token for token in named if token.content not in vocabulary.ids), None)
        if left is not None:
            found.append(f"the added token '{left.content[:80]}' of '{ref}' has no row in any source, and is left out")
    return found


def _agreed(given: Sequence[tuple[str, Tokenizer]], base_rows: int, base: BaseWeights) -> tuple[AddedToken, ...]:
    """Hold tokenizers against each other and the base's; their entries with ids of the base model, by id."""
    known = base.tokenizer.ids if base.tokenizer is not None else {}
    seen: dict[str, tuple[str, AddedToken]] = {}
    kept: dict[int, tuple[str, AddedToken]] = {}
    first_ref, first = given[0]
    for ref, tokenizer in given:
        if tokenizer is not first and tokenizer.alike != first.alike:
            raise TokenConflict(*_difference(first_ref, first, ref, tokenizer))
        for id, token in sorted(tokenizer.added.items()):
            shown, there = token.content[:80], known.get(token.content, id)
            if there != id and min(there, id) < base_rows:
                raise TokenConflict(
                    token.content, f"token '{shown}' has id {id} in '{ref}', but {there} in the base model's tokenizer"
                )
            other_ref, other = seen.setdefault(token.content, (ref, token))
            if other.id != id and min(other.id, id) < base_rows:
                raise TokenConflict(
                    token.content, f"token '{shown}' has id {other.id} in '{other_ref}' and {id} in '{ref}', of which"
                    f" the base model has those below {base_rows}"
                )  # fmt: skip
            if other.flags != token.flags:
                flag = next(f for f, a, b in zip(FLAGS, other.flags, token.flags, strict=True) if a != b)
                raise TokenConflict(token.content, f"token '{shown}' differs in '{flag}' in '{other_ref}' and '{ref}'")
            if id < base_rows and kept.setdefault(id, (ref, token))[1].content != token.content:
                other_ref, other = kept[id]
                raise TokenConflict(
                    token.content, f"id {id}, of the base model's own, is '{other.content[:80]}' in '{other_ref}' and"
                    f" '{shown}' in '{ref}'"
                )  # fmt: skip
    return tuple(token for _, (_, token) in sorted(kept.items()))


def _difference(left_ref: str, left: Tokenizer, right_ref: str, right: Tokenizer) -> tuple[str | None, str]:
    """(a token that two tokenizers number differently or None, the sentence)."""
    ours, theirs = left.ids, right.ids
    own = {token.content for token in (*left.added.values(), *right.added.values())}
    token = next((t for t in sorted((ours.keys() | theirs.keys()) - own) if ours.get(t) != theirs.get(t)), None)
    start = f"'{left_ref}' and '{right_ref}' were made with tokenizers of different vocabularies: "
    if token is None:
        return None, start + "their merges, normalizers or pre-tokenizers differ"
    ids = " and ".join("none" if found.get(token) is None else str(found[token]) for found in (ours, theirs))
    return token, f"{start}token '{token[:80]}' has the ids {ids}"


def _renumbered(node: Any, ids: Mapping[str, int]) -> Any:
    """A post-processor whose added tokens have their new ids: pairs [string, id], and templates' {tokens, ids}."""
    if isinstance(node, list):
        if len(node) == 2 and isinstance(node[0], str) and isinstance(node[1], int):
            return [node[0], ids.get(node[0], node[1])]
        return [_renumbered(item, ids) for item in node]
    if not isinstance(node, dict):
        return node
    tokens, numbers = node.get("tokens"), node.get("ids")
    if isinstance(tokens, list) and isinstance(numbers, list) and len(tokens) == len(numbers):
        return {**node, "ids": [ids.get(token, number) for token, number in zip(tokens, numbers, strict=True)]}
    return {name: _renumbered(item, ids) for name, item in node.items()}
