"""lm-evaluation-harness through our HTTP API against the same model in its own process, example by example.

The harness' `local-completions` scores labels through /v1/completions (echo and log-probabilities of the prompt) with
an adapter served by Spolia; its `hf` model scores the same labels with transformers and PEFT in one process. The
tasks are the held-out examples that come with the repository.

    python -m benchmarks.serving.lm_eval_agrees --lm-eval PATH [--tasks spam sentiment …] [--limit 100] [--threads 2]

`--lm-eval`: the `lm_eval` command of an environment with `lm-eval[api]` and `peft`. Prints a table and writes
benchmarks/results/serving_lm_eval.json; ends with an error if one example is judged differently.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from app.client import Client
from benchmarks.measuring import base_folder, machine, write_results
from benchmarks.serving.servers import spolia

EXAMPLES = Path(__file__).parents[2] / "examples"
TASK = """\
task: spolia_{name}
dataset_path: json
dataset_kwargs: {{data_files: {file}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{labels}}}}"
doc_to_target: "{{{{labels.index(label)}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def evaluate(command: list[str], room: Path, task: str, limit: int, threads: int) -> dict[int, dict[str, Any]]:
    """Example number → what the harness recorded."""
    out = room / "out"
    where = ["--include_path", str(room / "tasks"), "--output_path", str(out)]
    subprocess.run(
        [*command, "--tasks", f"spolia_{task}", "--limit", str(limit), "--log_samples", *where],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"},
    )
    newest = max(out.glob("**/samples_*.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = [json.loads(line) for line in newest.read_text().splitlines()]
    return {line["doc_id"]: line for line in lines}


def scores(sample: dict[str, Any]) -> list[float]:
    """The log-likelihood of each label."""
    return [float(answer[0]) for answer in sample["filtered_resps"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm-eval", required=True)
    parser.add_argument("--tasks", nargs="*", default=["spam", "sentiment", "measure", "adjectives"])
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        (room / "tasks").mkdir()
        with spolia(room / "data", threads=args.threads) as server, Client(server.url) as client:
            for task in args.tasks:
                file = EXAMPLES / "heldout" / f"{task}.jsonl"
                (room / "tasks" / f"{task}.yaml").write_text(TASK.format(name=task, file=file))
                folder = EXAMPLES / "adapters" / task
                client.push(folder, f"bench/{task}")
                remote = (
                    f"model=bench/{task},base_url={server.url}/v1/completions,tokenizer={base_folder()},"
                    "num_concurrent=8,tokenized_requests=True,max_length=2048"
                )
                local = f"pretrained={base_folder()},peft={folder},dtype=float32"
                http = [args.lm_eval, "--model", "local-completions", "--model_args", remote]
                process = [args.lm_eval, "--model", "hf", "--device", "cpu", "--model_args", local]
                samples = [evaluate(way, room, task, args.limit, args.threads) for way in (http, process)]
                found[task] = compare(*samples)
                print(task, json.dumps(found[task]), flush=True)
    write_results("serving_lm_eval", {"machine": machine(args.threads), "limit": args.limit, "tasks": found})
    if any(one["judged_differently"] for one in found.values()):
        sys.exit("some examples were judged differently")


def compare(http: dict[int, dict[str, Any]], process: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Accuracies, examples judged differently, and the largest difference of a log-likelihood."""
    assert http.keys() == process.keys()
    return {
        "examples": len(http),
        "accuracy_http": sum(one["acc"] for one in http.values()) / len(http),
        "accuracy_process": sum(one["acc"] for one in process.values()) / len(process),
        "judged_differently": [key for key in http if http[key]["acc"] != process[key]["acc"]],
        "largest_difference": max(
            abs(a - b) for key in http for a, b in zip(scores(http[key]), scores(process[key]), strict=True)
        ),
    }


if __name__ == "__main__":
    main()
