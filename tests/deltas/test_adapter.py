"""Opening adapters: scales folded as PEFT folds them, and every broken file refused with a sentence."""

import contextlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deltas.adapter import Adapter
from deltas.errors import (
    BadConfig,
    BadFile,
    BadTensors,
    DeltaError,
    NonFiniteTensor,
    NotLowRank,
    ShapeMismatch,
    UnknownModule,
)
from deltas.header import Limits
from tests.factory import TINY, write_adapter

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def reopen(folder: Path, **kwargs: Any) -> Adapter:
    return Adapter.open(folder / CONFIG, folder / WEIGHTS, **kwargs)


def test_the_scale_is_folded_once(tmp_path: Path) -> None:
    name = "model.layers.0.q_proj"
    folder = write_adapter(tmp_path, rank=4, alpha=8.0, rank_pattern={name: 2}, alpha_pattern={"layers.1.q_proj": 3.0})
    tensors, adapter = load_file(folder / WEIGHTS), reopen(folder)
    for module, scale in {name: 8 / 2, "model.layers.0.v_proj": 8 / 4, "model.layers.1.q_proj": 3 / 4}.items():
        factors = adapter.factors(module)
        prefix = f"base_model.model.{module}"
        expected = scale * tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]
        torch.testing.assert_close(factors.B @ factors.A, expected)
        assert adapter.modules[module].scale == scale


def test_rslora_divides_by_the_root_of_the_modules_own_rank(tmp_path: Path) -> None:
    adapter = reopen(
        write_adapter(tmp_path, rank=4, alpha=8.0, use_rslora=True, rank_pattern={"model.layers.0.q_proj": 2})
    )
    assert adapter.modules["model.layers.0.v_proj"].scale == 8 / 2
    assert adapter.modules["model.layers.0.q_proj"].scale == pytest.approx(8 / math.sqrt(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    adapter = reopen(write_adapter(tmp_path, dtype=dtype))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert adapter.factors("model.layers.0.q_proj").A.dtype == expected
    assert adapter.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    "spelling",
    [
        "base_model.model.{m}.lora_{s}.default.weight",
        "{m}.lora_{s}.weight",
        "base_model.model._orig_mod.{m}.lora_{s}.weight",
        "base_model.model._fsdp_wrapped_module.{m}.lora_{s}.weight",
    ],
)
def test_key_variants_place_the_same_modules(tmp_path: Path, spelling: str) -> None:
    folder = write_adapter(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    renamed = {spelling.format(m=m, s=s): tensors[f"base_model.model.{m}.lora_{s}.weight"] for m in TINY for s in "AB"}
    plain = {m: reopen(folder).factors(m).A.clone() for m in TINY}
    save_file(renamed, folder / WEIGHTS)
    adapter = reopen(folder)
    assert list(adapter.modules) == sorted(TINY)
    for module in TINY:
        torch.testing.assert_close(adapter.factors(module).A, plain[module])


def test_a_regular_expression_as_target_and_as_pattern(tmp_path: Path) -> None:
    config = {"target_modules": r".*layers\.\d+\.(q|v)_proj", "alpha_pattern": {r"layers\.\d\.v_proj": 10.0}}
    adapter = reopen(write_adapter(tmp_path, config=config))
    assert adapter.modules["model.layers.0.v_proj"].alpha == 10.0
    assert adapter.modules["model.layers.0.q_proj"].alpha == 4.0


def test_an_exponential_pattern_is_refused_in_time(tmp_path: Path) -> None:
    modules = {"model." + "a" * 60 + ".q_proj": (6, 8)}
    folder = write_adapter(tmp_path, modules, config={"target_modules": r"model\.(a|a|aa)+\.x_proj"})
    with pytest.raises(BadConfig, match="too long to match"):
        reopen(folder)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "lora_ga"}, "gradients"),
        ({"init_lora_weights": "olora"}, "OLoRA"),
        ({"init_lora_weights": "pissa"}, "weights of its base model"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save (lm_head)"),
        ({"trainable_token_indices": [3], "use_qalora": True}, "QALoRA"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"invented_in_2030": {"x": 1}}, "'invented_in_2030'"),
        ({"peft_type": "OFT"}, "OFT"),
    ],
)
def test_what_is_not_plain_lora_is_said_by_name(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    adapter = reopen(write_adapter(tmp_path, config=config))
    assert reason in " ".join(adapter.obstacles)
    with pytest.raises(NotLowRank):
        adapter.factors("model.layers.0.q_proj")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("base_model.model.model.layers.0.q_proj.lora_magnitude_vector", "DoRA magnitude"),
        ("base_model.model.model.layers.0.q_proj.lora_B.bias", "lora_bias"),
        ("base_model.model.model.layers.0.q_proj.bias", "measured from the base"),
        ("base_model.model.lm_head.weight", "saved whole"),
        ("base_model.model.model.layers.0.q_proj.weight.absmax", "quantised base"),
        ("base_model.model.score.modules_to_save.weight", "saved whole"),
    ],
)
def test_extra_tensors_are_named_and_never_dropped(tmp_path: Path, key: str, reason: str) -> None:
    adapter = reopen(write_adapter(tmp_path, extra_tensors={key: torch.ones(3)}))
    assert any(reason in o and key in o for o in adapter.obstacles)


@pytest.mark.parametrize("size", [0x0280, 0x0380, 0x0480, 0x8B1F])
def test_a_header_whose_length_looks_like_another_format_is_read(tmp_path: Path, size: int) -> None:
    folder = write_adapter(tmp_path, {"q_proj": (6, 8)})
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].ljust(size)
    adapter = reopen(corrupted(folder, header_file(header, data[8 + length :])))
    assert list(adapter.modules) == ["q_proj"]


def test_harmless_inits_stay_plain_lora(tmp_path: Path) -> None:
    for init in (True, False, "gaussian", "eva", "orthogonal"):
        adapter = reopen(write_adapter(tmp_path, config={"init_lora_weights": init}))
        assert adapter.obstacles == ()
        assert adapter.family == "lora"


def corrupted(folder: Path, data: bytes) -> Path:
    (folder / WEIGHTS).write_bytes(data)
    return folder


def header_file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(60), "zip"),
        (b"\x80\x04\x95" + bytes(60), "pickle"),
        (b"<!DOCTYPE html>" + bytes(60), "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "LFS"),
        (bytes(5), "at least 10"),
        (struct.pack("<Q", 10**12) + b"{}", "truncated"),
        (header_file(b"not json at all"), "not JSON"),
        (header_file(b"[1, 2]"), "JSON object"),
        (header_file(b"{}" + b" " * 8), "holds no tensor"),
        (header_file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32"}}', bytes(4)), "twice"),
        (header_file(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', bytes(4)), "needs 8 bytes"),
        (header_file(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)), "non-negative"),
        (header_file(b'{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}', bytes(4)), "dtype"),
        (header_file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"b":NaN}}', bytes(4)), "holds NaN"),
        (header_file(b'{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}', bytes(4)), "dtype"),
        (header_file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)), "hole"),
        (header_file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(9)), "belong to no tensor"),
        (header_file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(2)), "truncated"),
        (header_file(b"[" * 100_000), "not JSON"),
        (header_file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)), "belongs to no module"),
    ],
)
def test_a_broken_file_gets_one_sentence(tmp_path: Path, data: bytes, sentence: str) -> None:
    folder = corrupted(write_adapter(tmp_path), data)
    with pytest.raises(DeltaError, match=sentence):
        reopen(folder)


@pytest.mark.timeout(20)
def test_hostile_headers_cost_no_time(tmp_path: Path) -> None:
    """A repeat at the end of many names, and a name made to backtrack in: both are refused at once."""
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    many = ",".join(f'"{i}":{entry}' for i in [*range(150_000), 149_999])
    long_name = ".lora_magnitude_vector." * 100_000 + "\\n"
    for header, sentence in [("{" + many + "}", "'149999' twice"), (f'{{"{long_name}":{entry}}}', "at most 1000")]:
        folder = corrupted(write_adapter(tmp_path), header_file(header.encode()))
        with pytest.raises(BadFile, match=sentence):
            reopen(folder)


@pytest.mark.parametrize(
    "pattern",
    [
        "((((a{99}){99}){99}){99}){99}",  # fills the memory when compiled
        "(" * 30 + "a" + ")+" * 30,  # so does this: x+ is xx*
        "(?:" * 500 + "a" + ")" * 500,  # recursion of the compiler
        "(?R)",  # recursion of the matcher, which fills the memory
        "(?:q_proj){e<=3}",  # an approximate match, which only some engines know
        "a" * 10_001,
    ],
)
@pytest.mark.parametrize("field", ["target_modules", "rank_pattern", "alpha_pattern"])
def test_patterns_that_cost_too_much_are_refused(tmp_path: Path, field: str, pattern: str) -> None:
    value: Any = pattern if field == "target_modules" else {f"{pattern}$": 2}
    with pytest.raises(BadConfig, match=f"^{field} holds "):
        reopen(write_adapter(tmp_path, config={field: value}))


def test_many_expressions_are_refused_and_many_paths_are_not(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, config={"rank_pattern": {f"layers.{i}.none.*": 1 for i in range(3000)}})
    with pytest.raises(BadConfig, match="regular expressions are too large: use fewer of them"):
        reopen(folder)
    many = {f"layers.{i}.none": 1 for i in range(30_000)} | {"layers.0.q_proj": 5.0}
    adapter = reopen(write_adapter(tmp_path, config={"alpha_pattern": many}))
    assert adapter.modules["model.layers.0.q_proj"].alpha == 5.0
    assert adapter.modules["model.layers.1.q_proj"].alpha == 4.0


@pytest.mark.parametrize(
    ("patterns", "alpha"),
    [
        ({r"layers\.\d\.q_proj": 7, "q_proj": 9}, 7),  # the file's order decides, not the kind of the pattern
        ({"q_proj": 9, r"layers\.\d\.q_proj": 7}, 9),
        ({r"layers\.\d": 7, "0.q_proj": 9}, 9),  # a pattern has to reach the end of the name
        ({"proj": 7, "_proj": 8}, 4),  # and to begin at its start or at a dot
    ],
)
def test_the_first_pattern_that_matches_wins(tmp_path: Path, patterns: dict[str, float], alpha: float) -> None:
    adapter = reopen(write_adapter(tmp_path, config={"alpha_pattern": patterns}))
    assert adapter.modules["model.layers.0.q_proj"].alpha == alpha


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    """Half a surrogate pair is JSON, but nothing that a database, an answer or the safetensors library takes."""
    folder = write_adapter(tmp_path, config={"revision": "\ud800"})
    with pytest.raises(BadConfig, match="half of a surrogate pair"):
        reopen(folder)
    header = b'{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    with pytest.raises(BadFile, match="half of a surrogate pair"):
        reopen(corrupted(write_adapter(tmp_path), header_file(header)))


def test_faults_that_only_the_safetensors_library_sees(tmp_path: Path) -> None:
    """A number that JSON allows and Rust does not, in a field that nobody reads."""
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4],"new":1' + "0" * 400 + "}"
    header = f'{{"model.layers.0.q_proj.lora_magnitude_vector":{entry}}}'.encode()
    adapter = reopen(corrupted(write_adapter(tmp_path), header_file(header, bytes(4))))
    with pytest.raises(BadFile, match="cannot be read as safetensors"):
        adapter.check_finite()


def test_a_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="at most 64 are accepted"):
        reopen(write_adapter(tmp_path), limits=Limits(header_bytes=64))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path)
    data = (folder / WEIGHTS).read_bytes()
    for size in (len(data) - 1, len(data) // 2, 9):
        with pytest.raises(BadFile):
            reopen(corrupted(folder, data[:size]))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_mutated_files_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    folder = write_adapter(tmp_path)
    raw = bytearray((folder / WEIGHTS).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, min(len(raw), 900) - 1))] = data.draw(st.integers(0, 255))
    corrupted(folder, bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw))
    with contextlib.suppress(DeltaError):  # anything else that is raised fails the test
        adapter = reopen(folder)
        adapter.check_finite()
        for module in adapter.modules:
            assert adapter.factors(module).rank > 0


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"r": 0}, "r must be an integer from 1"),
        ({"r": "8"}, "found '8'"),
        ({"r": True}, "found True"),
        ({"lora_alpha": None}, "lora_alpha must be a finite number, found nothing"),
        ({"lora_alpha": 1e400}, "finite"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false"),
        ({"rank_pattern": [1]}, "rank_pattern must be an object"),
        ({"rank_pattern": {"(": 2}}, "not a regular expression"),
        ({"target_modules": []}, "target_modules must be"),
        ({"peft_type": None}, "must name its peft_type"),
        ({"peft_type": "L" * 5000}, "must name its peft_type"),
        ({"base_model_name_or_path": 3}, "must be a string"),
    ],
)
def test_a_bad_config_names_its_field(tmp_path: Path, config: dict[str, Any], sentence: str) -> None:
    folder = write_adapter(tmp_path)
    document = {**json.loads((folder / CONFIG).read_text()), **config}
    with pytest.raises(BadConfig, match=sentence.replace("(", r"\(")):
        Adapter.open(document, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "empty"),
        (b"{", "line 1"),
        (b"[]", "object"),
        (b'{"r": NaN}', "NaN"),
        (b'{"r": 1, "r": 2}', "twice"),
        (b"\xff", "not JSON"),
    ],
)
def test_config_bytes_that_are_no_json_object(tmp_path: Path, raw: bytes, sentence: str) -> None:
    folder = write_adapter(tmp_path)
    with pytest.raises(BadConfig, match=sentence):
        Adapter.open(raw, folder / WEIGHTS)


def rewritten(folder: Path, **changes: torch.Tensor | None) -> Path:
    tensors = load_file(folder / WEIGHTS)
    for key, value in changes.items():
        name = f"base_model.model.{key}"
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.layers.0.q_proj.lora_A.weight": torch.ones(3, 8)}, "lora_A has rank 3 .* lora_B has rank 2"),
        ({"model.layers.0.q_proj.lora_A.weight": None}, "has lora_B but no lora_A"),
        ({"model.layers.0.q_proj.lora_A.weight": torch.ones(2, 8, 1, 1)}, "convolutions"),
        ({"model.layers.0.q_proj.lora_A.weight": torch.ones(2, 8, dtype=torch.int32)}, "dtype I32"),
        (
            {
                "model.layers.0.q_proj.lora_A.weight": torch.ones(3, 8),
                "model.layers.0.q_proj.lora_B.weight": torch.ones(6, 3),
            },
            "rank 3 in the tensors but 2 in adapter_config",
        ),
        (
            {
                "model.layers.0.k_proj.lora_A.weight": torch.ones(2, 8),
                "model.layers.0.k_proj.lora_B.weight": torch.ones(6, 2),
            },
            "target_modules .* does not name it",
        ),
    ],
)
def test_tensors_that_contradict_the_config(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    folder = rewritten(write_adapter(tmp_path), **changes)
    with pytest.raises(BadTensors, match=sentence):
        reopen(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_found_and_named(tmp_path: Path, value: float) -> None:
    tensor = torch.ones(2, 8)
    tensor[1, 3] = value
    adapter = reopen(rewritten(write_adapter(tmp_path), **{"model.layers.0.q_proj.lora_A.weight": tensor}))
    with pytest.raises(
        NonFiniteTensor, match=r"model\.layers\.0\.q_proj\.lora_A\.weight' holds NaN or Inf in 1 of its 16"
    ):
        adapter.check_finite()


def test_modules_are_placed_on_the_base(tmp_path: Path) -> None:
    adapter = reopen(write_adapter(tmp_path))
    adapter.check_base("tiny/base", TINY)
    with pytest.raises(UnknownModule, match=r"layers\.1\.q_proj' does not exist .*1 of the adapter's 3"):
        adapter.check_base("tiny/base", {k: v for k, v in TINY.items() if ".1." not in k})
    with pytest.raises(ShapeMismatch, match="maps 9 inputs to 6 outputs"):
        adapter.check_base("tiny/base", {**TINY, "model.layers.0.q_proj": (6, 9)})


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    """A file whose tensors are a hole in a sparse file opens at once, whatever its size."""
    width = 2**22
    folder = write_adapter(tmp_path, {"model.layers.0.q_proj": (1, width)}, rank=1)
    adapter = reopen(folder)
    assert adapter.modules["model.layers.0.q_proj"].in_features == width
    assert "_file" not in adapter.__dict__
