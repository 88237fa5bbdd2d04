"""The client's verbs for making adapters from others: merge, join, promote, what-if; and the methods that there are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.client_http import Json, Progress
from app.client_inputs import MergeSources, Rank, Sources, Weight, part, source_list
from app.client_jobs import JobVerbs
from app.recipe_file import read_recipe


class MergeVerbs(JobVerbs):
    """What a client can do with several adapters."""

    def methods(self) -> Sequence[Json]:
        """Every merge method with its parameter schema and source."""
        items: Sequence[Json] = self._http.json("GET", "/v1/merge-methods")["items"]
        return items

    def method(self, name: str) -> Json:
        """One merge method, with what is known about it under `notes`: formula, evidence, cost."""
        return self._http.json("GET", f"/v1/merge-methods/{part(name)}")

    def join(
        self,
        new: str,
        slots: Sequence[str],
        *,
        budget: int,
        threshold: float | None = None,
        method: str = "sum",
        rank: int | float | str | None = None,
        dry_run: bool = False,
        on_progress: Progress | None = None,
    ) -> Json:
        """Let a new adapter join the slot that it resembles most, or take one of its own (K-Merge).

        The answer says which (`slot`, None for one of its own) and why (`slots`); `job` is the finished merge, None
        if there was nothing to merge or with `dry_run`.
        """
        body: Json = {"new": new, "slots": list(slots), "budget": budget, "threshold": threshold}
        body |= {"method": method, "rank": rank}
        query = {"dry_run": "true"} if dry_run else {}
        answer: Json = self._http.json("POST", "/v1/online-merges", json=body, params=query, once=True)
        if answer["job"]:
            answer["job"] = self.wait(answer["job"]["id"], on_progress=on_progress)
        return answer

    def promote(
        self,
        name: str,
        adapters: Sources,
        *,
        bar: Mapping[str, float],
        prompts: Sequence[Any] | None = None,
        alias: str = "production",
        recipe: Mapping[str, Any] | None = None,
        max_tokens: int = 32,
        on_progress: Progress | None = None,
    ) -> Json:
        """Merge a set in use into `name`, compare both as they answer, move `alias` if the bar is met.

        `bar`: {"agreement": least share of equal tokens} and/or {"loss": most nats a token}. `prompts`: texts or lists
        of messages, None for those that the service logged. `recipe`: method, rank, params … as in `merge`. The
        answer is the finished job; its result tells `promoted`, `ref` and the `comparison`.
        """
        body: Json = {**(recipe or {}), "name": name, "sources": source_list(adapters), "alias": alias}
        body |= {"bar": dict(bar), "prompts": None if prompts is None else list(prompts), "max_tokens": max_tokens}
        job: Json = self._http.json("POST", "/v1/promotions", json=body, once=True)
        return self.wait(job["id"], on_progress=on_progress)

    def merge(
        self,
        name: str,
        sources: MergeSources,
        *,
        weights: Sequence[Weight] | None = None,
        method: str = "sum",
        rank: Rank | None = None,
        params: Mapping[str, Any] | None = None,
        space: str | None = None,
        conversion_rank: int | None = None,
        export: str | None = None,
        dtype: str = "auto",
        seed: int = 0,
        priority: int = 0,
        dry_run: bool = False,
        wait: bool = True,
        on_progress: Progress | None = None,
    ) -> Json:
        """Merge adapters into `name` (namespace/name).

        The answer is the finished job, whose result holds the new version's `ref`; with `wait=False` the job as it is
        queued; with `dry_run=True` the plan. `on_progress` counts modules. `conversion_rank` is what updates of full
        rank are cut to; `export="family"` writes a sum as its sources' own family; of waiting merges those of higher
        `priority` run first. Raises SpoliaError if the job fails.
        """
        body: Json = {"sources": source_list(sources), "method": method, "dtype": dtype, "seed": seed}
        if weights is not None:
            body["weights"] = list(weights)
        if rank is not None:
            body["rank"] = rank
        if params:
            body["params"] = dict(params)
        if space is not None:
            body["space"] = space
        if conversion_rank is not None:
            body["conversion_rank"] = conversion_rank
        if export is not None:
            body["export"] = export
        if priority:
            body["priority"] = priority
        return self.merge_recipe(name, body, dry_run=dry_run, wait=wait, on_progress=on_progress)

    def merge_recipe(
        self,
        name: str,
        recipe: Mapping[str, Any] | Path | str,
        *,
        dry_run: bool = False,
        wait: bool = True,
        on_progress: Progress | None = None,
    ) -> Json:
        """Merge by a whole recipe: the fields of POST /v1/merges, or a YAML or JSON file that holds them.

        The answer is `merge`'s.
        """
        fields = recipe if isinstance(recipe, Mapping) else read_recipe(recipe)
        body: Json = {**fields, "name": name}
        if dry_run:
            plan: Json = self._http.json("POST", "/v1/merges", json=body, params={"dry_run": "true"})["plan"]
            return plan
        job = self._http.json("POST", "/v1/merges", json=body, once=True)
        return self.wait(job["id"], on_progress=on_progress) if wait else job

    def what_if(
        self,
        ref: str | None = None,
        *,
        recipe: Mapping[str, Any] | None = None,
        weights: Mapping[str, Any] | None = None,
        drop: Sequence[str] = (),
        add: Sources = (),
        modules: bool = False,
        **changes: Any,
    ) -> Json:
        """The report of a merged version (or of a `recipe`, as `merge` sends it) before and after changes; nothing is
        made. `changes`: another method, rank, params, space, dtype or seed."""
        body: Json = {"modules": modules, "drop": list(drop), "add": source_list(add), **changes}
        body |= {"ref": ref} if ref is not None else {}
        body |= {"recipe": dict(recipe)} if recipe is not None else {}
        body |= {"weights": dict(weights)} if weights else {}
        return self._http.json("POST", "/v1/what-if", json=body)
