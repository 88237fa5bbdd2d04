"""spolia push, pull, ls, show, alias, tag, rm: the registry from the shell."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markdown import Markdown

from app.cli_context import AsJson, client
from app.cli_output import fail, out, print_json, progress, share, size, spread, table
from app.cli_report import report_page, version_page

Ref = Annotated[str, typer.Argument(metavar="REF", help="namespace/name, namespace/name@3 or namespace/name:alias.")]


def push(
    ctx: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="A folder with an adapter, or its files; a .safetensors file of kohya or diffusers alone.",
            show_default=False,
        ),
    ],
    ref: Annotated[str, typer.Argument(metavar="NAME", help="namespace/name to publish under.")],
    license: Annotated[str | None, typer.Option("--license", help="Licence, best as an SPDX id.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A word to find it by; may be repeated.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Overrides base_model_name_or_path of the config.")] = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="Send the weights straight to the service's object store.")
    ] = False,
    classes: Annotated[
        str | None, typer.Option(help="What the classes of its head are called, in order, joined by commas.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Upload an adapter; the same bytes again give the version that is there."""
    given = files[0] if len(files) == 1 else files
    with client(ctx) as spolia, progress(f"push {ref}", data=True, quiet=as_json) as move:
        named = [name.strip() for name in classes.split(",")] if classes else []
        said: dict[str, Any] = {"license": license, "tags": tag or (), "base_model": base_model, "classes": named}
        version = spolia.push(given, ref, **said, direct=direct, on_progress=move)
    if as_json:
        return print_json(version)
    out.print(version_page(version))


def pull(
    ctx: typer.Context,
    ref: Ref,
    folder: Annotated[Path, typer.Argument(help="Where the files are written; made if absent.")],
    as_json: AsJson = False,
) -> None:
    """Download a version, each file checked against its digest; PEFT loads the folder."""
    with client(ctx) as spolia, progress(f"pull {ref}", data=True, quiet=as_json) as move:
        version = spolia.pull(ref, folder, on_progress=move)
    if as_json:
        return print_json(version)
    out.print(f"{version['ref']}: {size(sum(file['size_bytes'] for file in version['files']))} in {folder}")


def ls(
    ctx: typer.Context,
    words: Annotated[str | None, typer.Argument(help="Free text: words of names, bases, cards, tags.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Only adapters of this base model.")] = None,
    rank: Annotated[int | None, typer.Option(help="Only adapters with a module of this rank.")] = None,
    target: Annotated[str | None, typer.Option(help="Only adapters on this target, such as q_proj.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only adapters with this tag.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most adapters shown.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List adapters."""
    with client(ctx) as spolia:
        found = spolia.list(base_model=base_model, rank=rank, target=target, tag=tag, q=words, limit=min(limit, 200))
        items = list(islice(found, limit))
    if as_json:
        return print_json(items)
    if not items:
        return out.print("No adapter matches." if any((words, base_model, rank, target, tag)) else "No adapters yet.")
    shown = table(None, "latest", ">rank", ">scale", "targets", "dtype", ">size", "made by", "aliases", "tags")
    for item in items:
        latest = item["latest"]
        aliases = ", ".join(f"{alias}@{number}" for alias, number in item["aliases"].items())
        shown.add_row(
            latest["ref"],
            spread(latest["rank"]),
            f"{spread(latest['scale'])}{' rs' if latest['use_rslora'] else ''}",
            " ".join(target.removesuffix("_proj") for target in latest["target_modules"]),
            latest["dtype"],
            size(latest["size_bytes"]),
            (latest["recipe"] or {}).get("method", "merge") if latest["origin"] != "upload" else "upload",
            aliases,
            ", ".join(item["tags"]),
        )
    out.print(shown)


def show(
    ctx: typer.Context,
    ref: Ref,
    card: Annotated[bool, typer.Option("--card", help="Print the card too.")] = False,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst modules of a merge to print.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show a version and, for a merge, its report."""
    with client(ctx) as spolia:
        version = spolia.show(ref)
        report = spolia.report(version["ref"]) if version["origin"] == "merge" else None
        versions = spolia.versions(version["ref"])
    if as_json:
        return print_json({**version, "report": report})
    out.print(version_page(version))
    if len(versions) > 1:
        others = ", ".join(one["ref"].rpartition("@")[2] for one in versions)
        out.print(f"versions     {others}")
    for name, value in version["metrics"].items():
        out.print(f"{name}: {share(value) if isinstance(value, float) else value}")
    if report:
        out.print()
        out.print(report_page(report, worst=worst))
    if card and version["card"]:
        out.print()
        out.print(Markdown(version["card"]))


def alias(
    ctx: typer.Context,
    ref: Ref,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as production.")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove the alias; the version stays.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let an alias name the version that REF names now, or remove it."""
    with client(ctx) as spolia:
        if delete:
            spolia.delete_alias(ref, name)
            answer = {"alias": name, "deleted": True}
        else:
            version = spolia.show(ref)
            answer = spolia.set_alias(ref, name, version["version"])
    if as_json:
        return print_json(answer)
    out.print(f"{name} is no longer an alias." if delete else f"{name} now names {version['ref']}.")


def tag(
    ctx: typer.Context,
    ref: Ref,
    tags: Annotated[list[str] | None, typer.Argument(help="The tags it shall have; none removes all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Replace the tags of an adapter."""
    with client(ctx) as spolia:
        answer = spolia.set_tags(ref, tags or [])
    if as_json:
        return print_json(answer)
    out.print(f"Tags: {', '.join(answer['tags']) or 'none'}")


def rm(
    ctx: typer.Context,
    ref: Ref,
    force: Annotated[bool, typer.Option("--force", help="Although an alias or a merge still needs it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete one version, named with its number."""
    if "@" not in ref:
        fail(f"name the version to delete by its number, such as {ref.partition(':')[0]}@1.", 2)
    with client(ctx) as spolia:
        spolia.delete(ref, force=force)
    if as_json:
        return print_json({"ref": ref, "deleted": True})
    out.print(f"{ref} is deleted.")
