"""spolia merge, jobs, methods: making new adapters from the shell."""

import json
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli_context import AsJson, client, weighted_over_depth
from app.cli_output import fail, moment, number, out, print_json, progress, sheet, table
from app.cli_report import comparison_page, plan_page, report_page, version_page
from app.recipe_file import read_recipe


def merge(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="namespace/name of the result.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="References, each with =WEIGHT if not 1; =0.2,0.8 runs from the first block to the last.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML or JSON file with sources, method and the rest, as POST /v1/merges takes them."
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help="See `spolia methods`; sum if not given.")] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            help='Rank of the result: a number, "max", "sum", a share of energy such as 0.99, or 4,16: from the first'
            " block to the last."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Average rank, spent on the modules where the energy is; --rank may give a share that is enough."
        ),
    ] = None,
    param: Annotated[list[str] | None, typer.Option("--param", help="NAME=VALUE of the method; repeatable.")] = None,
    space: Annotated[
        str | None, typer.Option(help="core, dense or factors, where the method can choose; see `spolia methods`.")
    ] = None,
    conversion_rank: Annotated[
        int | None, typer.Option(help="Rank that updates of full rank (DoRA, IA³, …) are cut to; 64 unless said.")
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(help="lora, or family: write the sum as the sources' own family, where it stays in it."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto (the default), float32, float16 or bfloat16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of what is random in the method; 0 if not given.")] = None,
    priority: Annotated[
        int | None, typer.Option(help="Of waiting merges those of higher priority run first; 0 if not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end.")] = True,
    as_json: AsJson = False,
) -> None:
    """Merge adapters into a new one and print the report."""
    words: dict[str, Any] = {
        "sources": [{"ref": ref, "weight": weight} for ref, weight in map(weighted_over_depth, sources or [])],
        "method": method,
        "rank": _rank(rank, budget),
        "params": dict(_param(one) for one in param or []),
        "space": space,
        "conversion_rank": conversion_rank,
        "export": export,
        "dtype": dtype,
        "seed": seed,
        "priority": priority,
    }
    fields = {key: value for key, value in words.items() if value not in (None, [], {})}
    if recipe is not None and fields:
        fail(f"{recipe} says it all; leave {', '.join(fields)} out, or write it there.", 2)
    if recipe is None and not sources:
        fail("name the adapters to merge, or a file with --recipe.", 2)
    if recipe is not None:
        fields = read_recipe(recipe)
    with client(ctx) as spolia:
        if dry_run:
            plan = spolia.merge_recipe(name, fields, dry_run=True)
            return print_json(plan) if as_json else out.print(plan_page(plan))
        if not wait:
            job = spolia.merge_recipe(name, fields, wait=False)
            return print_json(job) if as_json else out.print(f"Job {job['id']} is {job['state']}.")
        with progress(f"merge by {fields.get('method', 'sum')}", data=False, quiet=as_json) as move:
            job = spolia.merge_recipe(name, fields, on_progress=move)
        if as_json:
            return print_json(job)
        ref = job["result"]["ref"]
        if job["cached"]:
            out.print(f"This recipe was merged before: {ref}")
        out.print(version_page(spolia.show(ref)))
        out.print()
        out.print(report_page(spolia.report(ref)))


def compare(
    ctx: typer.Context,
    refs: Annotated[list[str], typer.Argument(metavar="REF REF...", help="References of adapters of one base model.")],
    as_json: AsJson = False,
) -> None:
    """Show how adapters relate: overlap of their updates, signs, subspaces, duplicates."""
    with client(ctx) as spolia:
        found = spolia.compare(refs)
        return print_json(found) if as_json else out.print(comparison_page(found))


def jobs(
    ctx: typer.Context,
    job_id: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Show only this job.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only jobs in this state: queued, running, succeeded, failed, cancelled.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until JOB has ended.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Ask JOB to stop.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs shown.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, or show, follow or cancel one."""
    if job_id is None and (follow or cancel):
        fail("name the job to follow or cancel; `spolia jobs` lists them.", 2)
    with client(ctx) as spolia:
        if job_id is None:
            found = list(islice(spolia.jobs(state=state, limit=min(limit, 200)), limit))
            return print_json(found) if as_json else _job_table(found)
        job = spolia.cancel(job_id) if cancel else spolia.job(job_id)
        if follow:
            with progress(f"job {job_id}", data=False, quiet=as_json) as move:
                job = spolia.wait(job_id, on_progress=move)
    if as_json:
        return print_json(job)
    rows = {
        "job": job["id"],
        "kind": job["kind"],
        "state": job["state"],
        "progress": f"{job['progress']['done']} of {job['progress']['total']}",
        "attempts": job["attempts"],
        "queued": moment(job["created_at"]),
        "started": moment(job["started_at"]),
        "finished": moment(job["finished_at"]),
        "result": (job["result"] or {}).get("ref"),
        "error": (job["error"] or {}).get("detail"),
    }
    out.print(sheet(rows))


def methods(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Show this method with its parameters.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the merge methods, or show one with its parameters."""
    with client(ctx) as spolia:
        found = [spolia.method(name)] if name else spolia.methods()
    if as_json:
        return print_json(found[0] if name else found)
    if name is None:
        shown = table(None, "method", "exact", "rank", "space", "what it does")
        for method in found:
            exact = "yes" if method["exact"] else "no"
            shown.add_row(method["name"], exact, method["ranks"], ", ".join(method["spaces"]), method["summary"])
        return out.print(shown)
    out.print(sheet({"method": name, "source": found[0]["source"], "default rank": found[0]["default_rank"]}))
    out.print(f"\n{found[0]['description']}\n")
    properties = found[0]["params"].get("properties", {})
    shown = table(None, "parameter", "default", "meaning")
    for parameter, schema in properties.items():
        shown.add_row(parameter, json.dumps(schema.get("default")), schema.get("description", ""))
    if properties:
        out.print(shown)
    for section in ("evidence", "cost"):
        if text := found[0]["notes"].get(section):
            out.print(f"\n{section.capitalize()}\n{text}")


def _job_table(found: list[dict[str, Any]]) -> None:
    shown = table(None, "job", "kind", "state", ">progress", "queued", "result or error")
    for job in found:
        ended = (job["result"] or {}).get("ref") or (job["error"] or {}).get("detail") or ""
        count = f"{job['progress']['done']}/{job['progress']['total']}"
        shown.add_row(job["id"], job["kind"], job["state"], count, moment(job["created_at"]), ended)
    out.print(shown if found else "No jobs yet.")


def _rank(text: str | None, budget: float | None) -> Any:
    """The rank as the API takes it."""
    rank = [number(part) for part in text.split(",")] if text and "," in text else number(text)
    if budget is None:
        return rank
    return {"budget": budget} if rank is None else {"budget": budget, "share": rank}


def _param(text: str) -> tuple[str, Any]:
    """(name, value) of NAME=VALUE; the value is JSON where it can be read as such, else text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} has no value; write NAME=VALUE", param_hint="--param")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
