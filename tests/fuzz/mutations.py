"""Adapters as a stranger might send them: a well-formed one, broken in a few places. A seed names a case for ever.

Files are built by hand, below the level of any library, so that everything can be broken: the header's length, its JSON
as text, one field of one tensor, the tensors' bytes, one field of the config, or any byte of either file.
"""

import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1}
LAYERS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
PREFIX = "base_model.model."


@dataclass
class Draft:
    """An adapter before it is written: the header's entries, the tensors' bytes, the config, and what was broken."""

    entries: dict[str, Any]
    data: bytearray
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """What is sent: `adapter_config.json` and `adapter_model.safetensors` as bytes, and what was done to them."""

    config: bytes
    weights: bytes
    notes: tuple[str, ...]


def case(seed: int) -> Case:
    """The case of this seed."""
    rng = random.Random(seed)
    draft = _well_formed(rng)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        breaker = rng.choice(BREAKERS)
        draft.notes.append(breaker.__name__.strip("_"))
        breaker(draft, rng)
    header = _text(draft.entries, rng, draft.notes).encode("utf-8", "surrogatepass")
    config = _text(draft.config, rng, draft.notes).encode("utf-8", "surrogatepass")
    weights = struct.pack("<Q", len(header)) + header + bytes(draft.data)
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        if rng.random() < 0.7:
            weights = _bytes(weights, rng, draft.notes)
        else:
            config = _bytes(config, rng, draft.notes)
    return Case(config, weights, tuple(draft.notes))


# A well-formed adapter of one of the kinds that people send.


def _well_formed(rng: random.Random) -> Draft:
    dtype = rng.choice(("F32", "F16", "BF16", "F64"))
    rank = rng.randint(1, 4)
    draft = Draft({}, bytearray(), {})
    names = [f"model.layers.{i}.{layer}" for i in range(rng.randint(1, 3)) for layer in LAYERS]
    for name in names:
        _add(draft, f"{PREFIX}{name}.lora_A.weight", dtype, (rank, rng.randint(1, 8)), rng)
        _add(draft, f"{PREFIX}{name}.lora_B.weight", dtype, (rng.randint(1, 8), rank), rng)
    draft.config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny/base", "r": rank,
        "lora_alpha": rng.choice((1, 8, 0.5, 16)), "target_modules": ["q_proj", "v_proj", "down_proj"],
        "use_rslora": rng.random() < 0.3, "rank_pattern": {}, "alpha_pattern": {}, "bias": "none", "lora_dropout": 0.0,
        "init_lora_weights": True, "inference_mode": True, "fan_in_fan_out": False, "modules_to_save": None,
    }  # fmt: skip
    kind = rng.choice((_plain, _plain, _patterned, _of_another_family, _with_more_tensors))
    kind(draft, rng)
    if rng.random() < 0.5:
        draft.entries["__metadata__"] = {"format": "pt"}
    return draft


def _add(draft: Draft, name: str, dtype: str, shape: tuple[int, ...], rng: random.Random) -> None:
    size = math.prod(shape) * ITEM_BYTES[dtype]
    begin = len(draft.data)
    raw = bytearray(rng.randbytes(size))
    for i in range(ITEM_BYTES[dtype] - 1, size, ITEM_BYTES[dtype]):
        raw[i] &= 63  # the high byte of a float is small: entries are finite unless something breaks them
    draft.data += raw
    draft.entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}


def _plain(draft: Draft, rng: random.Random) -> None:
    pass


def _patterned(draft: Draft, rng: random.Random) -> None:
    draft.config["target_modules"] = rng.choice((r".*\.(q|v|down)_proj", "all-linear", r"model\.layers\.\d+\..*"))
    draft.config["alpha_pattern"] = {"q_proj": 3, r"layers\.0\..*": 2.5, "model.layers.1.mlp.down_proj": 1}
    draft.config["rank_pattern"] = {"q_proj": draft.config["r"]}


def _of_another_family(draft: Draft, rng: random.Random) -> None:
    draft.config["peft_type"] = rng.choice(
        ("IA3", "ADALORA", "LOHA", "LOKR", "VERA", "HIRA", "MISS", "BONE", "OFT", "GLORA", "PREFIX_TUNING", "NEW")
    )


def _with_more_tensors(draft: Draft, rng: random.Random) -> None:
    module = f"{PREFIX}model.layers.0.self_attn.q_proj"
    for name, shape in rng.sample(
        (
            (f"{module}.lora_magnitude_vector", (4,)),
            (f"{module}.lora_B.bias", (4,)),
            (f"{module}.bias", (4,)),
            (f"{module}.lora_diag", (2,)),
            (f"{module}.lora_E", (2, 1)),
            (f"{module}.base_layer.weight", (4, 4)),
            (f"{PREFIX}model.embed_tokens.lora_embedding_A", (2, 10)),
            (f"{PREFIX}lm_head.weight", (10, 4)),
            (f"{PREFIX}score.modules_to_save.weight", (3, 4)),
            (f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta", (2, 4)),
            (f"{module}.weight.absmax", (4,)),
        ),
        rng.randint(1, 4),
    ):
        _add(draft, name, "F32", shape, rng)
    draft.config["use_dora"] = rng.random() < 0.5


# What can be broken.

STRANGE_NUMBERS = (
    0, -1, 1, 2, 7, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, 1e-320, float("nan"),
    float("inf"), -float("inf"), True, False,
)  # fmt: skip
STRANGE_TEXTS = (
    "", " ", ".", "..", "../../etc/passwd", "\x00", "\ud800", "\u202e", "é", "名" * 300, "a" * 5000, "." * 5000, "NaN",
    "F8_E8M0", "LORA", "lora_A", ".lora_A.weight", ".lora_A.default.weight", PREFIX, PREFIX * 50, "lora_A.weight",
    "x.lora_A.weight.lora_A.weight", "x.lora_A.a.b.weight", ".lora_magnitude_vector." * 40 + "\n", "q_proj\n", "none",
    "all-linear", "__metadata__",
)  # fmt: skip
STRANGE_PATTERNS = (
    "(", "[", "*", "+", "(?P<a>", "(?<=a+)b", "(a+)+$", "(a|a)*b", r"(.*)*\1", "(?R)", "(?i)Q_PROJ", "\\", "{",
    "a{99999}", "((((a{99}){99}){99}){99}){99}", "(((((a{99}){99}", "(" * 30 + "a" + ")+" * 30, ".*" * 500, "|" * 2000,
    "(.*.*.*.*.*.*.*.*)*x", "(?:" * 500, r"(.|\w)+(.|\w)+(.|\w)+x", "(?:q_proj){e<=3}", "[[:alpha:]--[a-z]]+", "[^]]",
)  # fmt: skip
DTYPES = (*ITEM_BYTES, "BOOL", "I64", "F8_E4M3", "F4", "f32", "complex", "U16")


def _strange(rng: random.Random) -> Any:
    """A JSON value that a field did not expect."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(STRANGE_NUMBERS)
    if kind < 5:
        return rng.choice(STRANGE_TEXTS)
    if kind == 5:
        return rng.choice(STRANGE_PATTERNS)
    if kind == 6:
        return rng.choice((None, [], {}, [[]], [None], {"": {}}, [1, "a", None], {"a": [1]}))
    return [_strange(rng) for _ in range(rng.randint(1, 9))]


def _tensor(draft: Draft, rng: random.Random) -> dict[str, Any]:
    """Some entry of the header, made an object again if it was broken before."""
    names = [name for name, entry in draft.entries.items() if isinstance(entry, dict) and name != "__metadata__"]
    return draft.entries[rng.choice(names)] if names else draft.entries.setdefault("x", {})


def _break_dtype(draft: Draft, rng: random.Random) -> None:
    _tensor(draft, rng)["dtype"] = rng.choice(DTYPES) if rng.random() < 0.7 else _strange(rng)


def _break_shape(draft: Draft, rng: random.Random) -> None:
    entry = _tensor(draft, rng)
    shape = entry.get("shape")
    if not isinstance(shape, list) or not shape or rng.random() < 0.2:
        entry["shape"] = _strange(rng)
    elif rng.random() < 0.3:
        shape.reverse()  # the size stays right
    elif rng.random() < 0.3:
        shape.insert(rng.randrange(len(shape) + 1), 1)  # so it does here
    else:
        shape[rng.randrange(len(shape))] = _strange(rng)


def _break_offsets(draft: Draft, rng: random.Random) -> None:
    entry = _tensor(draft, rng)
    offsets = entry.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) < 2 or rng.random() < 0.2:
        entry["data_offsets"] = _strange(rng)
    elif rng.random() < 0.2:
        offsets.reverse()
    elif rng.random() < 0.5:
        move = rng.choice((-8, -4, -1, 1, 4, 8))
        entry["data_offsets"] = [offset + move if isinstance(offset, int) else offset for offset in offsets]
    else:
        offsets[rng.randrange(2)] = _strange(rng)


def _swap_tensors(draft: Draft, rng: random.Random) -> None:
    """Two tensors exchange their entries, so that sides, shapes or modules no longer fit."""
    names = list(draft.entries)
    one, other = rng.choice(names), rng.choice(names)
    draft.entries[one], draft.entries[other] = draft.entries[other], draft.entries[one]


def _break_field(draft: Draft, rng: random.Random) -> None:
    entry = _tensor(draft, rng)
    if rng.random() < 0.5 and entry:
        del entry[rng.choice(list(entry))]
    else:
        entry[rng.choice(("dtype", "shape", "data_offsets", "new"))] = _strange(rng)


def _break_entry(draft: Draft, rng: random.Random) -> None:
    if draft.entries:
        draft.entries[rng.choice(list(draft.entries))] = _strange(rng)


def _drop_tensor(draft: Draft, rng: random.Random) -> None:
    """Gone from the header; its bytes stay as a hole, or go too if it was the last."""
    if draft.entries:
        gone = draft.entries.pop(rng.choice(list(draft.entries)))
        offsets = gone.get("data_offsets") if isinstance(gone, dict) else None
        if isinstance(offsets, list) and offsets[-1:] == [len(draft.data)] and isinstance(offsets[0], int):
            del draft.data[max(0, offsets[0]) :]


def _rename_tensor(draft: Draft, rng: random.Random) -> None:
    if draft.entries:
        name = rng.choice(list(draft.entries))
        renamed = rng.choice(
            (
                rng.choice(STRANGE_TEXTS),
                name.replace("lora_A", "lora_B"),
                name.replace("weight", "default.weight"),
                name.replace("weight", "bias"),
                name.removeprefix(PREFIX),
                name + rng.choice(STRANGE_TEXTS),
                rng.choice(STRANGE_TEXTS) + name,
                name.replace(
                    "lora_", rng.choice(("lora_embedding_", "hada_", "lokr_", "vera_lambda_", "ia3_", "miss_"))
                ),
            )
        )
        draft.entries[renamed] = draft.entries.pop(name)


def _add_empty_tensors(draft: Draft, rng: random.Random) -> None:
    """Many tensors without bytes, which cost the sender little."""
    at = len(draft.data)
    side = rng.choice(("lora_A.weight", "lora_B.weight", "bias", "lora_magnitude_vector"))
    for i in range(rng.choice((1, 10, 2000))):
        entry = {"dtype": "F32", "shape": rng.choice(([0], [0, 4], [4, 0])), "data_offsets": [at, at]}
        draft.entries[f"{PREFIX}model.layers.{i}.q_proj.{side}"] = entry


def _break_metadata(draft: Draft, rng: random.Random) -> None:
    draft.entries["__metadata__"] = rng.choice((_strange(rng), {"a": _strange(rng)}, {rng.choice(STRANGE_TEXTS): "b"}))


def _break_numbers(draft: Draft, rng: random.Random) -> None:
    """NaN, Inf and subnormals among the tensors' bytes."""
    for _ in range(rng.randint(1, 20)):
        if draft.data:
            at = rng.randrange(len(draft.data))
            draft.data[at : at + 8] = rng.choice(
                (b"\xff" * 8, b"\x00\x00\x80\x7f" * 2, b"\x00\x7c" * 4, b"\x01" + bytes(7))
            )


def _break_config(draft: Draft, rng: random.Random) -> None:
    known = (
        *draft.config, "use_dora", "layers_to_transform", "layers_pattern", "target_parameters", "layer_replication",
        "kasa_config", "exclude_modules", "trainable_token_indices", "lora_bias", "peft_version", "auto_mapping",
        "megatron_core",
    )  # fmt: skip
    name = rng.choice(known)
    if rng.random() < 0.2:
        draft.config.pop(name, None)
    else:
        draft.config[name] = _strange(rng)


def _break_patterns(draft: Draft, rng: random.Random) -> None:
    """Patterns that are wrong, endless to match, or many."""
    name = rng.choice(("target_modules", "rank_pattern", "alpha_pattern", "exclude_modules"))
    if name.endswith("_modules"):
        draft.config[name] = rng.choice(STRANGE_PATTERNS)
    elif rng.random() < 0.5:
        pattern = rng.choice(STRANGE_PATTERNS)
        draft.config[name] = {pattern + str(i): rng.choice((1, 2, "x")) for i in range(rng.choice((1, 3, 300)))}
    else:
        end = rng.choice(("", ".*", "[x]", "$"))
        draft.config[name] = {f"layers.{i}.none{end}": 1 for i in range(rng.choice((10, 3000)))}


def _rename_config_field(draft: Draft, rng: random.Random) -> None:
    if draft.config:
        name = rng.choice(list(draft.config))
        draft.config[rng.choice((*STRANGE_TEXTS, name.upper(), name + "s"))] = draft.config.pop(name)


BREAKERS: tuple[Callable[[Draft, random.Random], None], ...] = (
    _break_dtype, _break_shape, _break_shape, _break_offsets, _break_offsets, _swap_tensors, _break_field, _break_entry,
    _drop_tensor, _rename_tensor, _rename_tensor, _add_empty_tensors, _break_metadata, _break_numbers, _break_config,
    _break_config, _break_config, _break_patterns, _rename_config_field,
)  # fmt: skip


# Text and bytes.


def _text(document: dict[str, Any], rng: random.Random, notes: list[str]) -> str:
    """JSON, now and then broken as text."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    kind = rng.random()
    if kind > 0.12:
        return text
    notes.append("text")
    if kind < 0.02:
        depth = rng.choice((50, 900, 5000, 100_000))
        opening = rng.choice(("[", '{"a":'))
        return text[:-1] + (', "deep":' if len(document) else '"deep":') + opening * depth
    if kind < 0.04 and document:
        name = json.dumps(rng.choice(list(document)))
        return text[:-1] + f", {name}: {rng.choice(('1', 'null', '{}'))}}}"  # the name twice
    if kind < 0.06:
        return text.replace("1", rng.choice(("1" * 5000, "1e999", "-0", "01", "1.", "0x1", "1_0")), 1)
    if kind < 0.08:
        return " " * rng.choice((1, 100_000)) + text + rng.choice(("", " ", "\n" * 1000, "\x00"))
    if kind < 0.10:
        return text.replace('"', rng.choice(("'", "", '\\"', '"\\ud800', '"\\u0000')), rng.randint(1, 3))
    return rng.choice(("", "null", "[]", "0", '"x"', "\ufeff" + text, text + text, text[:-1], text[: len(text) // 2]))


def _bytes(raw: bytes, rng: random.Random, notes: list[str]) -> bytes:
    """One wound: a flipped bit, a cut, something doubled, zeroed or inserted, or another header length."""
    notes.append("bytes")
    kind = rng.randrange(7)
    at = rng.randrange(max(1, len(raw)))
    until = min(len(raw), at + rng.choice((1, 4, 64, 4096)))
    if kind == 0:
        flipped = bytearray(raw)
        for _ in range(rng.choice((1, 1, 2, 30))):
            if flipped:
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 1:
        return raw[:at]
    if kind == 2:
        return raw[:until] + raw[at:]
    if kind == 3:
        return raw[:at] + bytes(until - at) + raw[until:]
    if kind == 4:
        return raw[:at] + rng.randbytes(rng.choice((1, 3, 200))) + raw[at:]
    if kind == 5:
        return raw[at:]
    length = rng.choice((0, 1, 2, 7, len(raw), len(raw) - 8, len(raw) - 9, 2**24, 2**31, 2**32, 2**63, 2**64 - 1))
    return struct.pack("<Q", max(0, length)) + raw[8:]
