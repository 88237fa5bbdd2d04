"""The command line against a running service: what people see, what scripts read, how it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from store.audit import AuditLog
from store.blobs import LocalBlobs
from store.database import Database
from store.registry import Registry
from tests.client.conftest import BASE, SPOLIA, make_adapter
from tests.store.making import make_version, put


class Shell:
    """Runs `spolia …` against one service."""

    def __init__(self, address: str) -> None:
        self._env = os.environ | {"SPOLIA_URL": address, "NO_COLOR": "1"}

    def run(self, *words: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """The finished command."""
        command = [SPOLIA, *map(str, words)]
        return subprocess.run(command, env=self._env, input=stdin, capture_output=True, text=True, check=False)

    def text(self, *words: object, stdin: str | None = None) -> str:
        """What a command that succeeds prints."""
        done = self.run(*words, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def json(self, *words: object) -> Any:
        """What a command prints with --json."""
        return json.loads(self.text(*words, "--json"))

    def failure(self, *words: object) -> tuple[int, str]:
        """(exit status, sentence) of a command that fails."""
        done = self.run(*words)
        assert done.returncode != 0
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr.strip()


@pytest.fixture
def shell(address: str) -> Shell:
    return Shell(address)


@pytest.fixture
def pushed(shell: Shell, tmp_path: Path) -> list[str]:
    """The references of two adapters."""
    refs = []
    for name, seed in (("a", 31), ("b", 32)):
        folder = make_adapter(tmp_path / name, seed=seed, rank=seed - 29)
        refs.append(str(shell.json("push", folder, f"shell/{name}", "--license", "MIT", "--tag", "shell")["ref"]))
    return refs


def test_verbs_of_the_client_start_without_torch() -> None:
    """As do those on the database: keys, gc, fsck, backup and restore."""
    verbs = "app.cli, app.local_keys, app.job_tables, app.storage, store.backup, store.checking, store.collecting"
    check = f"import sys, {verbs}; sys.exit(any(name in sys.modules for name in ('torch', 'fastapi', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_push_ls_show_pull(shell: Shell, pushed: list[str], tmp_path: Path) -> None:
    assert pushed == ["shell/a@1", "shell/b@1"]
    listed = shell.text("ls", "--tag", "shell")
    assert all(ref in listed for ref in pushed)
    assert [item["name"] for item in shell.json("ls", "--tag", "shell", "--limit", 1)] == ["a"]
    sheet = shell.text("show", "shell/a", "--card")
    assert all(word in sheet for word in ("q_proj, v_proj", "alpha/r", "MIT", "Adapter 31"))
    assert "in " in shell.text("pull", "shell/a", tmp_path / "back")
    assert (tmp_path / "back" / "README.md").read_text() == "# Adapter 31\n"


def test_a_push_to_one_version_is_refused(shell: Shell, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path, seed=33, rank=2)
    for name in ("shell/named@1", "shell/named:production"):
        assert "versions never change" in shell.failure("push", folder, name)[1]
    assert "no adapter shell/named" in shell.failure("show", "shell/named")[1]


def test_a_key_that_no_header_holds_is_refused_in_a_sentence(shell: Shell) -> None:
    for key in ("spolia_é", "spolia_a\nb"):
        assert "was it copied whole" in shell.failure("--api-key", key, "ls")[1]


def test_merge_prints_a_plan_then_the_report(shell: Shell, pushed: list[str]) -> None:
    words = ["merge", "shell/merged", f"{pushed[0]}=0.5", pushed[1], "--method", "lego", "--rank", 3]
    words += ["--param", "canonicalise=true"]
    plan = shell.text(*words, "--dry-run")
    assert "peak memory" in plan
    assert "'canonicalise': True" in plan
    report = shell.text(*words)
    assert all(word in report for word in ("shell/merged@1", "What each source kept", "Interference", "LEGO"))
    assert shell.json("show", "shell/merged")["report"]["method"] == "lego"
    assert shell.json(*words)["cached"]


def test_merge_takes_gradients_budgets_and_recipe_files(shell: Shell, pushed: list[str], tmp_path: Path) -> None:
    words = ["merge", "shell/varying", f"{pushed[0]}=0.2,0.8", pushed[1], "--rank", "1,3"]
    assert "0.2 → 0.8" in shell.text(*words, "--dry-run")
    assert "1 → 3" in shell.text(*words, "--dry-run")
    file = tmp_path / "recipe.yaml"
    file.write_text(f"sources:\n- {{ref: {pushed[0]}, weight: [0.2, 0.8]}}\n- ref: {pushed[1]}\nrank: [1, 3]\n")
    first, again = shell.json(*words), shell.json("merge", "shell/varying", "--recipe", file)
    assert again["cached"]
    assert again["result"] == first["result"]
    budget = shell.json("merge", "shell/budget", *pushed, "--budget", 2, "--rank", 0.9, "--dry-run")
    assert budget["rank"] == {"budget": 2.0, "share": 0.9}


def test_a_bare_file_in_kohyas_spelling_is_pushed_alone(shell: Shell, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(33)
    path, file = "lora_te_model_layers_1_self_attn_v_proj", tmp_path / "style.safetensors"
    down, up = torch.randn(2, 576, generator=rng), torch.randn(192, 2, generator=rng)
    save_file({f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up}, file)
    version = shell.json("push", file, "shell/style", "--base-model", BASE)
    assert (version["family"], version["servable"], version["target_modules"]) == ("lora", True, ["v_proj"])
    assert "kohya" in version["notes"][0]
    save_file({"q.lora_A.weight": down}, file)
    code, sentence = shell.failure("push", file, "shell/style")
    assert (code, "came without adapter_config.json" in sentence) == (1, True)


def test_what_leaves_its_family_is_not_exported_to_it(shell: Shell, pushed: list[str]) -> None:
    words = ["merge", "shell/same", *pushed, "--dry-run", "--conversion-rank", 8]
    assert shell.json(*words)["export"] == "lora"
    code, sentence = shell.failure(*words, "--export", "family")
    assert (code, "sum of lora adapters is none itself" in sentence) == (1, True)


def test_jobs_and_methods(shell: Shell, pushed: list[str]) -> None:
    job = shell.json("merge", "shell/queued", *pushed, "--method", "cat", "--no-wait")
    assert "succeeded" in shell.text("jobs", job["id"], "--follow")
    assert job["id"] in shell.text("jobs")
    assert {"sum", "cat", "linear", "lego"} <= {method["name"] for method in shell.json("methods")}
    page = shell.text("methods", "lego")
    assert all(part in page for part in ("[a, b]", "Evidence", "62.21", "Cost"))


def test_a_job_is_followed_read_and_cancelled(shell: Shell, pushed: list[str]) -> None:
    job = shell.json("merge", "shell/job", *pushed, "--method", "cat", "--seed", 5, "--priority", 3, "--no-wait")
    assert job["priority"] == 3
    assert "shell/job@1" in shell.text("job", "wait", job["id"])
    log = shell.text("job", "log", job["id"])
    assert [line.split("  ")[-1] for line in log.splitlines()][-2:] == ["Published shell/job@1.", "Done."]
    assert [line["number"] for line in shell.json("job", "log", job["id"], "--follow")] == [1, 2, 3, 4]
    done = shell.run("job", "wait", job["id"], "--log")
    assert (done.returncode, "Published shell/job@1." in done.stderr) == (0, True)
    assert job["id"] in shell.text("job", "list", "--state", "succeeded")
    assert "is succeeded" in shell.text("job", "cancel", job["id"])
    assert shell.failure("job", "wait", "nobody")[0] == 1


def test_join_says_which_slot_and_why(shell: Shell, pushed: list[str], tmp_path: Path) -> None:
    slot, other = pushed
    assert "shell/b@1 takes a slot of its own" in shell.text("join", other, slot, "--budget", 2)
    assert "shell/b@1 would join shell/a@1" in shell.text("join", other, slot, "--budget", 1, "--dry-run")
    folder = make_adapter(tmp_path / "kept", seed=33, rank=2)
    kept = shell.json("push", folder, "shell/kept")["ref"]
    done = shell.json("join", other, kept, "--budget", 1, "--rank", 5)
    assert (done["slot"], done["weights"], done["job"]["result"]["ref"]) == (kept, [0.5, 0.5], "shell/kept@2")
    text = shell.text("join", slot, "shell/kept", "--budget", 1)
    assert "shell/kept@2" in text
    assert "joined shell/kept@2, which is now shell/kept@3" in text


def test_pool_shows_loads_pins_and_unloads(shell: Shell, pushed: list[str]) -> None:
    assert f"{pushed[0]} is in memory" in shell.text("pool", "load", pushed[0])
    assert "pinned)" in shell.text("pool", "load", pushed[0], "--pin")
    page = shell.text("pool")
    assert all(word in page for word in (pushed[0], "pinned", "in use", "0 running, 0 waiting"))
    assert shell.json("pool")["adapters"][-1]["ref"] == pushed[0]
    assert f"{pushed[0]} is unloaded." in shell.text("pool", "unload", pushed[0])
    assert "not in memory" in shell.failure("pool", "unload", pushed[0])[1]


def test_alias_tag_rm(shell: Shell, pushed: list[str]) -> None:
    assert "now names shell/b@1" in shell.text("alias", "shell/b", "production")
    assert shell.json("show", "shell/b:production")["aliases"] == ["production"]
    code, sentence = shell.failure("rm", "shell/b@1")
    assert code == 1
    assert "production" in sentence
    assert "no longer" in shell.text("alias", "shell/b", "production", "--delete")
    assert sorted(shell.json("tag", "shell/b", "shell", "fresh")["tags"]) == ["fresh", "shell"]


def test_generate_streams_text_and_knows_weighted_sets(shell: Shell, pushed: list[str]) -> None:
    words = ["generate", "-", "--raw", "--max-tokens", 4]
    assert shell.text(*words, stdin="The capital of France is").startswith(" Paris")
    answer = shell.json("generate", "Hi", "-a", f"{pushed[0]}=0.5", "-a", pushed[1], "--max-tokens", 2)
    assert [one["weight"] for one in answer["adapters"]] == [0.5, 1.0]


def test_generate_follows_a_schema_and_score_tells_every_token(shell: Shell, pushed: list[str], tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [17]}')
    assert shell.text("generate", "How many?", "--schema", schema, "--min-p", 0.1, "--top-k", 5).strip() == "17"
    shown = shell.text("score", "One two", "--model", pushed[0])
    assert "'One'" in shown
    assert "of 2 tokens" in shown
    found = shell.json("score", "One two")
    assert found["tokens"] == ["One", " two"]
    assert found["total"] == found["token_logprobs"][1]


def test_generate_shows_what_an_ensemble_does_not_know(shell: Shell, pushed: list[str]) -> None:
    words = ["generate", "The capital of France is", "--raw", "--max-tokens", 4, "--combine", "ensemble"]
    done = shell.run(*words, "-a", f"{pushed[0]}=2", "-a", pushed[1])
    assert (done.returncode, done.stdout.startswith(" Paris")) == (0, True)
    assert "Uncertainty per token, in nats: " in done.stderr
    told = shell.json(*words, "-a", pushed[0], "-a", BASE)["choices"][0]["uncertainty"]
    assert told["mutual_information"] > 0
    code, sentence = shell.failure(*words, "-a", f"{pushed[0]}=-1")
    assert (code, "0 or more" in sentence) == (1, True)


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["generate", "Hi", "--schema", "/does/not/exist.json"], 2, "/does/not/exist.json"),
        (["show", "shell/nothing"], 1, "shell/nothing"),
        (["show", "nothing"], 1, "names no adapter"),
        (["show", "../.."], 1, "'../..' names no adapter"),
        (["push", "/does/not/exist", "shell/x"], 1, "not a folder"),
        (["merge", "shell/x", "shell/y=heavy"], 2, "'heavy'"),
        (["merge", "shell/x", "shell/y=0.2,heavy"], 2, "'heavy'"),
        (["merge", "shell/x", "shell/nothing"], 1, "shell/nothing"),
        (["merge", "shell/x"], 2, "name the adapters to merge"),
        (["merge", "shell/x", "shell/y", "--recipe", "r.yaml"], 2, "leave sources out"),
        (["merge", "shell/x", "--recipe", "/does/not/exist.yaml"], 1, "/does/not/exist.yaml"),
        (["methods", "magic"], 1, "'magic'"),
        (["generate", "Hi", "--model", "shell/nothing"], 1, "shell/nothing"),
        (["rm", "shell/a"], 2, "shell/a@1"),
        (["jobs", "--follow"], 2, "name the job"),
        (["nonsense"], 2, "nonsense"),
        (["--url", "http://127.0.0.1:9", "ls"], 1, "No service answers"),
    ],
)
def test_failures_are_a_sentence_and_a_status(shell: Shell, words: list[str], code: int, part: str) -> None:
    found, sentence = shell.failure(*words)
    assert found == code
    assert part in sentence


def test_compare_shows_overlap(shell: Shell, pushed: list[str]) -> None:
    page = shell.text("compare", *pushed)
    assert "Interference" in page
    assert "Shared subspace" in page
    assert shell.json("compare", *pushed)["refs"] == pushed


def test_what_comes_out_can_be_checked_traced_and_changed(shell: Shell, pushed: list[str]) -> None:
    ref = shell.json("merge", "shell/traced", f"{pushed[0]}=0.5", f"{pushed[1]}=2", "--rank", 2)["result"]["ref"]
    assert f"{ref} is identical. The recipe was replayed" in shell.text("verify", ref)
    assert shell.json("verify", pushed[0])["outcome"] == "intact"

    over = shell.json("merge", "shell/over", f"{ref}=3", pushed[0])["result"]["ref"]
    page = shell.text("lineage", over)
    assert "First origins" in page
    assert {leaf["ref"]: leaf["weight"] for leaf in shell.json("lineage", over)["leaves"]} == {
        pushed[0]: 2.5,
        pushed[1]: 6.0,
    }
    assert "made from nothing else" in shell.text("lineage", pushed[0])

    words = ["what-if", ref, "--weight", "shell/a=1", "--drop", "shell/b", "--add", "shell/over=0.5", "--rank", 3]
    page = shell.text(*words, "--modules")
    assert all(word in page for word in ("before", "after", "nothing was made", "shell/over@1", "q_proj"))
    found = shell.json(*words)
    assert [source["ref"] for source in found["recipe"]["sources"]] == [pushed[0], over]
    assert found["after"]["totals"]["rank"]["max"] == 3
    code, sentence = shell.failure("what-if", ref, "--drop", "shell/nothing")
    assert code == 1
    assert "shell/nothing is not a source" in sentence

    page = shell.text("nearest", over, "--limit", 2)
    assert ref in page
    assert [item["ref"] for item in shell.json("nearest", over, "--limit", 1)["items"]] == [ref]


def test_a_set_is_promoted_if_it_answers_alike(shell: Shell, pushed: list[str], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The sea is\n\nOnce upon a time\n")
    words = ["promote", "shell/promoted", f"{pushed[0]}=0.5", pushed[1], "--prompts", prompts, "--max-tokens", 2]
    job = shell.json(*words, "--alias", "live", "--agreement", 0)
    assert job["result"]["comparison"]["prompts"] == 2
    assert job["result"]["promoted"]
    text = shell.text(*words, "--alias", "live", "--loss", 100)
    assert "The bar is met: live moved to it from shell/promoted@1." in text
    status, sentence = shell.failure(*words)
    assert status == 2
    assert "--agreement" in sentence


def test_gc_fsck_backup_and_restore(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "backup"
    where = ["--data-dir", data]
    shell = Shell("http://127.0.0.1:9")
    for words in (["gc"], ["fsck"], ["backup", folder]):  # a folder that was mistyped is not a clean one
        assert f"no database in {data}" in shell.failure(*words, *where)[1]
    assert not data.exists()
    data.mkdir()
    database = Database(f"sqlite:///{data / 'spolia.db'}")
    database.migrate()
    database.close()
    assert shell.json("gc", *where) == {"files": 0, "size_bytes": 0, "staged": 0, "uploads": 0, "dry_run": False}
    assert "Would remove 0 files" in shell.text("gc", "--dry-run", *where)
    assert "Every version has its files" in shell.text("fsck", *where)
    assert "0 files" in shell.text("backup", folder, *where)
    assert "every version has its files" in shell.text("restore", folder, "--data-dir", tmp_path / "other")
    blobs = LocalBlobs(data / "blobs")
    database = Database(f"sqlite:///{data / 'spolia.db'}")
    Registry(database, blobs).publish("me", "kept", make_version(blobs, "kept"))  # before it no file is garbage
    database.close()
    blobs.path(put(blobs, b"damaged").digest).write_bytes(b"otherwise")
    put(blobs, b"unneeded")
    assert len(shell.json("fsck", "--repair", *where)["findings"]) == 2
    assert shell.json("gc", "--grace", "0", *where)["files"] == 1
    logged = []
    for place in (data, tmp_path / "other"):
        database = Database(f"sqlite:///{place / 'spolia.db'}")
        logged += [entry.action for entry in AuditLog(database).list().items]
        database.close()
    assert logged == ["files.collect", "files.set_aside", "version.publish", "database.restore"]
    status, sentence = shell.failure("restore", tmp_path, *where)
    assert (status, sentence.endswith("there is no finished backup here (no manifest.json).")) == (1, True)
    status, sentence = shell.failure("backup", data, *where)
    assert (status, "there is something else here" in sentence) == (1, True)


def test_revoke_and_undo(shell: Shell, tmp_path: Path) -> None:
    leaky = shell.json("push", make_adapter(tmp_path, seed=77, rank=2), "shell/leaky", "--license", "MIT")["ref"]
    shell.json("merge", "shell/revocable", leaky, "--method", "sum")
    assert "MIT (notice)" in shell.text("show", "shell/revocable")
    answer = shell.json("revoke", leaky, "--reason", "It leaked.")
    assert answer["revoked"] == [leaky, "shell/revocable@1"]
    assert f"revoked for the sake of {leaky}: It leaked." in " ".join(shell.text("show", "shell/revocable").split())
    code, sentence = shell.failure("generate", "Hello", "--adapter", "shell/revocable")
    assert code == 1
    assert f"shell/revocable@1 is revoked, because {leaky}" in " ".join(sentence.split())
    assert "is identical." in shell.text("verify", "shell/revocable")
    assert "Reinstated: " in shell.text("revoke", leaky, "--undo")
    assert "revoked" not in shell.text("show", "shell/revocable")
    assert shell.failure("revoke", "shell/leaky", "--reason", "x")[0] == 2
    assert shell.failure("revoke", leaky)[0] == 2


def test_without_keys_one_is_anonymous_and_changes_are_logged(shell: Shell, pushed: list[str]) -> None:
    assert shell.json("whoami")["name"] == "anonymous"
    assert "anonymous" in shell.text("whoami")
    latest = shell.json("audit", "--adapter", "shell/a", "--action", "version.publish", "--limit", 1)
    assert [(one["action"], one["actor"], one["address"]) for one in latest] == [
        ("version.publish", "anonymous", "127.0.0.1")
    ]
    assert "version.publish" in shell.text("audit", "--namespace", "shell", "--action", "version.publish")
