"""What schemathesis cannot make by itself: lines of JSON, an adapter whose parts belong together, a merge of what is
there.

Every other well-formed upload becomes one of the example adapter under the name that was drawn, and every eighth merge
one of that adapter, so that what follows (aliases, revocations, deletions, jobs) has something to work on. Answers are
held to a few tokens: a whole one takes this model a minute, and shows nothing more.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import schemathesis

EXAMPLE = Path(__file__).parents[1] / "examples" / "adapters" / "spam"
_UPLOAD = {
    "config": json.loads((EXAMPLE / "adapter_config.json").read_bytes()),
    "weights": f"sha256:{hashlib.sha256((EXAMPLE / 'adapter_model.safetensors').read_bytes()).hexdigest()}",
}
_MERGE = {"name": "examples/merged", "sources": [{"ref": "examples/spam"}], "method": "sum", "rank": 2}
_WORKING = {
    "POST /v1/adapters/{namespace}/{name}/versions": (_UPLOAD, 2),
    "POST /v1/merges": (_MERGE, 8),
}
_MOST_TOKENS = 8


@schemathesis.serializer("application/x-ndjson")
def lines_of_json(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Each item of a list on a line of its own; anything else on one."""
    items = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Replace some well-formed bodies by ones that work."""
    body, every = _WORKING.get(case.operation.label, (None, 1))
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if body is not None and positive and hashlib.sha256(case.id.encode()).digest()[0] % every == 0:
        case.body, case.media_type = dict(body), "application/json"
    if positive and isinstance(case.body, dict) and "generation" in (case.operation.tags or ()):
        _shorten(case.body)


def _shorten(body: dict[str, Any]) -> None:
    """Ask for a short answer, in OpenAI's words or in LoRAX'; a deadline that was asked for may end in 504, as said."""
    if isinstance(body.get("timeout_s"), int | float):
        body["timeout_s"] = max(body["timeout_s"], 600)
    if "messages" in body or "prompt" in body:
        body["max_tokens"] = min(body.get("max_tokens") or _MOST_TOKENS, _MOST_TOKENS)
    elif "inputs" in body:
        asked = body.get("parameters") or {}
        most = min(asked.get("max_new_tokens") or _MOST_TOKENS, _MOST_TOKENS)
        body["parameters"] = asked | {"max_new_tokens": most}
