"""Many prompts in one row: the shared beginning once, then the rest of each prompt, which sees itself and it alone.

The mask is a tree's: a token attends to the stem of its task and to the earlier tokens of its own prompt. No padding
is computed and no instruction twice, and each prompt's result is that of the prompt alone, up to rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROW_TOKENS = 256  # attention is quadratic in the row, the rest gains nothing above this


@dataclass(frozen=True, slots=True)
class Encoded:
    """One prompt as tokens: `stem` is the task's shared beginning, `rest` what follows it."""

    stem: tuple[int, ...]
    rest: tuple[int, ...]
    labels: tuple[int, ...]  # the labels' tokens
    answer: int  # which of them is right


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One packed row of n tokens with k prompts."""

    ids: Tensor  # [1, n]
    positions: Tensor  # [1, n]
    mask: Tensor  # [1, 1, n, n] bool, true where a token may look
    ends: Tensor  # [k] the last token of each prompt
    owners: Tensor  # [n] which prompt a token belongs to, -1 for stems
    answers: Tensor  # [k] the right label's token
    labels: tuple[tuple[int, ...], ...]  # [k] the tokens of all its labels
    order: tuple[int, ...]  # the prompts' places in the list that was packed


def encode(tokenize: Callable[[str], list[int]], stem: str, prompt: str, labels: Sequence[str], label: str) -> Encoded:
    """Tokens of one prompt.

    Raises:
        ValueError: when the tokens of the stem are not where those of the prompt begin, or a label is not one token.
    """
    head, whole = tokenize(stem), tokenize(prompt)
    if whole[: len(head)] != head:
        raise ValueError(f"the tokens of {stem!r} are not the first ones of {prompt!r}")
    tokens = [tokenize(f" {one}") for one in labels]
    if any(len(one) != 1 for one in tokens) or len({one[0] for one in tokens}) != len(labels):
        raise ValueError(f"every label must be one token of its own, got {dict(zip(labels, tokens, strict=True))}")
    return Encoded(tuple(head), tuple(whole[len(head) :]), tuple(one[0] for one in tokens), labels.index(label))


def pack(prompts: Sequence[Encoded]) -> Row:
    """All prompts in one row."""
    ids: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    stems: list[int] = []
    order: list[int] = []
    ends: list[int] = []
    heads = list(dict.fromkeys(one.stem for one in prompts))
    for number, head in enumerate(heads):
        ids += head
        positions += range(len(head))
        owners += [-1] * len(head)
        for place, one in enumerate(prompts):
            if one.stem == head:
                ids += one.rest
                positions += range(len(head), len(head) + len(one.rest))
                owners += [place] * len(one.rest)
                order.append(place)
                ends.append(len(ids) - 1)
        stems += [number] * (len(ids) - len(stems))
    owner, stem = torch.tensor(owners), torch.tensor(stems)
    earlier = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    visible = (owner[None] == -1) | (owner[None] == owner[:, None])
    mask = earlier & visible & (stem[None] == stem[:, None])
    answers = torch.tensor([prompts[place].labels[prompts[place].answer] for place in order])
    return Row(
        torch.tensor([ids]),
        torch.tensor([positions]),
        mask[None, None],
        torch.tensor(ends),
        owner,
        answers,
        tuple(prompts[place].labels for place in order),
        tuple(order),
    )


def rows(prompts: Sequence[Encoded]) -> list[Row]:
    """The prompts of one task packed into rows of about `ROW_TOKENS` tokens, in their order."""
    packed: list[Row] = []
    waiting: list[Encoded] = []
    tokens = len(prompts[0].stem)
    for one in prompts:
        if waiting and tokens + len(one.rest) > ROW_TOKENS:
            packed.append(pack(waiting))
            waiting, tokens = [], len(one.stem)
        waiting.append(one)
        tokens += len(one.rest)
    return [*packed, pack(waiting)]


def hidden(model: Any, row: Row) -> Tensor:
    """The last hidden states of a row, [n, width]. `model` is a causal language model of transformers."""
    least = torch.finfo(model.dtype).min  # what is added to the scores of the tokens that may not be seen
    mask = torch.zeros(row.mask.shape, dtype=model.dtype).masked_fill_(~row.mask, least)
    states: Tensor = model.model(
        input_ids=row.ids, attention_mask=mask, position_ids=row.positions, use_cache=False
    ).last_hidden_state
    return states[0]


@torch.inference_mode()
def right(model: Any, row: Row) -> list[bool]:
    """Whether the right label has the highest logit of its task's, for each prompt in the packed list's order."""
    ends = hidden(model, row)[row.ends]
    found = [False] * len(row.order)
    for place, end, labels, answer in zip(row.order, ends, row.labels, row.answers.tolist(), strict=True):
        logits = (model.lm_head.weight[torch.tensor(labels)] @ end).float()
        found[place] = labels[int(logits.argmax())] == answer
    return found


@torch.inference_mode()
def means(model: Any, row: Row) -> Tensor:
    """The mean last hidden state over each prompt's own tokens, in the packed list's order: [k, width] float32."""
    states = hidden(model, row).float()
    return torch.stack([states[row.owners == place].mean(0) for place in range(len(row.order))])
