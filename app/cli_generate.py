"""spolia generate: talk to the base, an adapter, or a weighted set."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.cli_context import AsJson, client, weighted
from app.cli_output import err, print_json
from app.client_generate import text_of
from app.client_http import Json

MOST_LIKELY = 5  # continuations told of a scored token


def generate(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Argument(help='What to say; "-" reads it from standard input.')],
    model: Annotated[str | None, typer.Option("--model", "-m", help="An adapter reference; default: the base.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", "-a", help="REF or REF=WEIGHT of a set on the base; repeatable.")
    ] = None,
    combine: Annotated[
        Literal["sum", "ensemble"],
        typer.Option(help="Apply the set as one sum, or average its members' predictions and say how sure they are."),
    ] = "sum",
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens of this total probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample among so many of the likeliest tokens; 0: all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Leave out tokens below this share of the likeliest one's.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was said becomes less likely.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; repeatable.")] = None,
    schema: Annotated[Path | None, typer.Option(help="File with a JSON schema that the answer must match.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds until it ends with an error, if not yet done.")] = None,
    as_json: AsJson = False,
) -> None:
    """Generate text, streamed as it is made."""
    text = sys.stdin.read() if prompt == "-" else prompt
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    options |= {"min_p": min_p, "repetition_penalty": repetition_penalty}
    options |= {"combine": combine} if combine != "sum" else {}
    options |= {"timeout_s": timeout} if timeout is not None else {}
    options |= {"seed": seed} if seed is not None else {}
    options |= {"stop": stop} if stop else {}
    options |= {"response_format": schema_format(schema)} if schema is not None else {}
    adapters = [{"ref": ref, "weight": weight} for ref, weight in map(weighted, adapter or [])] or None
    with client(ctx) as spolia:
        if as_json:
            ask = spolia.complete if raw else spolia.chat
            return print_json(ask(text, model=model, adapters=adapters, **options))
        uncertainty: Json | None = None
        for chunk in spolia.stream(text, model=model, adapters=adapters, chat=not raw, **options):
            for choice in chunk["choices"]:
                sys.stdout.write(text_of(choice) or "")
                sys.stdout.flush()
                uncertainty = choice.get("uncertainty", uncertainty)
    sys.stdout.write("\n")
    if uncertainty:
        err.print(uncertainty_line(uncertainty))


def score(
    ctx: typer.Context,
    text: Annotated[str, typer.Argument(help='The text; "-" reads it from standard input.')],
    model: Annotated[str | None, typer.Option("--model", "-m", help="An adapter reference; default: the base.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", "-a", help="REF or REF=WEIGHT of a set on the base; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How likely a text is, token by token; nothing is generated."""
    adapters = [{"ref": ref, "weight": weight} for ref, weight in map(weighted, adapter or [])] or None
    with client(ctx) as spolia:
        found = spolia.score(sys.stdin.read() if text == "-" else text, model=model, adapters=adapters, top=MOST_LIKELY)
    if as_json:
        return print_json(found)
    for token, logprob in zip(found["tokens"], found["token_logprobs"], strict=True):
        sys.stdout.write(f"{'' if logprob is None else format(logprob, '.4f'):>10}  {token!r}\n")
    sys.stdout.write(f"{found['total']:>10.4f}  in all, of {len(found['tokens'])} tokens\n")


def schema_format(path: Path) -> Json:
    """The response_format of a schema in a file. Raises typer.BadParameter when it is none."""
    try:
        schema = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be read as JSON: {error}.") from None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def uncertainty_line(means: Json) -> str:
    """What an ensemble says of its certainty; beside the answer, on stderr, so that a pipe gets the text alone."""
    return (
        f"Uncertainty per token, in nats: {means['entropy']:.3f} = {means['expected_entropy']:.3f} of the members alone"
        f" + {means['mutual_information']:.3f} of their disagreement. Members with another favourite:"
        f" {means['disagreement']:.0%}; the farthest member is {means['max_disagreement']:.0%} from the mean."
    )
