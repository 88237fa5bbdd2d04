"""The engine on real vLLM servers: the embedded engine's answers, and what happens when servers die."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.base_model import load_info
from serving.constrain import Constraint
from serving.engine import Engine, FailEvent, Generation, PromptEvent, Sampling, TokenEvent
from serving.errors import NoServer, NotOnServers, ServerLost
from serving.vllm.engine import VllmEngine
from serving.vllm.shelf import PREFIX
from serving.vllm.state import FleetState
from tests.app.service import BASE, LAYERS, Service, problem, small_adapter
from tests.serving.collecting import Collected, generate, submit
from tests.vllm.servers import SLOTS, VllmServer

pytestmark = pytest.mark.timeout(900)  # two servers start, and hold each other up where cores are few

PROMPT = "The capital of France is"
MLP = {"model.layers.5.mlp.down_proj": (576, 1536), "model.layers.29.self_attn.k_proj": (192, 576)}
UP = {"model.layers.7.mlp.up_proj": (1536, 576), "model.layers.9.self_attn.o_proj": (576, 576)}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
SCHEMA = {"type": "object", "properties": {"n": DIGIT}, "required": ["n"], "additionalProperties": False}
TOLERANCE = 1e-3  # both in float32; 1e-5 is what is seen


@pytest.fixture(scope="module")
def digests(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """v/a … v/g, of different ranks, scales and targets: name -> version digest (hex)."""
    folder = tmp_path_factory.mktemp("adapters")
    found = {}
    for index, name in enumerate("abcdefg"):
        modules = {**LAYERS, **(MLP if index % 2 else {}), **(UP if index % 3 else {})}
        options = {"rank": index + 2, "alpha": 8.0 + index, "use_rslora": index == 3, "seed": 1000 + index}
        version = service.push(f"v/{name}", small_adapter(folder / name, modules=modules, **options))
        found[name] = version["digest"].removeprefix("sha256:")
    return found


@pytest.fixture(scope="module")
def prompt(service: Service) -> tuple[int, ...]:
    return service.house.prompts.text(PROMPT)


@pytest.fixture
def fleet(service: Service) -> Iterator[VllmEngine]:
    assert isinstance(service.house.engine, VllmEngine)
    yield service.house.engine
    deadline = time.monotonic() + 30
    while service.house.engine.state().running and time.monotonic() < deadline:
        time.sleep(0.1)


def state(engine: VllmEngine) -> FleetState:
    return engine.state()


def agree(found: Collected, expected: Collected, tolerance: float = TOLERANCE) -> None:
    """The same tokens, text, ends, and log-probabilities within the tolerance."""
    assert found.tokens == expected.tokens
    assert found.text == expected.text
    assert found.finish.reason == expected.finish.reason
    assert found.finish.usage.completion_tokens == expected.finish.usage.completion_tokens
    for one, other in zip(found.events, expected.events, strict=True):
        if isinstance(one, TokenEvent) and isinstance(other, TokenEvent) and other.logprob is not None:
            assert one.logprob == pytest.approx(other.logprob, abs=tolerance)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]
            assert [value for _, value in one.top] == pytest.approx([value for _, value in other.top], abs=tolerance)


def greedy(prompt: tuple[int, ...], adapters: Sequence[tuple[str, float]] = (), tokens: int = 5) -> Generation:
    return Generation(prompt, tuple(adapters), Sampling(max_tokens=tokens, temperature=0.0, logprobs=3))


def ask(service: Service, **fields: Any) -> dict[str, Any]:
    body = {"model": BASE, "prompt": PROMPT, "max_tokens": 3, "temperature": 0, "logprobs": 3, **fields}
    answer = service.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def scores(answer: dict[str, Any]) -> list[float]:
    found: list[float] = answer["choices"][0]["logprobs"]["token_logprobs"]
    return found


def test_answers_are_those_of_the_embedded_engine(
    fleet: VllmEngine, embedded: Engine, digests: dict[str, str], prompt: tuple[int, ...]
) -> None:
    """Base, one adapter, a scaled one, sets with negative weights; one by one and all at once."""
    a, b, c, d = (digests[name] for name in "abcd")
    sets = [(), ((a, 1.0),), ((b, -0.5),), ((a, 0.7), (b, -0.4)), ((c, 0.5), (d, 0.5), (a, 1.0))]
    generations = [greedy(prompt, one) for one in sets]
    expected = generate(embedded, generations)
    assert len({one.text for one in expected}) >= 3
    alone = [generate(fleet, [generation])[0] for generation in generations]
    for found in (alone, generate(fleet, generations)):
        for one, other in zip(found, expected, strict=True):
            agree(one, other)
    assert alone[0].finish.applied is None
    assert all(one.finish.applied is not None and one.finish.applied.form == "cat" for one in alone[1:])


def test_ends_stops_and_biases_are_those_of_the_embedded_engine(
    fleet: VllmEngine, embedded: Engine, prompt: tuple[int, ...], service: Service
) -> None:
    end = next(iter(service.house.base.eos_ids))
    plain = Sampling(max_tokens=8, temperature=0.0)
    cases = [
        replace(plain, stop=("\n\nThe",)),
        replace(plain, stop=("never said", "aris")),
        replace(plain, logit_bias={end: 100.0}),
        replace(plain, logit_bias={260: 100.0}, max_tokens=3),
        replace(plain, presence_penalty=1.5, frequency_penalty=0.5),
        replace(plain, stop=("zzz",), max_tokens=5),
        replace(plain, repetition_penalty=1.3),
        replace(plain, stop_token_ids=(198,)),
        replace(plain, logit_bias={end: 100.0}, ignore_eos=True, max_tokens=3),
        replace(plain, logit_bias={end: 5.0}, min_tokens=4),
        replace(plain, temperature=0.7, min_p=1.0),
        replace(plain, max_tokens=24, constraint=Constraint("json_schema", json.dumps(SCHEMA))),
        replace(plain, max_tokens=9, constraint=Constraint("regex", r" (Lyon|Berlin)\.")),
    ]
    generations = [Generation(prompt, (), sampling) for sampling in cases]
    answers = zip(generations, generate(fleet, generations), generate(embedded, generations), strict=True)
    for generation, found, expected in answers:
        assert (found.text, found.finish.reason) == (expected.text, expected.finish.reason)
        if generation.sampling.constraint is None:  # whole, an answer under one ends with an end token on vLLM alone
            assert found.finish.usage.completion_tokens == expected.finish.usage.completion_tokens
            assert (found.finish.end is None) == (expected.finish.end is None)
    seeded = Generation(prompt, (), Sampling(max_tokens=6, temperature=1.0, seed=2**64 - 3, top_p=0.9, top_k=50))
    again = generate(fleet, [seeded, seeded])
    assert again[0].tokens == again[1].tokens


def test_a_prompt_is_scored_like_the_embedded_engine_scores_it(
    fleet: VllmEngine, embedded: Engine, digests: dict[str, str], prompt: tuple[int, ...]
) -> None:
    for most, logprobs in ((0, None), (2, 1)):
        sampling = Sampling(max_tokens=most, temperature=0.0, logprobs=logprobs, prompt_logprobs=3)
        asked = Generation(prompt, ((digests["b"], 1.0),), sampling)
        found, expected = generate(fleet, [asked])[0], generate(embedded, [asked])[0]
        scored, other = found.events[0], expected.events[0]
        assert isinstance(scored, PromptEvent)
        assert isinstance(other, PromptEvent)
        assert [token.token_id for token in scored.tokens] == list(prompt)
        assert scored.tokens[0].logprob is None
        for one, same in zip(scored.tokens[1:], other.tokens[1:], strict=True):
            assert one.logprob == pytest.approx(same.logprob, abs=TOLERANCE)
            assert [token for token, _ in one.top] == [token for token, _ in same.top]
        assert (found.tokens, found.finish.reason) == (expected.tokens, expected.finish.reason)
        assert found.finish.usage.completion_tokens == expected.finish.usage.completion_tokens == most


def test_what_servers_cannot_do_is_refused_by_name(fleet: VllmEngine, prompt: tuple[int, ...]) -> None:
    with pytest.raises(NotOnServers, match="'ensemble' is not possible where vLLM servers generate"):
        submit(fleet, replace(greedy(prompt), combine="ensemble"))


def test_a_set_beyond_the_rank_is_the_best_of_that_rank_and_says_so(
    service: Service, digests: dict[str, str], embedded: Engine, prompt: tuple[int, ...], fleet: VllmEngine
) -> None:
    """Ranks 6, 7 and 8 against 16: what `sum` at rank 16 makes of the same, which another room computes."""
    pairs = [{"ref": "v/e", "weight": 0.6}, {"ref": "v/f", "weight": -0.4}, {"ref": "v/g", "weight": 0.3}]
    merged = service.merge(name="v/low", sources=pairs, method="sum", rank=16)["result"]["ref"]
    digest = service.house.registry.resolve(merged).digest
    chosen = [(digests["e"], 0.6), (digests["f"], -0.4), (digests["g"], 0.3)]
    found = generate(fleet, [greedy(prompt, chosen)])[0]
    agree(found, generate(embedded, [greedy(prompt, [(digest, 1.0)])])[0])
    exact = generate(embedded, [greedy(prompt, chosen)])[0]
    first, whole = found.events[0], exact.events[0]
    assert isinstance(first, TokenEvent)
    assert isinstance(whole, TokenEvent)
    assert first.logprob != pytest.approx(whole.logprob, abs=1e-5)
    answer = ask(service, adapters=pairs)
    assert answer["set"].keys() == {"form", "rank", "energy_lost"}
    assert (answer["set"]["form"], answer["set"]["rank"]) == ("truncated", 16)
    error = service.http.get("/v1/adapters/v/low/versions/1/report").json()["totals"]["relative_error"]
    assert answer["set"]["energy_lost"] == pytest.approx(error**2, rel=1e-3)
    assert ask(service, adapters=pairs[:2])["set"] == {"form": "cat", "rank": 13, "energy_lost": 0.0}
    assert "set" not in ask(service)
    body = {"model": BASE, "prompt": PROMPT, "adapters": pairs, "stream": True, "max_tokens": 3, "temperature": 0}
    lines = service.http.post("/v1/completions", json=body).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer["choices"][0]["text"]
    assert chunks[-1]["set"] == answer["set"]


def test_a_new_version_under_the_same_name_answers_at_once(
    service: Service, embedded: Engine, prompt: tuple[int, ...], tmp_path: Path
) -> None:
    """The prompt lies in the servers' prefix cache by then, under the old version's name."""
    for number in (1, 2, 3):
        digest = service.push("v/moving", small_adapter(tmp_path / str(number), rank=4))["digest"]
        expected = generate(embedded, [greedy(prompt, [(digest.removeprefix("sha256:"), 1.0)], 3)])[0]
        logprobs = [event.logprob for event in expected.events if isinstance(event, TokenEvent)]
        for model in ("v/moving", "v/moving", f"v/moving@{number}"):
            answer = ask(service, model=model)
            assert answer["adapters"] == [{"ref": f"v/moving@{number}", "weight": 1.0}]
            assert scores(answer) == pytest.approx(logprobs, abs=TOLERANCE)


def test_more_adapters_than_slots_come_and_go(
    service: Service,
    fleet: VllmEngine,
    embedded: Engine,
    servers: list[VllmServer],
    digests: dict[str, str],
    prompt: tuple[int, ...],
) -> None:
    generations = [greedy(prompt, [(digest, 1.0)], 2) for digest in digests.values()] * 2
    expected = generate(embedded, generations)
    for found, other in zip(generate(fleet, generations), expected, strict=True):
        agree(found, other)
    for server, seen in zip(servers, state(fleet).servers, strict=True):
        assert sorted(server.adapters()) == sorted(seen.adapters)
        assert 1 <= len(seen.adapters) <= SLOTS
        assert set(seen.adapters.values()) == {0}
    assert state(fleet).resident_bytes > 0


def test_adapters_that_somebody_unloads_come_back(
    service: Service, fleet: VllmEngine, servers: list[VllmServer], digests: dict[str, str]
) -> None:
    before = ask(service, model="v/a")
    for server in servers:
        for name in server.adapters():
            answer = httpx.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": name}, timeout=30)
            assert answer.status_code == 200
    assert scores(ask(service, model="v/a")) == pytest.approx(scores(before), abs=1e-4)


def test_an_engine_takes_over_what_an_earlier_one_loaded_and_clears_away_the_rest(
    service: Service, servers: list[VllmServer], base_folder: Path, digests: dict[str, str], tmp_path: Path
) -> None:
    ask(service, model="v/a")
    held = [server.adapters() for server in servers]
    load = service.house.shelves.adapter_loader()
    options: dict[str, Any] = {"servers": [server.url for server in servers], "slots": SLOTS}
    info = load_info(base_folder)
    with VllmEngine(info, load, folder=service.house.settings.data_dir / "vllm", **options) as next_one:
        assert [sorted(server.adapters) for server in state(next_one).servers] == [sorted(names) for names in held]
    with VllmEngine(info, load, folder=tmp_path, **options):
        assert [server.adapters() for server in servers] == [[], []]


def test_two_services_share_a_fleet(
    service: Service,
    fleet: VllmEngine,
    embedded: Engine,
    servers: list[VllmServer],
    base_folder: Path,
    digests: dict[str, str],
    prompt: tuple[int, ...],
) -> None:
    """Each unloads what the other is about to use, again and again: every answer is right all the same."""
    generations = [greedy(prompt, [(digest, 1.0)], 2) for digest in list(digests.values())[:5]]
    expected = generate(embedded, generations)
    options: dict[str, Any] = {"servers": [server.url for server in servers], "slots": 1}
    load, folder = service.house.shelves.adapter_loader(), service.house.settings.data_dir / "vllm"
    with VllmEngine(load_info(base_folder), load, folder=folder, **options) as other, ThreadPoolExecutor(2) as pool:
        one = pool.submit(generate, fleet, generations)
        two = pool.submit(generate, other, generations[::-1])
        for found, right in zip(one.result(), expected, strict=True):
            agree(found, right)
        for found, right in zip(two.result(), expected[::-1], strict=True):
            agree(found, right)


def test_a_server_of_another_base_is_not_used(
    servers: list[VllmServer], base_folder: Path, prompt: tuple[int, ...], tmp_path: Path, service: Service
) -> None:
    other = replace(load_info(base_folder), name="someone/else")
    load = service.house.shelves.adapter_loader()
    with VllmEngine(other, load, servers=[servers[0].url], folder=tmp_path) as engine:
        assert isinstance(generate(engine, [greedy(prompt)])[0].error, NoServer)


def test_a_cancelled_request_ends_on_the_server_too(
    fleet: VllmEngine, servers: list[VllmServer], digests: dict[str, str], prompt: tuple[int, ...]
) -> None:
    long = Generation(prompt, ((digests["a"], 1.0),), Sampling(max_tokens=480, logit_bias={0: -100.0, 2: -100.0}))
    running = submit(fleet, long)
    assert running.started.wait(60)
    assert sum(server.running() for server in servers) == 1
    at_once = submit(fleet, long)
    for one in (running, at_once):
        assert one.ticket is not None
        one.ticket.cancel()
        assert one.wait().finish.reason == "cancelled"
    assert 0 < len(running.tokens) < 480
    deadline = time.monotonic() + 20
    while sum(server.running() for server in servers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert sum(server.running() for server in servers) == 0
    assert (state(fleet).waiting, state(fleet).running) == (0, 0)


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)


def failed(one: Collected) -> bool:
    return isinstance(one.events[-1], FailEvent)


def long_ones(fleet: VllmEngine, prompt: tuple[int, ...]) -> list[Collected]:
    """A long answer on each server: the base model's requests go where least is running."""
    sampling = Sampling(max_tokens=480, logit_bias={0: -100.0, 2: -100.0}, seed=1)
    made = [submit(fleet, Generation(prompt, (), sampling)) for _ in range(2)]
    assert all(one.started.wait(120) for one in made)
    assert [server.running for server in state(fleet).servers] == [1, 1]
    return made


def test_a_server_that_hangs_is_left_and_taken_in_again(
    service: Service, fleet: VllmEngine, servers: list[VllmServer], digests: dict[str, str], prompt: tuple[int, ...]
) -> None:
    running = long_ones(fleet, prompt)
    servers[0].signal(signal.SIGSTOP)
    try:
        wait_for(lambda: [server.up for server in state(fleet).servers] == [False, True])
        with ThreadPoolExecutor(7) as pool:
            answers = list(pool.map(lambda name: ask(service, model=f"v/{name}"), digests))
        assert all(len(scores(answer)) == 3 for answer in answers)
    finally:
        servers[0].signal(signal.SIGCONT)
    wait_for(lambda: all(server.up for server in state(fleet).servers))
    lost = [one for one in running if failed(one)]
    assert lost
    assert all(isinstance(one.error, ServerLost) for one in lost)
    for one in running:
        assert one.ticket is not None
        one.ticket.cancel()
        one.wait()


def test_a_killed_server_takes_only_its_started_answers_with_it(
    service: Service,
    fleet: VllmEngine,
    embedded: Engine,
    servers: list[VllmServer],
    digests: dict[str, str],
    prompt: tuple[int, ...],
) -> None:
    running = long_ones(fleet, prompt)
    generations = [greedy(prompt, [(digest, 1.0)], 3) for digest in digests.values()]
    expected = generate(embedded, generations)
    waiting = [submit(fleet, generation) for generation in generations]
    servers[0].kill()
    for one, other in zip(waiting, expected, strict=True):
        one.wait()
        if failed(one):
            assert isinstance(one.error, ServerLost)
            assert one.error.tokens > 0
        else:
            agree(one, other)
    for one in running:
        if not one.over.is_set():
            assert one.ticket is not None
            one.ticket.cancel()
        one.wait()
    assert any(failed(one) for one in running)
    for found, other in zip(generate(fleet, generations), expected, strict=True):
        agree(found, other)  # its adapters are on the other server now, in turn
    assert [server.up for server in state(fleet).servers] == [False, True]
    assert all(name.startswith(PREFIX) for name in servers[1].adapters())
    assert service.http.get("/readyz").status_code == 200


def test_without_any_server_requests_are_refused_at_once(service: Service, servers: list[VllmServer]) -> None:
    for server in servers:
        server.kill()
    body = {"model": "v/a", "prompt": PROMPT}
    answer = service.http.post("/v1/completions", json=body)
    assert problem(answer, 503, "no-server")["servers"] == 2
    assert answer.headers["retry-after"]
    assert "vLLM" in service.http.get("/readyz").json()["checks"]["generation"]
    assert service.http.get("/readyz").status_code == 503
