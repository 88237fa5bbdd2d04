"""Adapters of other kinds than plain LoRA over HTTP: what PEFT wrote goes in, and what comes out is a PEFT LoRA."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import KasaConfig, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.facts import RULES
from app.judging import judge_refused
from tests.app.service import BASE, Service
from tests.deltas.peft_model import noise

LAYER = "model.layers.3"
TARGETS = [f"{LAYER}.self_attn.v_proj", f"{LAYER}.self_attn.o_proj"]
TOKENS = torch.arange(100, 140).reshape(2, 20)


def base_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits
    return found


def peft_adapter(base_folder: Path, folder: Path, size: float, **config: Any) -> None:
    """A real adapter of the bundled base, with noise in place of training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base_model(base_folder), LoraConfig(**{"r": 2, "target_modules": TARGETS, **config}))
        noise(model, 3, size)
        model.peft_config["default"].base_model_name_or_path = BASE
        model.name_or_path = ""
        model.save_pretrained(folder)


def loaded(base_folder: Path, folder: Path) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits(PeftModel.from_pretrained(base_model(base_folder), folder))


def weights(base_folder: Path, folder: Path) -> dict[str, torch.Tensor]:
    """What PEFT's own merge makes of the adapted weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = PeftModel.from_pretrained(base_model(base_folder), folder).merge_and_unload().state_dict()
    return {name: state[f"{name}.weight"].double() for name in TARGETS}


@pytest.fixture(scope="module")
def plain(base_folder: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model = base_model(base_folder)
    state = model.state_dict()
    return logits(model), {name: state[f"{name}.weight"].double() for name in TARGETS}


def test_dora_comes_out_as_lora_with_the_error_that_is_stated(
    service: Service, base_folder: Path, tmp_path: Path, plain: tuple[torch.Tensor, dict[str, torch.Tensor]]
) -> None:
    peft_adapter(base_folder, tmp_path / "dora", 0.02, use_dora=True)
    version = service.push("fam/dora", tmp_path / "dora")
    assert (version["family"], version["mergeable"], version["servable"]) == ("dora", True, True)
    assert "cut to rank 64 with the error stated. It is served as it is, exactly." in version["notes"][0]
    service.merge(name="fam/dora-as-lora", sources=["fam/dora"], rank="sum")
    report = service.http.get("/v1/adapters/fam/dora-as-lora/versions/1/report").json()
    stated = report["totals"]["sources"][0]["conversion_error"]
    result = service.download("fam/dora-as-lora@1", tmp_path / "lora")
    before, base = plain
    wanted, found = weights(base_folder, tmp_path / "dora"), weights(base_folder, result)
    lost = torch.stack([torch.linalg.norm(found[n] - wanted[n]) for n in TARGETS]).norm()
    whole = torch.stack([torch.linalg.norm(wanted[n] - base[n]) for n in TARGETS]).norm()
    assert float(lost / whole) == pytest.approx(stated, rel=1e-3)
    assert 0 < stated < 0.5
    exact, cut = loaded(base_folder, tmp_path / "dora") - before, loaded(base_folder, result) - before
    assert float(torch.linalg.norm(cut - exact) / torch.linalg.norm(exact)) < 1.5 * stated
    assert service.http.get("/v1/adapters/fam/dora-as-lora/versions/1").json()["servable"]


def test_kasa_comes_out_as_the_same_model(
    service: Service, base_folder: Path, tmp_path: Path, plain: tuple[torch.Tensor, dict[str, torch.Tensor]]
) -> None:
    peft_adapter(base_folder, tmp_path / "kasa", 0.05, kasa_config=KasaConfig())
    version = service.push("fam/kasa", tmp_path / "kasa")
    assert (version["family"], version["mergeable"], version["servable"]) == ("kasa", True, True)
    service.merge(name="fam/kasa-as-lora", sources=["fam/kasa"], rank="sum")
    result = service.download("fam/kasa-as-lora@1", tmp_path / "lora")
    wanted = loaded(base_folder, tmp_path / "kasa")
    assert float((wanted - plain[0]).abs().max()) > 0.1
    torch.testing.assert_close(loaded(base_folder, result), wanted, rtol=1e-3, atol=2e-3)
    asked = {"prompt": [100, 101, 102], "max_tokens": 4, "temperature": 0}
    answers = [
        service.http.post("/v1/completions", json={**asked, "model": model}).json()["choices"][0]["text"]
        for model in ("fam/kasa", "fam/kasa-as-lora")
    ]
    assert answers[0] == answers[1]


def continued(base_folder: Path, folder: Path, prompt: list[int], tokens: int) -> str:
    """The greedy continuation by PEFT and transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base_model(base_folder), folder).eval()
    ids = torch.tensor([prompt])
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return str(AutoTokenizer.from_pretrained(base_folder).decode(found[0, len(prompt) :], skip_special_tokens=True))


@pytest.mark.parametrize(
    "config", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": [f"{LAYER}.mlp.up_proj"]}]
)
def test_what_is_no_plain_lora_is_served_as_peft_runs_it(
    service: Service, base_folder: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    peft_adapter(base_folder, tmp_path / "adapter", 0.05, **config)
    name = f"fam/{next(iter(config)).replace('_', '-')}"
    assert service.push(name, tmp_path / "adapter")["servable"]
    asked = {"model": name, "prompt": [100, 101, 102], "max_tokens": 6, "temperature": 0}
    answer = service.http.post("/v1/completions", json=asked).json()
    assert answer["choices"][0]["text"] == continued(base_folder, tmp_path / "adapter", [100, 101, 102], 6)


def test_a_version_that_older_rules_refused_is_served_after_the_next_start(
    service: Service, base_folder: Path, tmp_path: Path
) -> None:
    peft_adapter(base_folder, tmp_path / "old", 0.03, use_dora=True)
    service.push("fam/old", tmp_path / "old")
    peft_adapter(base_folder, tmp_path / "norm", 0.03, modules_to_save=[f"{LAYER}.input_layernorm"])
    service.push("fam/old-norm", tmp_path / "norm")
    shelves = service.house.shelves
    for name in ("fam/old", "fam/old-norm"):  # as an older service would have left them
        shelves.registry.judge_again(
            shelves.registry.resolve(name), mergeable=True, servable=False, predictable=False, notes=["No."], judged=0
        )
    asked = {"model": "fam/old", "prompt": "a", "max_tokens": 1}
    assert service.http.post("/v1/completions", json=asked).status_code == 422
    assert judge_refused(shelves) == 1
    assert service.http.post("/v1/completions", json=asked).status_code == 200
    old, norm = (service.http.get(f"/v1/adapters/fam/{name}/versions/1").json() for name in ("old", "old-norm"))
    assert (old["servable"], norm["servable"]) == (True, False)
    assert "served as it is" in old["notes"][0]
    assert "input_layernorm" in norm["notes"][0]
    assert judge_refused(shelves) == 0
    assert shelves.registry.refused_before(RULES) == []


def test_norms_go_in_and_out_and_are_not_served(
    service: Service, base_folder: Path, tmp_path: Path, plain: tuple[torch.Tensor, dict[str, torch.Tensor]]
) -> None:
    peft_adapter(base_folder, tmp_path / "norm", 0.05, modules_to_save=[f"{LAYER}.input_layernorm"], lora_bias=True)
    version = service.push("fam/norm", tmp_path / "norm")
    assert (version["mergeable"], version["servable"]) == (True, False)
    assert "is not served" in version["notes"][0]
    asked = service.http.post("/v1/completions", json={"model": "fam/norm", "prompt": "a"})
    assert asked.status_code == 422
    assert "input_layernorm" in asked.json()["detail"]
    recipe = {"name": "fam/norm-again", "sources": ["fam/norm"], "rank": "sum"}
    plan = service.http.post("/v1/merges?dry_run=true", json=recipe).json()["plan"]
    assert {extra["written_as"] for extra in plan["extras"]} == {"module", "lora_bias"}
    service.merge(**recipe)
    again = service.http.get("/v1/adapters/fam/norm-again/versions/1").json()
    assert (again["mergeable"], again["servable"]) == (True, False)
    result = service.download("fam/norm-again@1", tmp_path / "again")
    wanted = loaded(base_folder, tmp_path / "norm")
    assert float((wanted - plain[0]).abs().max()) > 0.1
    torch.testing.assert_close(loaded(base_folder, result), wanted, rtol=1e-3, atol=2e-3)
