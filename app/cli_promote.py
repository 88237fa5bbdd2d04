"""spolia promote: a set of adapters in use becomes a merged version, if it answers alike."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli_context import AsJson, client, weighted
from app.cli_output import fail, out, print_json, progress


def promote(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="namespace/name of the merged version.")],
    sources: Annotated[
        list[str], typer.Argument(metavar="ADAPTER...", help="The set in use: references, each with =WEIGHT if not 1.")
    ],
    agreement: Annotated[
        float | None, typer.Option(help="Least share of the set's tokens that the merged version must choose too.")
    ] = None,
    loss: Annotated[float | None, typer.Option(help="Most nats a token that the set's answers may lose.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="One prompt a line; without it, the prompts that the service logged."),
    ] = None,
    alias: Annotated[str, typer.Option(help="Alias of NAME that moves if the bar is met.")] = "production",
    method: Annotated[str, typer.Option(help="See `spolia methods`.")] = "sum",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the merged version.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of each answer that is compared.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Merge a set, compare how both answer, and move an alias to the merged version if the bar is met."""
    bar = {key: value for key, value in (("agreement", agreement), ("loss", loss)) if value is not None}
    if not bar:
        fail("say what must be reached: --agreement, --loss, or both.", 2)
    lines = None
    if prompts is not None:
        lines = [line for line in prompts.read_text().splitlines() if line.strip()]
    recipe: dict[str, Any] = {"method": method, "rank": rank}
    chosen = [{"ref": ref, "weight": weight} for ref, weight in map(weighted, sources)]
    with client(ctx) as spolia, progress(f"promote {name}", data=False, quiet=as_json) as move:
        job = spolia.promote(
            name, chosen, bar=bar, prompts=lines, alias=alias, recipe=recipe, max_tokens=max_tokens, on_progress=move
        )
    if as_json:
        return print_json(job)
    result = job["result"]
    found = result["comparison"]
    out.print(
        f"{result['ref']}: {found['agreement']:.1%} of {found['tokens']} tokens agree,"
        f" {found['loss']:+.4f} nats a token, over {found['prompts']} prompts."
    )
    before = result["previous"] or "nothing"
    moved = f"{alias} moved to it from {before}." if result["promoted"] else f"{alias} stays at {before}."
    out.print(f"The bar is {'met' if result['promoted'] else 'not met'}: {moved}")
