"""Tables and sentences of docs/recycle.md, from rows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.recycle.__main__ import CROSS, SHOTS
from benchmarks.recycle.candidates import ENSEMBLE, FITTED, candidates

Row = Mapping[str, Any]


def united(rows: Sequence[Row]) -> tuple[float, float, int] | None:
    """Mean, interval and number of seeds of rows that differ in their seed alone: every seed weighs the same."""
    if not rows:
        return None
    mean = sum(row["mean"] for row in rows) / len(rows)
    return mean, math.hypot(*(row["interval"] for row in rows)) / len(rows), len(rows)


def table(rows: Sequence[Row], shots: int) -> str:
    """One line a candidate, one column a set; a dash where nothing was measured. What was not measured with as many
    seeds as the line says has its own number behind it."""
    sets = [name for name in ("emoji", *CROSS) if any(row["set"] == name for row in rows)]
    lines = [f"| {shots}-shot | seeds × tasks | " + " | ".join(sets) + " |", "| --- | --- |" + " --- |" * len(sets)]
    for candidate in candidates():
        own = [row for row in rows if row["candidate"] == candidate and row["shots"] == shots]
        if own:
            cells = [united([row for row in own if row["set"] == name]) for name in sets]
            seeds = max(cell[2] for cell in cells if cell)
            marked = [_cell(c) + (f" ({c[2]})" if c and c[2] < seeds else "") for c in cells]
            counts = [row["episodes"] for row in own]
            tasks = " to ".join(map(str, sorted({min(counts), max(counts)})))
            lines.append(f"| {candidate} | {seeds} × {tasks} | " + " | ".join(marked) + " |")
    return "\n".join(lines)


def _cell(found: tuple[float, float, int] | None) -> str:
    return f"{100 * found[0]:.1f} ± {100 * found[1]:.1f}" if found else "–"


def verdicts(rows: Sequence[Row]) -> str:
    """What the figures say about the goals, in domain; nothing about what was not measured."""
    lines = []
    for shots in SHOTS:
        cells = {
            name: united([r for r in rows if (r["candidate"], r["set"], r["shots"]) == (name, "emoji", shots)])
            for name in candidates()
        }
        free = {name: cell[0] for name, cell in cells.items() if cell and name not in FITTED}
        others = {name: mean for name, mean in free.items() if not name.startswith("recycle") and name != ENSEMBLE}
        own = {name: mean for name, mean in free.items() if name.startswith("recycle")}
        if not own or not others:
            continue
        best, rival = max(own, key=own.__getitem__), max(others, key=others.__getitem__)
        ahead = 100 * (own[best] - others[rival])
        goal = f" (goal: 5; {'reached' if ahead >= 5 else 'missed'})" if shots == 1 else ""
        lines.append(
            f"- {shots}-shot: {best} is {ahead:+.1f} points from {rival}, the best that needs no tuning{goal}."
        )
        if ENSEMBLE in free:
            apart = 100 * (own[best] - free[ENSEMBLE])
            lines.append(f"- {shots}-shot: {best} is {apart:+.1f} points from all sources asked one by one.")
        if {"recycle-0", "recycle-75"} <= own.keys():
            apart = 100 * (own["recycle-75"] - own["recycle-0"])
            lines.append(
                f"- {shots}-shot: masking 75 % of the patches changes Recycle by {apart:+.1f} points"
                " (goal: at most 1 lost)."
            )
    firsts = [row for row in rows if row["candidate"].startswith("recycle") and row["set"] == "emoji"]
    if firsts:
        longest = max(firsts, key=lambda row: float(row["processor_seconds"]))
        cost = (
            f"{longest['processor_seconds'] / 60:.0f} minutes of one thread, {longest['peak_MB'] / 1000:.1f} GB at most"
        )
        lines.append(f"- The longest of these distillations took {cost} (goals: 90 minutes of two, 6 GB).")
    return "\n".join(lines)


def costs(rows: Sequence[Row]) -> str:
    """What each distillation took; of several rows of one the first that did all of it."""
    lines = ["| distillation | seed | minutes | of one thread | peak memory, MB |", "| --- | --- | --- | --- | --- |"]
    seen = set()
    for row in rows:
        key = (row["candidate"], row["seed"])
        if row["candidate"].startswith("recycle") and key not in seen:
            seen.add(key)
            minutes, own = row["seconds"] / 60, row["processor_seconds"] / 60
            lines.append(f"| {key[0]} | {key[1]} | {minutes:.1f} | {own:.1f} | {row['peak_MB']} |")
    return "\n".join(lines)


def remedies_table(rows: Sequence[Row]) -> str:
    """Variants side by side, seeds of one united; a dash for what was not measured."""
    columns = [f"{mark}{shots}" for mark in ("", "tuxpaint-") for shots in SHOTS]
    lines = [
        "| variant | seeds | 1-shot | 5-shot | tuxpaint, 1-shot | tuxpaint, 5-shot | R at the end"
        " | as its teacher says | meta-training, first and last cycle | minutes of one thread |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]

        def mean(field: str, unit: str = " %", own: Sequence[Row] = own) -> str:
            found = [row[field] * (100 if unit else 1) for row in own if field in row]
            return f"{sum(found) / len(found):.0f}{unit}" if found else ""

        cells = []
        for column in columns:
            known = [row for row in own if f"{column}-shot" in row]
            cells.append(
                _cell(united([{"mean": r[f"{column}-shot"], "interval": r[f"{column}-interval"]} for r in known]))
            )
        trained = [text for at in ("first", "last") if (text := mean(f"{at}_accuracy"))]
        minutes = f"{min(row['processor_seconds'] for row in own) / 60:.1f}"
        rest = [mean("features", ""), mean("believed"), ", ".join(trained), minutes]
        lines.append("| " + " | ".join([name, str(len(own)), *cells, *(cell or "–" for cell in rest)]) + " |")
    return "\n".join(lines)


def statistics_table(rows: Sequence[Row]) -> str:
    """R of real images, one line for each origin of the expected statistics."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    lines = ["| R of real images; expected from | " + " | ".join(sets) + " |", "| --- |" + " --- |" * len(sets)]
    for kind in dict.fromkeys(row["expected"] for row in rows):
        own = {row["set"]: row for row in rows if row["expected"] == kind}
        lines.append(f"| {kind} | " + " | ".join(f"{own[n]['least']} to {own[n]['most']}" for n in sets) + " |")
    return "\n".join(lines)


def prediction_table(document: Mapping[str, Any]) -> str:
    """Seconds of a few-shot prediction over HTTP, by precision and threads."""
    lines = ["| precision, threads | seconds, median | least and most | first |", "| --- | --- | --- | --- |"]
    for name, found in document["seconds"].items():
        spread = f"{found['least']:.2f}, {found['most']:.2f}"
        lines.append(f"| {name} | {found['median']:.2f} | {spread} | {found['first_s']:.2f} |")
    return "\n".join(lines)


def speed_table(rows: Sequence[Row]) -> str:
    """Times of a step by the share that is masked."""
    masks = sorted({row["mask"] for row in rows})
    lines = ["| one step | " + " | ".join(f"{m} %" for m in masks) + " |", "| --- |" + " --- |" * len(masks)]
    for precision, px in sorted({(row["precision"], row["px"]) for row in rows}):
        own = {r["mask"]: r for r in rows if (r["precision"], r["px"]) == (precision, px)}
        cells = " | ".join(f"{own[m]['seconds']:.3f} s ({own[m]['speedup']:.1f} ×)" for m in masks)
        lines.append(f"| {precision}, {px} pixels | {cells} |")
    return "\n".join(lines)


def text_table(rows: Sequence[Row]) -> str:
    """Texts: one line a candidate, one column a set and a number of shots."""
    columns = sorted({(row["set"], row["shots"]) for row in rows})
    lines = ["| texts | seeds | " + " | ".join(f"{name}, {shots}-shot" for name, shots in columns) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(columns))
    for candidate in dict.fromkeys(row["candidate"] for row in rows):
        own = [row for row in rows if row["candidate"] == candidate]
        cells = [united([row for row in own if (row["set"], row["shots"]) == column]) for column in columns]
        seeds = " to ".join(map(str, sorted({cell[2] for cell in cells if cell})))
        lines.append(f"| {candidate} | {seeds} | " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines)
