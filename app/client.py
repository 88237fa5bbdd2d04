"""The Python client: what the command line does, as methods.

    with Client() as spolia:
        spolia.push("adapters/spam", "me/spam")
        job = spolia.merge("me/both", {"me/spam": 0.5, "me/dates": 0.5}, method="lego")
        for piece in spolia.generate("Is this spam?", model=job["result"]["ref"]):
            print(piece, end="")

The address is the argument `url`, else SPOLIA_URL, else http://127.0.0.1:8000. A service that asks for keys gets the
argument `api_key`, else SPOLIA_API_KEY. Answers are the API's JSON as dicts.
Every refusal is a SpoliaError whose text is one clear sentence.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from app.client_exports import save_export
from app.client_generate import GenerationVerbs
from app.client_http import CountedFile, Json, Progress, SpoliaError, Transport, problem_error, sha256_of
from app.client_inputs import adapter_files, adapter_path, is_digest, part, read_config, split_reference, version_path
from app.client_keys import KeyVerbs
from app.client_merge import MergeVerbs
from app.client_pool import PoolVerbs
from app.client_recycle import RecycleVerbs
from app.client_uploads import upload_directly, upload_in_parts

__all__ = ["Client", "Json", "Progress", "SpoliaError"]

DEFAULT_URL = "http://127.0.0.1:8000"
STREAMED_FROM_BYTES = 8 * 1024 * 1024


class Client(GenerationVerbs, PoolVerbs, MergeVerbs, RecycleVerbs, KeyVerbs):
    """One service. Use it as a context manager, or close it."""

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        chosen = url or os.environ.get("SPOLIA_URL") or DEFAULT_URL
        super().__init__(Transport(chosen, api_key or os.environ.get("SPOLIA_API_KEY")))
        self.url = self._http.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Whether the service can do its work; False while it is starting. Raises SpoliaError if none answers."""
        return self._http.status("GET", "/readyz") == 200

    def push(
        self,
        files: Path | str | Sequence[Path | str],
        ref: str,
        *,
        license: str | None = None,
        tags: Sequence[str] = (),
        base_model: str | None = None,
        classes: Sequence[str] = (),
        direct: bool = False,
        on_progress: Progress | None = None,
    ) -> Json:
        """Upload an adapter: a folder, or its adapter_config.json, safetensors file and (optional) README.md,
        tokenizer.json, which says what the tokens are that the adapter adds, and head.safetensors, the classifier that
        was trained with it, whose classes may be named (`classes`).

        Weights in kohya's, LyCORIS' or diffusers' spelling may come alone.

        The answer is the version; the same bytes again give the version that is there. Small weights go in one
        multipart request, large ones in parts, which go on where they stopped when the connection breaks or the service
        restarts; or, with `direct`, straight to the service's object store. `on_progress` counts the bytes of the
        weights.
        """
        if split_reference(ref)[2] != "latest":
            detail = f"{ref!r} names one version, and versions never change: push to namespace/name for the next one."
            raise problem_error("bad-reference", detail)
        config, weights, card, tokenizer, head = adapter_files(files)
        path = f"{adapter_path(ref)}/versions"
        total, done = weights.stat().st_size, 0

        def count(size: int) -> None:
            reach(done + size)

        def reach(offset: int) -> None:
            nonlocal done
            done = max(done, min(total, offset))
            if on_progress:
                on_progress(done, total)

        fields: Json = {"license": license, "tags": list(tags) or None, "base_model": base_model}
        fields |= {"classes": list(classes) or None}
        fields = {key: value for key, value in fields.items() if value is not None}
        if total < STREAMED_FROM_BYTES and not direct:
            with weights.open("rb") as file:
                counted = CountedFile(file, count)
                parts: Json = {"weights": (weights.name, counted, "application/octet-stream")}
                if config:
                    parts["config"] = (config.name, config.read_bytes(), "application/json")
                if card:
                    parts["card"] = (card.name, card.read_bytes(), "text/markdown")
                if tokenizer:
                    parts["tokenizer"] = (tokenizer.name, tokenizer.read_bytes(), "application/json")
                if head:
                    parts["head"] = (head.name, head.read_bytes(), "application/octet-stream")
                form = fields | {name: ",".join(fields[name]) for name in ("tags", "classes") if name in fields}
                return self._http.json("POST", path, data=form, files=parts)
        digest = sha256_of(weights)
        (upload_directly if direct else upload_in_parts)(self._http, weights, digest, reach)
        body = fields | {"weights": f"sha256:{digest}"}
        if config:
            body["config"] = read_config(config)
        if card:
            body["card"] = card.read_text(encoding="utf-8")
        if head:
            digest = sha256_of(head)
            self._http.json("PUT", f"/v1/uploads/{digest}", content=head.read_bytes())
            body["head"] = f"sha256:{digest}"
        if tokenizer:
            body["tokenizer"] = tokenizer.read_bytes().decode("utf-8")
        return self._http.json("POST", path, json=body, once=True)

    def pull(self, ref: str, folder: Path | str, *, on_progress: Progress | None = None) -> Json:
        """Download a version's files into `folder`, each checked against its digest. The answer is the version."""
        version = self.show(ref)
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        total, done = sum(file["size_bytes"] for file in version["files"]), 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            if on_progress:
                on_progress(done, total)

        for file in version["files"]:
            path = f"{version_path(version['ref'])}/files/{quote(file['name'])}"
            self._http.download(path, target / file["name"], file["sha256"].removeprefix("sha256:"), count)
        return version

    def _pinned(self, ref: str) -> str:
        return str(self.show(ref)["ref"]) if is_digest(ref) else ref

    def _place(self, ref: str) -> str:
        return version_path(self._pinned(ref))

    def show(self, ref: str) -> Json:
        """One version, by any reference: namespace/name, …@3, …:alias, or sha256:… (its digest)."""
        return self._http.json("GET", f"/v1/adapters/{part(ref)}" if is_digest(ref) else version_path(ref))

    def report(self, ref: str) -> Json:
        """The report of a merged version: what was kept and what was lost."""
        return self._http.json("GET", f"{self._place(ref)}/report")

    def compare(self, refs: Sequence[str]) -> Json:
        """How adapters relate: norms, cosines, sign agreement, shared subspaces, duplicates, layer by layer."""
        return self._http.json("GET", "/v1/compare", params={"refs": ",".join(refs)})

    def nearest(self, ref: str, *, limit: int = 8) -> Json:
        """The versions on the same base whose updates are most alike: exact cosines, duplicates flagged."""
        return self._http.json("GET", f"{self._place(ref)}/nearest", params={"limit": limit})

    def lineage(self, ref: str) -> Json:
        """What a version was made from, through all merges on the way, and its share of each upload at the start."""
        return self._http.json("GET", f"{self._place(ref)}/lineage")

    def verify(self, ref: str, *, wait: bool = True, on_progress: Progress | None = None) -> Json:
        """Check a version's files and, for a merge, replay its recipe and compare.

        The answer is the finished job, whose result holds `outcome` (identical, equivalent, different, intact, damaged)
        and `summary`; with `wait=False` the job as it is queued.
        """
        job = self._http.json("POST", f"{self._place(ref)}/verify", once=True)
        return self.wait(job["id"], on_progress=on_progress) if wait else job

    def compatibility(self, ref: str) -> Json:
        """Which servers load a version: as it is, after an export, or not at all, each with its reasons."""
        return self._http.json("GET", f"{self._place(ref)}/compatibility")

    def export(
        self,
        ref: str,
        target: str,
        folder: Path | str,
        *,
        max_rank: int | None = None,
        on_progress: Progress | None = None,
    ) -> Json:
        """Write a version into `folder` (made if absent) as the server `target` loads it: vllm, sglang, tgi, llama.cpp.

        The answer says what was changed, the settings that the server needs, and under `energy_lost` what `max_rank`
        cost. Nothing is written if the bytes do not arrive whole.
        """
        return save_export(self._http, self._pinned(ref), target, Path(folder), max_rank, on_progress)

    def versions(self, ref: str) -> Sequence[Json]:
        """All versions of an adapter, newest first."""
        versions: Sequence[Json] = self._http.json("GET", adapter_path(ref))["all_versions"]
        return versions

    def set_alias(self, ref: str, alias: str, version: int) -> Json:
        """Let `alias` name a version; moves it if it exists."""
        return self._http.json("PUT", f"{adapter_path(ref)}/aliases/{part(alias)}", json={"version": version})

    def delete_alias(self, ref: str, alias: str) -> None:
        """Remove an alias; the version stays."""
        self._http.json("DELETE", f"{adapter_path(ref)}/aliases/{part(alias)}")

    def set_tags(self, ref: str, tags: Sequence[str]) -> Json:
        """Replace the tags of an adapter."""
        return self._http.json("PUT", f"{adapter_path(ref)}/tags", json={"tags": list(tags)})

    def delete(self, ref: str, *, force: bool = False) -> None:
        """Delete one version, named by its number; refused while an alias or a merge needs it, unless forced."""
        params = {"force": "true"} if force else {}
        self._http.json("DELETE", version_path(ref), params=params)

    def revoke(self, ref: str, reason: str) -> Json:
        """Stop the use of a version and of all that was made from it; the answer lists them under `revoked`."""
        return self._http.json("POST", f"{version_path(ref)}/revoke", json={"reason": reason})

    def reinstate(self, ref: str) -> Json:
        """Take a revocation back; what was revoked for another version's sake, too, stays so."""
        return self._http.json("DELETE", f"{version_path(ref)}/revoke")

    # Last, because below it `list` is this method and no longer the type.
    def list(
        self,
        *,
        base_model: str | None = None,
        rank: int | None = None,
        target: str | None = None,
        tag: str | None = None,
        q: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Json]:
        """Adapters, page after page; `limit` is the size of a page, not the end."""
        filters = {"base_model": base_model, "rank": rank, "target": target, "tag": tag, "q": q, "limit": limit}
        return self._http.pages("/v1/adapters", filters)
