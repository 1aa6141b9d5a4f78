"""Token sequences by their beginnings: a radix tree. Pure; knows nothing of what it points to.

An edge carries a run of tokens, so a conversation of thousands of tokens is a handful of nodes and
most comparing is done by slices at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Match(Generic[Value]):
    """A stored sequence that begins as the one asked for."""

    tokens: Tokens
    """The whole stored sequence."""
    value: Value
    length: int
    """Tokens that both have in common from the beginning."""


@dataclass(slots=True)
class _Node(Generic[Value]):
    edge: Tokens = ()
    """Tokens between the parent and here."""
    children: dict[int, _Node[Value]] = field(default_factory=dict)
    """By the first token of their edge."""
    entry: tuple[Tokens, Value] | None = None
    """What is stored for exactly the tokens down to here."""


class PrefixIndex(Generic[Value]):
    """Values by token sequences, found by their longest common beginning."""

    def __init__(self) -> None:
        self._root: _Node[Value] = _Node()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, tokens: Sequence[int], value: Value) -> Value | None:
        """Store `value` for exactly `tokens`; returns what was stored there before."""
        key = tuple(tokens)
        node, depth = self._root, 0
        while depth < len(key):
            child = node.children.get(key[depth])
            if child is None:
                child = node.children[key[depth]] = _Node(key[depth:])
            shared = common_length(child.edge, key[depth : depth + len(child.edge)])
            if shared < len(child.edge):
                child = self._split(node, child, shared)
            node, depth = child, depth + shared
        before = node.entry
        node.entry = (key, value)
        self._size += before is None
        return None if before is None else before[1]

    def remove(self, tokens: Sequence[int]) -> Value | None:
        """Forget what is stored for exactly `tokens` and return it; None if there is nothing."""
        key = tuple(tokens)
        path = [self._root]
        depth = 0
        while depth < len(key):
            child = path[-1].children.get(key[depth])
            if child is None or child.edge != key[depth : depth + len(child.edge)]:
                return None
            path.append(child)
            depth += len(child.edge)
        entry, path[-1].entry = path[-1].entry, None
        if entry is None:
            return None
        self._size -= 1
        self._tidy(path)
        return entry[1]

    def longest_prefix(self, tokens: Sequence[int]) -> Match[Value] | None:
        """The longest stored sequence that `tokens` begins with (or is)."""
        found: tuple[Tokens, Value] | None = None
        for node, whole in self._walk(tuple(tokens)):
            if whole and node.entry is not None:
                found = node.entry
        return None if found is None else Match(found[0], found[1], len(found[0]))

    def longest_common(self, tokens: Sequence[int]) -> Match[Value] | None:
        """The stored sequence that agrees with `tokens` for longest; None if none does at all.

        It may go on differently after that, or be longer. Among equals, one of the shortest steps
        down the tree is taken.
        """
        key = tuple(tokens)
        depth, deepest = 0, None
        for node, whole in self._walk(key):
            shared = (
                len(node.edge)
                if whole
                else common_length(node.edge, key[depth : depth + len(node.edge)])
            )
            depth += shared
            deepest = node
        if deepest is None or depth == 0:
            return None
        entry = _any_entry(deepest)
        return Match(entry[0], entry[1], depth)

    def prefixes(self, tokens: Sequence[int]) -> list[Tokens]:
        """The stored sequences that are proper beginnings of `tokens`, shortest first."""
        key = tuple(tokens)
        return [
            node.entry[0]
            for node, whole in self._walk(key)
            if whole and node.entry is not None and len(node.entry[0]) < len(key)
        ]

    def _walk(self, key: Tokens) -> Iterator[tuple[_Node[Value], bool]]:
        """The nodes on the way down, each with whether its whole edge agrees; ends where not."""
        node, depth = self._root, 0
        yield node, True
        while depth < len(key):
            child = node.children.get(key[depth])
            if child is None:
                return
            whole = child.edge == key[depth : depth + len(child.edge)]
            yield child, whole
            if not whole:
                return
            node, depth = child, depth + len(child.edge)

    def _split(self, parent: _Node[Value], child: _Node[Value], at: int) -> _Node[Value]:
        upper: _Node[Value] = _Node(child.edge[:at])
        parent.children[upper.edge[0]] = upper
        child.edge = child.edge[at:]
        upper.children[child.edge[0]] = child
        return upper

    def _tidy(self, path: list[_Node[Value]]) -> None:
        """Take out nodes that hold nothing and join those that only pass on."""
        node, parent = path[-1], path[-2] if len(path) > 1 else None
        if parent is None:
            return
        if not node.children:
            del parent.children[node.edge[0]]
            node, parent = parent, path[-3] if len(path) > 2 else None  # noqa: PLR2004 - its parent
        if parent is not None and node.entry is None and len(node.children) == 1:
            [child] = node.children.values()
            child.edge = node.edge + child.edge
            parent.children[child.edge[0]] = child


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the beginning."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # halves, because slices compare far faster than single tokens
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _any_entry(node: _Node[Value]) -> tuple[Tokens, Value]:
    while node.entry is None:
        node = next(iter(node.children.values()))
    return node.entry
