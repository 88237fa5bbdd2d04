"""What texts have in common, kept: keys and values of the beginnings of earlier texts, found again by truth.

Keys and values depend on the tokens and on every weight that made them. So there is one tree for each weighted set of
versions (a version is immutable), and within it a radix tree over tokens, after RadixAttention (SGLang, arXiv
2312.07104): a node is a run of tokens with its keys and values, children begin with different tokens, and what many
texts share is kept once. When the byte budget is full, the least recently used leaf goes.

A prefix needs no adapter in memory: an evicted adapter's prefixes are as true as before, and wait for its return.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from serving.adapter_set import AdapterSet
from serving.spans import Span, cloned, part_of, span_bytes

MIN_SHARED = 16
"""Beginnings shorter than this are computed anew: taking them over (a copy per layer, a mask) costs as much."""

Tokens = tuple[int, ...]


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens two sequences of the same type have in common."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # slices are compared at the speed of memory, token by token is not
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(slots=True, eq=False)
class _Node:
    """A run of tokens and its keys and values, in the tree of one set. A root has no run and no parent."""

    chosen: AdapterSet
    tokens: Tokens
    span: Span
    parent: "_Node | None"
    children: "dict[int, _Node]" = field(default_factory=dict)


class PrefixStore:
    """Prefixes under `budget_bytes`; 0 keeps none. Use from one thread."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._roots: dict[AdapterSet, _Node] = {}
        # Least recently used first. A node always stands behind its children, so the first one is a leaf.
        self._order: OrderedDict[_Node, None] = OrderedDict()

    def length(self, chosen: AdapterSet, tokens: Tokens) -> int:
        """How many leading tokens are kept for this set."""
        return sum(common for _, common in self._walk(chosen, tokens))

    def find(self, chosen: AdapterSet, tokens: Tokens) -> list[Span]:
        """Keys and values of the longest kept beginning, in pieces one behind the other; to be copied at once."""
        path = self._walk(chosen, tokens)
        self._touch(path)
        return [part_of(node.span, 0, common) for node, common in path]

    def add(self, chosen: AdapterSet, tokens: Tokens, read: Callable[[int, int], Span]) -> None:
        """Keep a text's beginning: all of it, or as much as the budget can ever hold.

        `read(start, stop)` gives keys and values of these positions; they are cloned. What is kept already is not read.
        """
        if self.budget_bytes == 0 or len(tokens) < MIN_SHARED:
            return
        path = self._walk(chosen, tokens)
        self._touch(path)
        known = sum(common for _, common in path)
        per_token = span_bytes(read(0, 1))
        stop = min(len(tokens), self.budget_bytes // per_token)
        if stop <= max(known, MIN_SHARED - 1):
            return
        parent = self._parent(chosen, path)
        self._make_room((stop - known) * per_token)
        leaf = _Node(chosen, tokens[known:stop], cloned(read(known, stop)), parent)
        self._attach(leaf)
        self.used_bytes += span_bytes(leaf.span)
        while parent.parent is not None:
            self._order.move_to_end(parent)
            parent = parent.parent
        self._roots[chosen] = parent  # the root may have lost its last child, and its place, to make room

    def clear(self) -> None:
        """Forget everything."""
        self._roots.clear()
        self._order.clear()
        self.used_bytes = 0

    def _walk(self, chosen: AdapterSet, tokens: Tokens) -> list[tuple[_Node, int]]:
        """The nodes that begin `tokens`, each with how many of its own tokens do; only the last may match in part."""
        path: list[tuple[_Node, int]] = []
        node, at = self._roots.get(chosen), 0
        while node is not None and at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                break
            common = shared_length(child.tokens, tokens[at : at + len(child.tokens)])
            path.append((child, common))
            at += common
            node = child if common == len(child.tokens) else None
        return path

    def _touch(self, path: Sequence[tuple[_Node, int]]) -> None:
        for node, _ in reversed(path):
            self._order.move_to_end(node)

    def _parent(self, chosen: AdapterSet, path: Sequence[tuple[_Node, int]]) -> _Node:
        """The node below which a text goes on that shares `path`; the last node is cut where they part."""
        if not path:
            return self._roots.setdefault(chosen, _Node(chosen, (), (), None))
        node, common = path[-1]
        return node if common == len(node.tokens) else self._cut(node, common)

    def _cut(self, node: _Node, at: int) -> _Node:
        """Make two nodes of one; returns the upper."""
        upper = _Node(node.chosen, node.tokens[:at], cloned(part_of(node.span, 0, at)), node.parent)
        rest = cloned(part_of(node.span, at, len(node.tokens)))
        node.tokens, node.span, node.parent = node.tokens[at:], rest, upper
        upper.children[node.tokens[0]] = node
        self._attach(upper)
        return upper

    def _attach(self, node: _Node) -> None:
        assert node.parent is not None
        node.parent.children[node.tokens[0]] = node
        self._order[node] = None

    def _make_room(self, size_bytes: int) -> None:
        while self.used_bytes + size_bytes > self.budget_bytes:
            leaf, _ = self._order.popitem(last=False)
            self.used_bytes -= span_bytes(leaf.span)
            assert leaf.parent is not None
            del leaf.parent.children[leaf.tokens[0]]
            if leaf.parent.parent is None and not leaf.parent.children:
                del self._roots[leaf.chosen]
