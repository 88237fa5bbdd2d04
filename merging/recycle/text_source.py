"""A source of texts: an adapter with the label words or the classification head that it answers with.

Label words are a linear head too: a word's logit is its row of the output layer times the state at the last token of
the prompt. So a source is a LoRA, what stands before and after a text, and a head on the last state; a head that was
trained (`score` of a sequence classifier) reads the same place. Our extension; the paper knows images only.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from deltas.adapter import Adapter
from deltas.base import FolderWeights
from merging.recycle.errors import HeadMismatch, SourceUnusable
from merging.recycle.head import Head, built_in_head, read_head_file
from merging.recycle.lora import read_lora
from merging.recycle.source import Teacher
from merging.recycle.text_base import TextBase
from merging.recycle.text_network import Beginning, Heard, TextNetwork

TEXT = "{text}"


@dataclass(frozen=True, slots=True)
class LabelWords:
    """How an adapter is asked: a prompt with `{text}` in it once, and the words of which one comes next, each of them
    one token (most begin with a space)."""

    prompt: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TextSource(Teacher):
    """A teacher of texts: `before` and `after` are the tokens around one."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def beginning(self, network: TextNetwork) -> Beginning:
        """What the network makes of `before`, once for all texts."""
        if not self.before:
            return ()
        with torch.no_grad():
            return network(network.table[torch.tensor([self.before])], self.lora).beginning

    def hear(self, network: TextNetwork, inputs: Tensor, beginning: Beginning) -> Heard:
        """Texts [N, T, D], and what comes after them, as this source hears them."""
        if self.after:
            after = network.table[torch.tensor(self.after)].to(inputs).expand(len(inputs), -1, -1)
            inputs = torch.cat([inputs, after], dim=1)
        return network(inputs, self.lora, beginning=beginning)

    def answers(self, heard: Heard) -> Tensor:
        """[N, ways]."""
        return F.linear(heard.last, self.head.weight.to(heard.last), self.head.bias.to(heard.last))


def open_text_source(
    ref: str,
    adapter: Adapter,
    base: TextBase,
    *,
    label_words: LabelWords | None = None,
    head: Path | None = None,
    classes: tuple[str, ...] = (),
) -> TextSource:
    """Read a source: with label words, or with a head of its own, in the adapter or in the file `head`.

    Raises:
        SourceUnusable, HeadMissing, HeadMismatch, NonFiniteTensor.
    """
    based = adapter.with_base(FolderWeights(base.name, base.folder))
    lora = read_lora(ref, based, base)
    if label_words is None and head is None:
        return TextSource(ref, lora, built_in_head(ref, based, base.name, (base.width,)), classes)
    if label_words is None:
        assert head is not None
        found, named = read_head_file(ref, head, base.name, (base.width,))
        return TextSource(ref, lora, found, classes or named)
    if based.extras:
        raise SourceUnusable(ref, f"beside its LoRA it changes {', '.join(sorted(based.extras))}")
    before, after, words = _read(ref, label_words, base)
    rows = base.network.outputs[torch.tensor(words)].float().cpu()
    called = classes or tuple(word.strip() for word in label_words.words)
    return TextSource(ref, lora, Head(rows, torch.zeros(len(rows))), called, before, after)


def _read(ref: str, asked: LabelWords, base: TextBase) -> tuple[tuple[int, ...], tuple[int, ...], list[int]]:
    """Tokens before and after the text, and the label words'."""
    parts = asked.prompt.split(TEXT)
    if len(parts) != 2:
        raise HeadMismatch(ref, f"asks with a prompt that holds {TEXT} {len(parts) - 1} times; once is wanted")
    words = [base.ids(word) for word in asked.words]
    for word, ids in zip(asked.words, words, strict=True):
        if len(ids) != 1:
            raise HeadMismatch(ref, f"has the label word '{word[:80]}', which is {len(ids)} tokens; one is wanted")
    if len({ids[0] for ids in words}) != len(words) or len(words) < 2:
        raise HeadMismatch(ref, "needs two or more label words, all different")
    return tuple(base.ids(parts[0])), tuple(base.ids(parts[1])), [ids[0] for ids in words]
