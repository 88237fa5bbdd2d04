"""spolia distil, predict, consent: meta-adapters out of adapters, predictions from a few labelled images."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli_context import AsJson, client, weighted
from app.cli_output import fail, number, out, print_json, progress, share, sheet, size, table


def distil(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="namespace/name of the meta-adapter.")],
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="References of vision adapters with heads.")
    ],
    profile: Annotated[str, typer.Option(help="small, benchmark or paper.")] = "benchmark",
    param: Annotated[
        list[str] | None,
        typer.Option("--param", help="NAME=VALUE, such as image_px=84 or meta.iterations=500; repeatable."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="The vision base; the sources' own if not given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, and what it costs.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end.")] = True,
    as_json: AsJson = False,
) -> None:
    """Distil adapters and their heads into one adapter for few-shot predictions, without data (LoRA Recycle)."""
    params = _params(param or [])
    with client(ctx) as spolia:
        if dry_run:
            plan = spolia.distil(name, sources, profile=profile, params=params, base=base, dry_run=True)
            return print_json(plan) if as_json else out.print(sheet(_plan_rows(plan)))
        if not wait:
            job = spolia.distil(name, sources, profile=profile, params=params, base=base, wait=False)
            return print_json(job) if as_json else out.print(f"Job {job['id']} is {job['state']}.")
        with progress(f"distil {name}", data=False, quiet=as_json) as move:
            job = spolia.distil(name, sources, profile=profile, params=params, base=base, on_progress=move)
        if as_json:
            return print_json(job)
        ref = job["result"]["ref"]
        if job["cached"]:
            out.print(f"This was distilled before: {ref}")
        report = spolia.report(ref)
    shown = table(ref, "source", ">classes", ">images", ">patches seen", ">teacher right", ">sure")
    for one in report["sources"]:
        right, sure = share(one["accuracy"]), share(one["confidence"])
        shown.add_row(one["ref"], str(one["ways"]), str(one["images"]), str(one["patches"]), right, sure)
    out.print(shown)
    out.print(f"In the last cycle {share(report['imitation']['accuracy'])} of the queries were put into their class.")


def predict(
    ctx: typer.Context,
    support: Annotated[Path, typer.Option(help="Folder with one folder of images for each class.")],
    query: Annotated[Path, typer.Option(help="Folder of images to classify, or one image.")],
    adapters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ADAPTER]...", help="Adapters, each with =WEIGHT if not 1; none: the bare base."),
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="The adapters' mean prediction and its uncertainty, not their sum.")
    ] = False,
    base: Annotated[str | None, typer.Option(help="The vision base; the service's own if not given.")] = None,
    px: Annotated[int | None, typer.Option(min=1, help="Side that images are resized to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Classify images by a few labelled ones, in one pass, without training."""
    members = [{"ref": ref, "weight": weight} for ref, weight in map(weighted, adapters or [])]
    combine = "ensemble" if ensemble else "sum"
    with client(ctx) as spolia:
        if len(members) == 1 and base is None and members[0]["weight"] == 1:
            answer = spolia.predict(support, query, model=str(members[0]["ref"]), combine=combine, px=px)
        else:
            answer = spolia.predict(support, query, model=base, adapters=members, combine=combine, px=px)
    if as_json:
        return print_json(answer)
    shown = table(None, "image", "class", ">probability", *([">disagreement"] if ensemble else []))
    for one in answer["predictions"]:
        row = [one["file"], one["label"], share(one["probabilities"][one["label"]])]
        shown.add_row(*row, *([f"{one['uncertainty']['mutual_information']:.3f}"] if ensemble else []))
    out.print(shown)


def consent(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="namespace/name of the adapter.")],
    inversion: Annotated[
        bool | None,
        typer.Option("--inversion/--no-inversion", help="Whether distillations may make images out of it."),
    ] = None,
    show_surrogates: Annotated[
        bool, typer.Option("--show-surrogates/--hide-surrogates", help="Whether these images are kept and shown.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the sheets of images that are kept.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say, or see, what others may find out about an adapter's training: images made from it show its classes."""
    if inversion is None and show_surrogates:
        fail("images can be shown only where --inversion is allowed; give both.", 2)
    with client(ctx) as spolia:
        if inversion is not None:
            spolia.set_consent(name, inversion=inversion, show_surrogates=show_surrogates)
        said = {**spolia.consent(name), "surrogates": list(spolia.surrogates(name))}
        if save is not None:
            save.mkdir(parents=True, exist_ok=True)
            for one in said["surrogates"]:
                spolia.save_surrogates(name, one["id"], save / f"{one['id']}.png")
    if as_json:
        return print_json(said)
    allowed = "Inversion is allowed" if said["inversion"] else "Inversion is not allowed"
    shown = "its images are kept and shown" if said["show_surrogates"] else "no images are kept"
    kept = len(said["surrogates"])
    out.print(f"{name}: {allowed}; {shown} ({kept} {'set' if kept == 1 else 'sets'} now).")


def _params(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE words as the nested parameters; values are JSON where they can be read as such."""
    params: dict[str, Any] = {}
    for one in given:
        path, equals, text = one.partition("=")
        if not equals or not path:
            fail(f"{one!r} is no parameter; write NAME=VALUE, such as meta.iterations=500.", 2)
        try:
            value = json.loads(text)
        except ValueError:
            value = number(text)
        section, dot, leaf = path.partition(".")
        if dot:
            params.setdefault(section, {})[leaf] = value
        else:
            params[section] = value
    return params


def _plan_rows(plan: dict[str, Any]) -> dict[str, Any]:
    cost = plan["estimate"]
    minutes = (cost["inversion_s"] + cost["meta_s"]) / 60
    return {
        "base": plan["base"],
        "sources": ", ".join(f"{one['ref']} ({one['classes']} classes)" for one in plan["sources"]),
        "images": plan["images"],
        "steps": f"{plan['steps']['inversion']} of inversion, {plan['steps']['meta']} of meta-training",
        "time": f"about {minutes:.1f} minutes on {cost['threads']} threads",
        "memory": f"about {size(cost['memory_bytes'])}",
    }
