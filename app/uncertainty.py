"""What an ensemble says of its certainty, as an extra member of a choice; OpenAI's clients keep it as it is.

    "uncertainty": {"entropy": 0.71, "expected_entropy": 0.52, "mutual_information": 0.19, "disagreement": 0.25,
                    "max_disagreement": 0.3, "tokens": {"entropy": [0.4, 1.02], …}}

The numbers are means over the answer's tokens, entropies in nats. `tokens` comes where log-probabilities were asked,
one number for each of theirs (null for a token of the prompt). In a stream, every chunk has the `tokens` of its own,
and the last chunk of a choice the means.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from serving.engine import TokenEvent
from serving.ensemble import Uncertainty

Json = dict[str, Any]


def with_uncertainty(choice: Json, tokens: Sequence[TokenEvent], means: Uncertainty | None) -> Json:
    """The choice and its uncertainty; a choice that is no ensemble's stays as it is."""
    told: Json = {} if means is None else asdict(means)
    if choice.get("logprobs") is not None and any(token.uncertainty is not None for token in tokens):
        told["tokens"] = {
            field.name: [token.uncertainty and getattr(token.uncertainty, field.name) for token in tokens]
            for field in fields(Uncertainty)
        }
    return choice | {"uncertainty": told} if told else choice
