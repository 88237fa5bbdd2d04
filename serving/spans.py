"""Keys and values of neighbouring positions of one text, for all layers: what caches hand to each other."""

from torch import Tensor

Span = tuple[tuple[Tensor, Tensor], ...]
"""For every layer keys and values [heads, positions, head_dim]. Mostly views: whoever keeps one clones it."""


def span_bytes(span: Span) -> int:
    """Bytes that the span takes once it is cloned."""
    return sum(part.numel() * part.element_size() for layer in span for part in layer)


def part_of(span: Span, start: int, stop: int) -> Span:
    """The positions from `start` up to `stop`, as views."""
    return tuple((keys[:, start:stop], values[:, start:stop]) for keys, values in span)


def cloned(span: Span) -> Span:
    """A copy that holds no more memory than its own."""
    return tuple((keys.clone(), values.clone()) for keys, values in span)
