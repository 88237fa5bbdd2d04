"""Adapters that PEFT wrote on a tiny model whose vocabulary grew, with the tokenizers that say by which tokens."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

from deltas.adapter import Adapter
from deltas.base import FolderWeights
from deltas.tokenizer import Tokenizer as TokenizerFile
from merging.engine import MergeResult, run_merge
from merging.plan import Plan
from merging.planning import plan_merge
from merging.recipe import Recipe
from tests.deltas.peft_model import noise, tiny_llama

WORDS = 40  # the base model's vocabulary
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def tokenizer(added: Sequence[str | AddedToken] = (), words: Sequence[str] | None = None) -> Tokenizer:
    names = words or [f"w{i}" for i in range(WORDS)]
    made = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0"))
    made.pre_tokenizer = WhitespaceSplit()
    made.add_tokens(list(added))
    return made


def resized(rows: int, tie: bool) -> Any:
    """The base model with as many rows, of which the added ones are arbitrary."""
    model = tiny_llama(tie_word_embeddings=tie)
    model.resize_token_embeddings(rows, mean_resizing=False)
    return model


@dataclass(frozen=True)
class Grown:
    """One adapter folder, and the weights of the model that PEFT makes of it."""

    base: Path
    adapter: Path
    tokens: tuple[str, ...]
    state: dict[str, Tensor]  # float64

    def open(self, *, named: bool = True) -> Adapter:
        path = self.adapter / "tokenizer.json"
        weights = self.adapter / "adapter_model.safetensors"
        found = TokenizerFile(path) if named else None
        adapter = Adapter.open(self.adapter / "adapter_config.json", weights, tokenizer=found)
        return adapter.with_base(FolderWeights("tiny/base", self.base))


def grown(
    folder: Path, name: str, tokens: Sequence[str], *, seed: int = 1, tie: bool = False, spare: int = 0, **config: Any
) -> Grown:
    """`spare`: rows beyond the last token, as padding to a round number gives them."""
    base, target = folder / "base", folder / name
    tiny_llama(tie_word_embeddings=tie).save_pretrained(base)
    tokenizer().save(str(base / "tokenizer.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = resized(WORDS + len(tokens) + spare, tie)
        model.name_or_path = str(base)  # where PEFT looks up that the vocabulary has grown
        peft = get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], **config}))
        peft.peft_config["default"].base_model_name_or_path = str(base)
        noise(peft, seed)
        peft.save_pretrained(target)
        state = loaded(target, WORDS + len(tokens) + spare, tie).merge_and_unload().state_dict()
    document = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**document, "base_model_name_or_path": "tiny/base"}))
    tokenizer(tokens).save(str(target / "tokenizer.json"))
    return Grown(base, target, tuple(tokens), {key: tensor.double() for key, tensor in state.items()})


def loaded(folder: Path, rows: int, tie: bool) -> Any:
    """The folder as PEFT loads it on the base model with this many rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(resized(rows, tie), folder)


def planned(sources: Sequence[Grown | Adapter], weights: Sequence[Any] = (0.75, 0.25, 0.5), **recipe: Any) -> Plan:
    adapters = [source.open() if isinstance(source, Grown) else source for source in sources]
    refs = [{"ref": f"t/{i}", "weight": w} for i, (_, w) in enumerate(zip(adapters, weights, strict=False))]
    return plan_merge(Recipe(sources=refs, **{"rank": "sum", **recipe}), adapters)


def merged(plan: Plan, folder: Path) -> MergeResult:
    """The result, laid out as PEFT and transformers expect it."""
    result = run_merge(plan, folder)
    (folder / "adapter_config.json").write_text(json.dumps(result.config))
    if result.tokenizer is not None:
        (folder / "tokenizer.json").write_bytes(result.tokenizer)
    return result


def oracle(sources: Sequence[Grown], weights: Sequence[float], order: Sequence[str], tie: bool) -> Any:
    """The model of the written rule, worked densely from what PEFT makes of each source alone; `order`: the added
    tokens from id 40 on. Untied, as PEFT unties what it saves whole."""
    model = resized(WORDS + len(order), False)
    model.load_state_dict(resized(WORDS + len(order), tie).state_dict())
    state = model.state_dict()
    before = {key: tensor.clone().double() for key, tensor in state.items()}
    for key in state:
        rows = WORDS if key in TABLES else None
        total = before[key][:rows].clone()
        for source, weight in zip(sources, weights, strict=False):
            total += weight * (source.state[key][:rows] - before[key][:rows])
        state[key][:rows] = total.float()
        for place, token in enumerate(order if key in TABLES else ()):
            having = [(s, abs(w)) for s, w in zip(sources, weights, strict=False) if token in s.tokens]
            row = sum(w * s.state[key][WORDS + s.tokens.index(token)] for s, w in having)
            state[key][WORDS + place] = (row / sum(w for _, w in having)).float()
    return model


def logits(model: Any, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(torch.tensor([list(ids)])).logits
    return found
