"""Accuracy over HTTP: which of a task's labels does a model find likeliest after the prompt?

The labels' tokens get a logit bias of +100, the largest that the API takes, so that greedy decoding of one token picks
the likeliest label. This asks for nothing beyond OpenAI's protocol.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from app.client import Client, Json

PROMPTS_A_CALL = 32


def read_examples(path: Path, count: int) -> Sequence[Json]:
    """The first `count` held-out examples of a file: {"prompt", "label", "labels"}."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


def answers_of(spolia: Client, examples: Sequence[Json], model: str | None, tokenizer: Tokenizer) -> Sequence[str]:
    """The label that the model chooses for each example; without a model, the base."""
    bias = {str(tokenizer.encode(label, add_special_tokens=False).ids[0]): 100 for label in examples[0]["labels"]}
    answers: list[str] = []
    for start in range(0, len(examples), PROMPTS_A_CALL):
        prompts = [example["prompt"] for example in examples[start : start + PROMPTS_A_CALL]]
        answer = spolia.complete(prompts, model=model, max_tokens=1, temperature=0, logit_bias=bias)
        answers += [choice["text"] for choice in sorted(answer["choices"], key=lambda choice: int(choice["index"]))]
    return answers


def accuracy(answers: Sequence[str], examples: Sequence[Json]) -> float:
    """Share of right answers, 0 to 1."""
    right: int = sum(answer == example["label"] for answer, example in zip(answers, examples, strict=True))
    return right / len(examples)


def open_tokenizer(folders: Sequence[Path], base: str) -> Tokenizer:
    """The tokenizer of the base model `base` (a hub id), from the folders where the service keeps base models.

    Raises:
        FileNotFoundError: no folder has it.
    """
    for folder in folders:
        file = folder / base.replace("/", "--") / "tokenizer.json"
        if file.is_file():
            return Tokenizer.from_file(str(file))
    raise FileNotFoundError(f"no tokenizer of {base} in {', '.join(map(str, folders))}")
