"""The tasks: short classifications, seven of them cut out of BIG-bench and the text messages of the examples.

A prompt is ``instruction⏎Input: text⏎Answer:`` and the answer one label of a few, each of which starts with a space
and is one token of the base model: the answer is read off the last position. Only short inputs are taken, which is
what makes thousands of evaluations on two cores possible; everything else about the tasks is BIG-bench's, except
where a reader says so.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.quality.bigbench import best, read_tasks
from examples import sources

Pairs = list[tuple[str, str]]
"""(input text, label without its leading space)"""
Files = Mapping[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Task:
    """One task; `read` makes its pairs out of the named BIG-bench files."""

    name: str
    instruction: str
    labels: tuple[str, ...]
    files: tuple[str, ...]
    read: Callable[[Files], Pairs]
    longest: int = 110  # characters of an input

    def prompt(self, text: str) -> str:
        return f"{self.stem} {text}\nAnswer:"

    @property
    def stem(self) -> str:
        """What all prompts of the task begin with."""
        return f"{self.instruction}\nInput:"


KINDS = {"Quantity": "Number", "Humans": "Person", "Organization": "Company"}  # each label must be one token


def question(files: Files) -> Pairs:
    """Questions with their answers, where BIG-bench names one single type; rare types are left out."""
    pairs: Pairs = []
    for one in files["natural_instructions/subtask046_miscellaenous_question_typing"]:
        kinds = one["target"] if isinstance(one["target"], list) else [one["target"]]
        if len(kinds) == 1:
            kind = kinds[0].rstrip(".")
            pairs.append((one["input"].removeprefix("Question: ").rstrip("."), KINDS.get(kind, kind)))
    return pairs


def sentiment(files: Files) -> Pairs:
    """Sentences of reviews; the ambivalent ones are left out."""
    return [(one["input"], best(one)) for one in files["multiemo/all_sentence_en"]]


def adjectives(files: Files) -> Pairs:
    """Two orders of the same adjectives; the question itself is the instruction."""
    head = "Which sentence has the correct adjective order: "
    return [(one["input"].removeprefix(head).removesuffix(" ?"), best(one)) for one in files["hyperbaton"]]


INTENTS = {
    "add_to_playlist": "playlist",
    "book_restaurant": "restaurant",
    "get_weather": "weather",
    "play_music": "music",
    "search_screening_event": "screening",
    "search_creative_work": "work",
    "rate_book": "book",
}


def intent(files: Files) -> Pairs:
    """Requests to an assistant; BIG-bench's seven intents under one-token names."""
    return [(one["input"].removeprefix("Utterance: "), INTENTS[best(one)]) for one in files["intent_recognition"]]


QUANTITIES = {
    "length": ("meters", "m"),
    "mass": ("grams", "g"),
    "volume": ("liters", "L"),
    "current": ("amps", "A"),
    "temperature": ("kelvin", "K"),
    "amount": ("moles", "mol"),
    "light": ("candelas", "cd"),
    "force": ("newtons", "N"),
    "pressure": ("pascals", "Pa"),
    "frequency": ("hertz", "Hz"),
}


def units(files: Files) -> Pairs:
    """The right answers of the conversion questions, as quantities; what they measure is the label (this is ours)."""
    prefix = r"(?:centi|deca|deci|hecto|kilo|milli|c|da|d|h|k|m)"
    pairs: Pairs = []
    for one in files["unit_conversion/unit_identification"]:
        quantity = best(one).rstrip(".")
        for label, names in QUANTITIES.items():
            if re.search(rf" {prefix}(?:{'|'.join(names)})$", quantity):
                pairs.append((quantity, label))
    return pairs


LANGUAGES = {
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
}


def language(files: Files) -> Pairs:
    """Sentences of reviews in seven languages; the language is the label (this is ours)."""
    return [(one["input"], name) for code, name in LANGUAGES.items() for one in files[f"multiemo/all_sentence_{code}"]]


def brackets(files: Files) -> Pairs:
    """Rows of brackets, matched or not."""
    return [(one["input"], best(one).lower()) for one in files["cs_algorithms/valid_parentheses"]]


def spam(files: Files) -> Pairs:
    """Text messages of the SMS Spam Collection, as the example adapters have them; not from BIG-bench."""
    training, held_out = sources.sms(Random(0))
    return training + held_out


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "question",
            "What type is the answer to this question?",
            ("Entity", "Person", "Date", "Number", "Location", "Company"),
            ("natural_instructions/subtask046_miscellaenous_question_typing",),
            question,
        ),
        Task(
            "sentiment",
            "Is this opinion positive, negative or neutral?",
            ("positive", "negative", "neutral"),
            ("multiemo/all_sentence_en",),
            sentiment,
            longest=90,
        ),
        Task(
            "adjectives",
            "Which sentence, a or b, has the correct adjective order?",
            ("a", "b"),
            ("hyperbaton",),
            adjectives,
        ),
        Task("spam", "Is this text message ham or spam?", ("ham", "spam"), (), spam, longest=160),  # spam is long
        Task(
            "intent",
            "What is this request about?",
            tuple(INTENTS.values()),
            ("intent_recognition",),
            intent,
        ),
        Task(
            "units",
            "What does this quantity measure?",
            tuple(QUANTITIES),
            ("unit_conversion/unit_identification",),
            units,
        ),
        Task(
            "language",
            "Which language is this?",
            tuple(LANGUAGES.values()),
            tuple(f"multiemo/all_sentence_{code}" for code in LANGUAGES),
            language,
            longest=50,
        ),
        Task(
            "brackets",
            "Is this sequence of brackets valid or invalid?",
            ("valid", "invalid"),
            ("cs_algorithms/valid_parentheses",),
            brackets,
        ),
    )
}


def read_pairs(tasks: list[Task], archive_folder: Path) -> dict[str, Pairs]:
    """All pairs of the tasks, with inputs that occur once and labels that the task knows."""
    files = read_tasks(sorted({name for task in tasks for name in task.files}), archive_folder)
    found: dict[str, Pairs] = {}
    for task in tasks:
        first: dict[str, str] = {}
        for text, label in task.read(files):
            text = " ".join(text.split())
            if label in task.labels and len(text) <= task.longest:
                first.setdefault(text, label)
        found[task.name] = list(first.items())
    return found
