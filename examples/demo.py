"""The main job, over HTTP, as a user would do it: start, upload, merge, read the report, measure, generate.

    make demo        or        python -m examples.demo

Starts a service if none answers and leaves it running. Doing it again finds the same versions and is quicker.
Everything goes through the client (app/client.py); `spolia push`, `merge` and `generate` do the same from a shell.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.text import Text
from tokenizers import Tokenizer

from app.cli_output import error_sentence, fail, out, progress, size, spread, table
from app.cli_report import plan_page, report_page
from app.client import Client, SpoliaError
from app.settings import Settings
from examples.measuring import accuracy, answers_of, open_tokenizer, read_examples
from examples.service import start_service

HERE = Path(__file__).parent
PER_TASK = 32
# An adapter that forgets its task soon when others join gets more weight. Picked by hand on the examples measured here.
WEIGHTS = {"spam": 0.7, "measure": 0.5, "dates": 0.9, "language": 0.5}
TASKS = tuple(WEIGHTS)
RANK = 16


def heading(text: str) -> None:
    """A line that says what comes next."""
    out.print()
    out.rule(text, align="left", style="dim")


def upload(spolia: Client) -> dict[str, str]:
    """Push the four example adapters; their pinned references by task."""
    heading("1  Upload four adapters that differ in rank, scaling, targets and precision")
    shown = table(None, "adapter", ">rank", ">scale", "targets", "dtype", ">parameters", ">size")
    pinned: dict[str, str] = {}
    for task in TASKS:
        with progress(f"push examples/{task}", data=True) as move:
            folder = HERE / "adapters" / task
            version = spolia.push(folder, f"examples/{task}", tags=["example"], on_progress=move)
        pinned[task] = version["ref"]
        shown.add_row(
            version["ref"],
            spread(version["rank"]),
            f"{spread(version['scale'])}{' (rsLoRA)' if version['use_rslora'] else ''}",
            " ".join(target.removesuffix("_proj") for target in version["target_modules"]),
            version["dtype"],
            f"{version['parameters']:,}",
            size(version["size_bytes"]),
        )
    out.print(shown)
    return pinned


def merge(spolia: Client, pinned: dict[str, str]) -> dict[str, str]:
    """Merge the four by `sum` and by `lego`; the results' pinned references by method."""
    sources = {pinned[task]: weight for task, weight in WEIGHTS.items()}
    made: dict[str, str] = {}
    for number, method in enumerate(("sum", "lego"), start=2):
        heading(f"{number}  Merge them by `{method}`")
        name = f"examples/four-by-{method}"
        if number == 2:
            out.print("What it will do (a dry run):")
            out.print(plan_page(spolia.merge(name, sources, method=method, rank=RANK, dry_run=True)))
        started = time.perf_counter()
        with progress(f"merge by {method}", data=False) as move:
            job = spolia.merge(name, sources, method=method, rank=RANK, on_progress=move)
        made[method] = job["result"]["ref"]
        again = " (this recipe was merged before)" if job["cached"] else ""
        out.print(f"{made[method]} in {time.perf_counter() - started:.1f} s{again}. What was kept and what was lost:")
        out.print(report_page(spolia.report(made[method]), worst=3))
    return made


def measure(spolia: Client, models: dict[str, str | None], tokenizer: Tokenizer, per_task: int) -> None:
    """The accuracy of each model on each task, asked over HTTP, as a table."""
    heading(f"4  Accuracy on {per_task} held-out examples a task, measured now")
    held_out = {task: read_examples(HERE / "heldout" / f"{task}.jsonl", per_task) for task in TASKS}
    found: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        started = time.perf_counter()
        with progress(name, data=False) as move:
            found[name] = {}
            for done, task in enumerate(TASKS, start=1):
                answers = answers_of(spolia, held_out[task], model, tokenizer)
                found[name][task] = accuracy(answers, held_out[task])
                move(done, len(TASKS))
        out.print(f"  {name}: {len(TASKS) * per_task} prompts in {time.perf_counter() - started:.1f} s")
    shown = table(None, "%", *(f">{task}" for task in TASKS), ">average")
    for name, scores in found.items():
        cells = [Text(points(scores[task]), style="bold" if name == own(task) else "") for task in TASKS]
        shown.add_row(name, *cells, points(sum(scores.values()) / len(scores)))
    out.print(shown)
    out.print(f"Each figure is within about {100 * (0.25 / per_task) ** 0.5:.0f} points of the true one (one sigma).")


def own(task: str) -> str:
    """The row of a task's own adapter."""
    return f"{task} (adapter)"


def points(value: float) -> str:
    """A share in percentage points, for a table whose corner says %."""
    return f"{100 * value:.1f}"


def talk(spolia: Client, pinned: dict[str, str], merged: dict[str, str]) -> None:
    """Generate with the base, an adapter, the merges and a weighted set, streamed."""
    heading("5  Generate")
    prompt = str(read_examples(HERE / "heldout" / "measure.jsonl", 1)[0]["prompt"])
    weighted = {pinned["measure"]: 0.8, pinned["spam"]: 0.4}
    label = " + ".join(f"{weight:g} × {ref}" for ref, weight in weighted.items())
    asks: dict[str, dict[str, Any]] = {"base": {}, pinned["measure"]: {"model": pinned["measure"]}}
    asks |= {ref: {"model": ref} for ref in merged.values()}
    asks[label] = {"adapters": weighted}
    out.print("A completion of:")
    out.print(Padding(prompt, (0, 0, 0, 4), expand=False))
    for name, ask in asks.items():
        say(spolia, name, prompt, {**ask, "max_tokens": 6, "stop": ["\n"]})
    question = "Give me one short tip for writing a clear e-mail."
    out.print(f"\nA chat: {question}")
    for name in ("base", merged["lego"], label):
        say(spolia, name, question, {**asks[name], "chat": True, "max_tokens": 40})


def say(spolia: Client, name: str, prompt: str, options: dict[str, Any]) -> None:
    """Print one answer as it is made."""
    out.print(f"  {name}: ", end="", style="bold")
    for piece in spolia.generate(prompt, temperature=0, **options):
        out.file.write(piece.replace("\n", " ⏎ "))
        out.file.flush()
    out.print()


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="Upload, merge, measure and generate, over HTTP.")
    parser.add_argument("--per-task", type=int, default=PER_TASK, help="held-out examples of each task")
    per_task = parser.parse_args().per_task
    settings = Settings()
    url = os.environ.get("SPOLIA_URL") or f"http://{settings.host}:{settings.port}"
    started = time.perf_counter()
    with Client(url) as spolia:
        stop = start_service(spolia, settings)
        pinned = upload(spolia)
        merged = merge(spolia, pinned)
        base = str(spolia.models()[0]["id"])
        models: dict[str, str | None] = {"base": None}
        models |= {own(task): ref for task, ref in pinned.items()}
        models |= {f"merged by {method}": ref for method, ref in merged.items()}
        measure(spolia, models, open_tokenizer(settings.model_folders, base), per_task)
        talk(spolia, pinned, merged)
    heading(f"Done in {time.perf_counter() - started:.0f} s. Spolia listens on {url}  (API pages: {url}/docs)")
    prefix = "" if url == "http://127.0.0.1:8000" else f"SPOLIA_URL={url} "
    command = f"{prefix}{Path(sys.executable).with_name('spolia')}"
    out.print("Go on with:")
    out.print(f"  {command} show {merged['lego']}", soft_wrap=True)
    out.print(
        f"  {command} merge me/mine {pinned['spam']}=0.7 {pinned['dates']}=0.7 --method sum --rank 12", soft_wrap=True
    )
    out.print(f"  {command} generate 'What is a LoRA adapter?' --adapter {pinned['spam']}=0.5", soft_wrap=True)
    out.print(f"Stop the service with: {stop}")


if __name__ == "__main__":
    try:
        main()
    except SpoliaError as error:
        fail(error_sentence(error))
    except KeyboardInterrupt:
        fail("interrupted; a service that was started keeps running.", 130)
