"""Adapters that PEFT wrote on tiny models, their merge here, and the model that their changes should give.

The oracle is PEFT's own merge of each source alone into the base, whose changes are then added densely.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel

from merging.engine import MergeResult, run_merge
from merging.plan import Plan
from merging.planning import plan_merge
from merging.recipe import Recipe
from tests.deltas.peft_model import Saved, saved, tiny_llama, tiny_mixtral

Q_V = ["q_proj", "v_proj"]
TOKENS = torch.arange(24).reshape(2, 12) * 3 % 40
WEIGHTS = (0.75, -0.5)


def biased() -> Any:
    model = tiny_llama(attention_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data += torch.linspace(-1, 1, parameter.numel())
    return model


def tied() -> Any:
    return tiny_llama(tie_word_embeddings=True)


def sources(tmp_path: Path, configs: Sequence[Any], make: Callable[[], Any] = tiny_llama) -> list[Saved]:
    return [saved(tmp_path, c, seed=i + 1, name=f"s{i}", make=make) for i, c in enumerate(configs)]


def planned(found: Sequence[Saved], weights: Sequence[float] = WEIGHTS, **recipe: Any) -> Plan:
    refs = [{"ref": f"t/{i}", "weight": w} for i, (_, w) in enumerate(zip(found, weights, strict=False))]
    return plan_merge(Recipe(sources=refs, **{"rank": "sum", **recipe}), [source.open() for source in found])


def merged(found: Sequence[Saved], folder: Path, weights: Sequence[float] = WEIGHTS, **recipe: Any) -> MergeResult:
    result = run_merge(planned(found, weights, **recipe), folder, workers=2)
    (folder / "adapter_config.json").write_text(json.dumps(result.config))
    return result


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits
    return found


def changed(make: Callable[[], Any], found: Sequence[Saved], weights: Sequence[float] = WEIGHTS) -> Any:
    """The base with every source's change, as PEFT merges it alone, added with its weight."""
    model = make()
    state = model.state_dict()
    for source, weight in zip(found, weights, strict=False):
        # tied tensors are one, and are changed once
        tensors = {state[n if n in state else f"{n}.weight"].data_ptr(): n for n in reversed(source.deltas)}
        for name in tensors.values():
            state[name if name in state else f"{name}.weight"] += (weight * source.deltas[name]).float()
    return model


def loaded(make: Callable[[], Any], folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing or an unexpected key is a warning of PEFT's
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*tied")
        warnings.filterwarnings("ignore", message=".*merging LoRA weights won't be possible")
        # PEFT looks for the patterns of parameters among modules before it uses them
        warnings.filterwarnings("ignore", message=".*(rank|alpha)_pattern keys did not match")
        return PeftModel.from_pretrained(make(), folder)


def assert_exact(make: Callable[[], Any], found: Sequence[Saved], folder: Path) -> None:
    expected = logits(changed(make, found))
    assert float((expected - logits(make())).abs().max()) > 1e-2
    torch.testing.assert_close(logits(loaded(make, folder)), expected, rtol=1e-4, atol=1e-5)


LORA = {"r": 2, "lora_alpha": 6, "target_modules": Q_V}


def everything(tmp_path: Path) -> list[Saved]:
    """Two adapters of a mixture: linear layers, an embedding and experts in both, tokens, a head and biases apart."""
    common = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "target_modules": [*Q_V, "lm_head"]}
    first = LoraConfig(r=2, **common, modules_to_save=["norm", "gate"])
    return sources(tmp_path, [first, LoraConfig(r=2, **common, trainable_token_indices=[7])], tiny_mixtral)
