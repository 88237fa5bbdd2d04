"""Example data that is made here: quantities, adjective order, dates, requests to a voice assistant.

Every maker takes a random generator and returns (training pairs, held-out pairs) that share no input. Where a
task has a vocabulary that matters (requests, nouns), the held-out part uses words or sentences that training
never shows.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random

Pairs = list[tuple[str, str]]

UNITS = {
    "length": "metres;centimetres;millimetres;kilometres;inches;feet;yards;miles;furlongs;fathoms;light years",
    "mass": "grams;kilograms;milligrams;tonnes;pounds;ounces;stone;carats;grains;quintals;micrograms;kg",
    "time": "seconds;minutes;hours;days;weeks;fortnights;months;years;decades;centuries;milliseconds",
    "temperature": "kelvins;degrees Celsius;degrees Fahrenheit;degrees Rankine;°C;°F;degrees centigrade;K",
    "volume": "litres;millilitres;gallons;pints;cubic metres;cubic inches;quarts;barrels;fluid ounces;teaspoons",
    "speed": "knots;metres per second;miles per hour;km/h;feet per minute;mph;inches per second;m/s",
    "area": "hectares;acres;square metres;square feet;square miles;ares;square inches;m²;square kilometres",
    "energy": "joules;kilojoules;calories;kilowatt hours;electronvolts;kilocalories;MJ;kWh;ergs;GJ",
}
MEASURES = tuple(UNITS)

ADJECTIVES = {
    "opinion": "lovely ugly beautiful awful nice splendid strange charming boring pretty",
    "size": "big small huge tiny tall short large little enormous long",
    "age": "old new ancient young modern antique",
    "shape": "round square flat oval triangular curved",
    "colour": "red green blue yellow purple orange brown grey pink",
    "origin": "Italian French Japanese Mexican Swedish Turkish Kenyan Chinese Polish",
    "material": "wooden leather plastic cotton metal paper glass silk woollen",
    "purpose": "hiking cooking sleeping gardening fishing writing dancing",
}
NOUNS = "box bag table lamp chair coat hat bowl boat car house ring tent knife pen clock vase rug bench basket".split()
NEW_NOUNS = ["shirt", "bicycle", "bottle", "mirror", "ladder", "drum", "kite", "spoon", "tray", "pillow"]

DATES: dict[str, Callable[[datetime], str]] = {
    "ISO": lambda when: when.strftime("%Y-%m-%d"),
    "American": lambda when: when.strftime("%m/%d/%Y"),
    "British": lambda when: when.strftime("%d/%m/%Y"),
    "German": lambda when: when.strftime("%d.%m.%Y"),
    "compact": lambda when: when.strftime("%Y%m%d"),
    "Unix": lambda when: str(int(when.timestamp())),
    "written": lambda when: f"{when.day} {when:%B} {when.year}",
    "week": lambda when: when.strftime("%G-W%V-%u"),
}
DATE_FORMATS = tuple(DATES)

# Each request is a sentence with a slot; the sentences after the bar are held out.
REQUESTS = {
    "music": (
        "play {song}|put on {song}|I want to hear {song}|skip this song|turn the volume of {song} up|shuffle {song}"
        "|what is the name of this song|add {song} to my playlist",
        "could we listen to {song}|next track please|stop playing {song}",
    ),
    "lights": (
        "turn on the lamp in the {room}|make it brighter in the {room}|switch off every bulb in the {room}"
        "|dim the {room} lights|it is too dark in the {room}|set the {room} lamps to blue|lights out in the {room}",
        "can you brighten the {room}|illuminate the {room}|leave only one lamp on in the {room}",
    ),
    "weather": (
        "will it rain {day}|how warm does it get {day}|is it going to snow {day}|do I need an umbrella {day}"
        "|what is the forecast for {day}|how windy is it {day}|will the sun shine {day}",
        "is there a storm coming {day}|should I wear a warm coat {day}|how many degrees outside {day}",
    ),
    "alarm": (
        "wake me up at {hour}|set an alarm for {hour}|I have to get up at {hour}|cancel the {hour} alarm"
        "|move my wake-up call to {hour}|do not wake me before {hour}|snooze until {hour}",
        "I must be out of bed by {hour}|please wake us at {hour}|make sure I am awake at {hour}",
    ),
    "timer": (
        "count down {span}|set a timer for {span}|tell me when {span} are over|the eggs need {span}"
        "|how long is left of the {span}|pause the {span} countdown|start {span} for the pasta",
        "let me know after {span}|the cake must bake for {span}|add {span} to the countdown",
    ),
    "shopping": (
        "put {food} on the list|we are out of {food}|order {food}|remind me to buy {food}|add {food} to my basket"
        "|take {food} off the shopping list|do we still need {food}",
        "I should get {food} at the store|there is no {food} left|get me some more {food}",
    ),
    "calendar": (
        "book a meeting with {person} {day}|what is on my schedule {day}|move my appointment with {person} to {day}"
        "|am I free {day}|cancel lunch with {person} {day}|put the dentist in for {day}|when do I meet {person}",
        "find a slot for {person} {day}|do I have any plans {day}|note that {person} visits {day}",
    ),
    "call": (
        "phone {person}|ring {person}|dial the number of {person}|call {person} back|get {person} on the line"
        "|hang up on {person}|I want to speak to {person}",
        "connect me with {person}|redial {person}|try to reach {person} by telephone",
    ),
}
INTENTS = tuple(REQUESTS)
SLOTS = {
    "song": "some jazz;the new album;a lullaby;my favourites;some Mozart;rock from the eighties;a happy tune;the radio",
    "room": "kitchen;bedroom;hall;garden;bathroom;garage;living room;attic;cellar;study",
    "day": "today;tomorrow;on Monday;on Friday;this weekend;next week;tonight;on Sunday morning;on the third",
    "hour": "six;half past seven;5:45;eight o'clock;noon;6 am;quarter to nine;7:20;four in the morning",
    "span": "ten minutes;half an hour;90 seconds;three minutes;an hour;twelve minutes;45 seconds;two hours",
    "food": "milk;brown bread;two lemons;coffee;olive oil;apples;a bag of rice;soap;cheese;tomatoes;batteries",
    "person": "Anna;my brother;Doctor Lee;the office;Tom and Sue;grandmother;Mr Okafor;the plumber;Maria",
}


def measure(rng: Random) -> tuple[Pairs, Pairs]:
    """A number and a unit; the label is what the unit measures. Held out: other numbers."""
    pairs: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for label, text in UNITS.items():
        units = text.split(";")
        for chosen, count in ((held_out, 25), (pairs, 250)):
            goal = len(chosen) + count
            while len(chosen) < goal:
                digits = rng.choice((0, 0, 1, 2))
                number = f"{10 ** rng.uniform(0, 4):.{digits}f}"
                entry = f"{number} {rng.choice(units)}"
                if entry not in held_out:
                    chosen[entry] = label
    return shuffled(pairs, rng), shuffled(held_out, rng)


def adjectives(rng: Random) -> tuple[Pairs, Pairs]:
    """The same phrase in two orders; the label names the usual one. Held out: other nouns."""

    def make(nouns: list[str], count: int) -> Pairs:
        made: dict[str, str] = {}
        while len(made) < count:
            kinds = sorted(rng.sample(range(len(ADJECTIVES)), rng.choice((2, 2, 3))))
            classes = list(ADJECTIVES.values())
            words = [rng.choice(classes[kind].split()) for kind in kinds]
            other = words[:]
            while other == words:
                rng.shuffle(other)
            noun, label = rng.choice(nouns), "AB"[len(made) % 2]
            first, second = (words, other) if label == "A" else (other, words)
            made[f"(A) {' '.join(first)} {noun} (B) {' '.join(second)} {noun}"] = label
        return shuffled(made, rng)

    return make(NOUNS, 3000), make(NEW_NOUNS, 200)


def dates(rng: Random) -> tuple[Pairs, Pairs]:
    """One day between 1990 and 2035 in one of eight formats; American and British ones are never ambiguous."""
    pairs: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for label, write in DATES.items():
        for chosen, count in ((held_out, 25), (pairs, 250)):
            goal = len(chosen) + count
            while len(chosen) < goal:
                when = datetime(1990, 1, 1, tzinfo=UTC) + timedelta(seconds=rng.randrange(45 * 365 * 86400))
                entry = write(when)
                if entry not in held_out and (when.day > 12 or label not in ("American", "British")):
                    chosen[entry] = label
    return shuffled(pairs, rng), shuffled(held_out, rng)


def intent(rng: Random) -> tuple[Pairs, Pairs]:
    """A request to a voice assistant; the label is its domain. Held out: sentences that training never shows."""
    pairs: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for label, (known, unseen) in REQUESTS.items():
        for chosen, sentences, count in ((pairs, known, 150), (held_out, unseen, 25)):
            mine: dict[str, str] = {}
            for _ in range(count * 20):
                entry = rng.choice(sentences.split("|"))
                for slot, fillers in SLOTS.items():
                    entry = entry.replace(f"{{{slot}}}", rng.choice(fillers.split(";")))
                entry = rng.choice(("", "", "please ", "hey, ")) + entry + rng.choice(("", "", "", "?"))
                if len(mine) < count:
                    mine[entry] = label
            chosen.update(mine)
    return shuffled(pairs, rng), shuffled(held_out, rng)


def shuffled(pairs: dict[str, str], rng: Random) -> Pairs:
    """The pairs in random order."""
    items = list(pairs.items())
    rng.shuffle(items)
    return items
