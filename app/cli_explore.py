"""spolia lineage, nearest, verify, what-if: where a version comes from, what resembles it, what would change it."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.cli_context import AsJson, client, weighted_over_depth
from app.cli_output import fail, number, out, print_json, progress, share, sheet, spread, table
from app.same_sources import labels

Ref = Annotated[str, typer.Argument(metavar="REF", help="namespace/name, namespace/name@3 or namespace/name:alias.")]
BAD_OUTCOMES = ("different", "damaged")


def lineage(ctx: typer.Context, ref: Ref, as_json: AsJson = False) -> None:
    """Show what a version was made from, down to the uploads at the beginning."""
    with client(ctx) as spolia:
        found = spolia.lineage(ref)
    if as_json:
        return print_json(found)
    nodes = {node["ref"]: node for node in found["nodes"]}
    if not found["links"]:
        return out.print(f"{found['ref']} was made from nothing else.")
    made = table("Merges", "version", "made by", "from", ">weight")
    for ref, node in nodes.items():
        for i, link in enumerate(one for one in found["links"] if one["child"] == ref):
            gone = " (deleted)" if nodes[link["parent"]]["deleted"] else ""
            begin = (ref, node["method"] or "") if i == 0 else ("", "")
            made.add_row(*begin, link["parent"] + gone, f"{link['weight']:g}")
    leaves = table("First origins", "adapter", ">weight in all")
    for leaf in found["leaves"]:
        leaves.add_row(leaf["ref"], f"{leaf['weight']:g}" if leaf["weight"] is not None else f"– ({leaf['reason']})")
    out.print(Group(made, leaves))


def nearest(
    ctx: typer.Context,
    ref: Ref,
    limit: Annotated[int, typer.Option(min=1, help="Most adapters shown.")] = 8,
    as_json: AsJson = False,
) -> None:
    """List the adapters whose updates are most alike, duplicates flagged."""
    with client(ctx) as spolia:
        found = spolia.nearest(ref, limit=limit)
    if as_json:
        return print_json(found)
    if not found["items"]:
        return out.print(f"No other adapter of {found['base_model']} can be compared with {found['ref']}.")
    out.print(f"Nearest to {found['ref']}, of {found['searched']} searched:")
    shown = table(None, "adapter", ">cosine", ">times", "")
    for item in found["items"]:
        same = "the same files" if item["same_bytes"] else "the same update" if item["duplicate"] else ""
        cosine = f"{item['cosine']:+.4f}" if item["exact"] else f"about {item['cosine']:+.2f}"
        shown.add_row(item["ref"], cosine, f"{item['factor']:.3g}" if item["exact"] else "–", same)
    out.print(shown)


def verify(ctx: typer.Context, ref: Ref, as_json: AsJson = False) -> None:
    """Check a version's files and, for a merge, replay its recipe and compare; status 1 where they differ."""
    with client(ctx) as spolia, progress(f"verify {ref}", data=False, quiet=as_json) as move:
        result = spolia.verify(ref, on_progress=move)["result"]
    if as_json:
        print_json(result)
    elif result["outcome"] not in BAD_OUTCOMES:
        out.print(f"{result['ref']} is {result['outcome']}. {result['summary']}")
    if result["outcome"] in BAD_OUTCOMES:
        fail(f"{result['ref']} is {result['outcome']}: {result['summary']}")


def what_if(
    ctx: typer.Context,
    ref: Ref,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weight", help="SOURCE=WEIGHT; repeatable. SOURCE#2: the second of equal ones."),
    ] = None,
    drop: Annotated[list[str] | None, typer.Option("--drop", help="A source to leave out; repeatable.")] = None,
    add: Annotated[list[str] | None, typer.Option("--add", help="REF or REF=WEIGHT to take in; repeatable.")] = None,
    method: Annotated[str | None, typer.Option(help="Another method; see `spolia methods`.")] = None,
    rank: Annotated[str | None, typer.Option(help="Another rank, as in `spolia merge`.")] = None,
    modules: Annotated[bool, typer.Option("--modules", help="Show every module.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a merge would become with other weights, sources, method or rank, without making it."""
    changes: dict[str, Any] = {"method": method, "rank": None if rank is None else number(rank)}
    with client(ctx) as spolia:
        found = spolia.what_if(
            ref,
            weights=dict(weighted_over_depth(one) for one in weight or []),
            drop=drop or [],
            add=[{"ref": one, "weight": value} for one, value in map(weighted_over_depth, add or [])],
            modules=modules,
            **{name: value for name, value in changes.items() if value is not None},
        )
    print_json(found) if as_json else out.print(_side_by_side(found))


def _side_by_side(found: Mapping[str, Any]) -> RenderableType:
    """The figures before and after, in two columns."""
    sides = [found["before"] or found["after"], found["after"]]
    totals = [side["totals"] for side in sides]
    made = table(None, "", ">before", ">after")
    for change in found["changes"]:
        made.add_row(
            change["what"], *("–" if change[side] is None else str(change[side]) for side in ("before", "after"))
        )
    made.add_section()
    made.add_row("rank", *(spread(total["rank"]) for total in totals))
    made.add_row("error of the exact sum", *(share(total["relative_error"]) for total in totals))
    made.add_row("best possible energy", *(share(total["energy_at_rank"]) for total in totals))
    made.add_row("norm (exact sum)", *(f"{total['norm']:.3f} ({total['target_norm']:.3f})" for total in totals))
    parts: list[RenderableType] = [made, _sources(totals)]
    if "modules" in found["after"]:
        parts.append(_modules([{m["name"]: m for m in side.get("modules", [])} for side in sides]))
    parts += [Text(f"! {warning}", style="yellow") for warning in found["after"]["warnings"]]
    foot = {"made already": found["made"], "measured in": f"{found['seconds']:.2f} s; nothing was made"}
    return Group(*parts, sheet(foot))


def _sources(totals: list[Mapping[str, Any]]) -> Table:
    made = table("Own direction kept, cosine", "source", ">before", ">after")
    sides = [dict(zip(labels([s["ref"] for s in total["sources"]]), total["sources"], strict=True)) for total in totals]
    for ref in {**sides[0], **sides[1]}:
        cells = (f"{side[ref]['projection']:.3f}, {side[ref]['cosine']:.3f}" if ref in side else "–" for side in sides)
        made.add_row(ref, *cells)
    return made


def _modules(sides: list[dict[str, Any]]) -> Table:
    made = table("Error of the exact sum (rank)", "module", ">before", ">after")
    for name in {**sides[0], **sides[1]}:
        cells = (f"{share(s[name]['relative_error'])} ({s[name]['rank']})" if name in s else "–" for s in sides)
        made.add_row(name, *cells)
    return made
