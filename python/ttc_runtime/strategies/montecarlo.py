"""The books of a Monte Carlo tree search, apart from any model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any


class Node:
    """A node of the tree.

    item: whatever the caller puts there. value: what it was thought worth when it was added, NaN if
    nothing is known. prior: the policy's weight, used relative to its siblings'. final: nothing can
    follow. visits, total: simulations that went through it and the sum of what they brought.
    flying: simulations under way through it. closed: nothing is left to explore from here on.
    """

    __slots__ = (
        "children",
        "closed",
        "final",
        "flying",
        "item",
        "parent",
        "prior",
        "total",
        "value",
        "visits",
    )

    def __init__(
        self,
        parent: Node | None,
        item: Any = None,
        value: float = 0.0,
        prior: float = 1.0,
        final: bool = False,
    ) -> None:
        self.parent, self.item, self.final = parent, item, final
        self.value, self.prior = value, prior
        self.children: list[Node] = []
        self.visits = self.flying = 0
        self.total = 0.0
        self.closed = False

    @property
    def count(self) -> int:
        """Visits, with the first valuation as one and simulations under way as lost ones."""
        return 1 + self.visits + self.flying

    @property
    def mean(self) -> float:
        first = self.value if self.value == self.value else 0.0
        return (first + self.total) / self.count


Rule = Callable[[Node, Node, float], float]
"""Priority of a child: function of (parent, child, exploration)."""


def uct(parent: Node, child: Node, exploration: float) -> float:
    """``Q + c * sqrt(ln N / n)``: Kocsis and Szepesvari, 2006."""
    return child.mean + exploration * math.sqrt(math.log(parent.count) / child.count)


def puct(parent: Node, child: Node, exploration: float) -> float:
    """``Q + c * P * sqrt(N) / (1 + n)``: Silver et al., 2017, with the first valuation in n."""
    share = child.prior / math.fsum(sibling.prior for sibling in parent.children)
    return child.mean + exploration * share * math.sqrt(parent.count) / (1 + child.count)


class Tree:
    """Where simulations go, and what they bring back.

    A simulation walks from the root to a final node with `step`; the caller adds children to a node
    that has none with `expand`. Until its end it counts as a lost visit of every node on its way
    ("virtual loss"), so that others spread. What is explored to its end is passed by. A simulation
    costs O(depth * width), whatever the size of the tree.

    rule, exploration: see `uct`, `puct`.

    >>> tree = Tree(uct, 1.0)
    >>> node = tree.start()
    >>> tree.expand(node, [Node(node, "a", 0.2, final=True), Node(node, "b", 0.6)])
    >>> tree.step(node).item
    'b'
    """

    def __init__(self, rule: Rule, exploration: float) -> None:
        self.rule, self.exploration = rule, exploration
        self.root = Node(None)

    def start(self) -> Node | None:
        """Begin a simulation at the root; None if nothing is left to explore."""
        if self.root.closed:
            return None
        self.root.flying += 1
        return self.root

    def expand(self, node: Node, children: list[Node]) -> None:
        """Give a node its children."""
        node.children = children
        node.closed = all(child.closed for child in children)

    def step(self, node: Node) -> Node | None:
        """The child that the simulation goes on to; None if others explore all that is left."""
        open_ones = [c for c in node.children if not (c.closed or (c.final and c.flying))]
        if not open_ones:
            return None
        chosen = max(open_ones, key=lambda child: self.rule(node, child, self.exploration))
        chosen.flying += 1
        return chosen

    def finish(self, node: Node, value: float) -> None:
        """End a simulation at a final node, or anywhere with NaN, which leaves no visit."""
        known = value == value
        if node.final:
            node.closed = True
        for on_path in path(node):
            on_path.flying -= 1
            if known:
                on_path.visits += 1
                on_path.total += value
            if on_path.children:
                on_path.closed = all(child.closed for child in on_path.children)


def path(node: Node | None) -> Iterator[Node]:
    """A node and its ancestors, up to the root."""
    while node is not None:
        yield node
        node = node.parent


def walk(node: Node) -> Iterator[Node]:
    """A node and all below it, parents first."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack += reversed(node.children)
