"""spolia generate: talk to the base, an adapter, or a weighted set."""

import sys
from typing import Annotated, Any

import typer

from app.cli_context import AsJson, client, weighted
from app.cli_output import print_json


def generate(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Argument(help='What to say; "-" reads it from standard input.')],
    model: Annotated[str | None, typer.Option("--model", "-m", help="An adapter reference; default: the base.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", "-a", help="REF or REF=WEIGHT of a set on the base; repeatable.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Generate text, streamed as it is made."""
    text = sys.stdin.read() if prompt == "-" else prompt
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    options |= {"seed": seed} if seed is not None else {}
    options |= {"stop": stop} if stop else {}
    adapters = [{"ref": ref, "weight": weight} for ref, weight in map(weighted, adapter or [])] or None
    with client(ctx) as spolia:
        if as_json:
            ask = spolia.complete if raw else spolia.chat
            return print_json(ask(text, model=model, adapters=adapters, **options))
        for piece in spolia.generate(text, model=model, adapters=adapters, chat=not raw, **options):
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
