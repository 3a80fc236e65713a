"""Monte Carlo tree search over steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.branch import Branch
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Search
from ttc_runtime.strategies.base import (
    SELECTS,
    Outcome,
    Work,
    check_choice,
    check_count,
    check_number,
)
from ttc_runtime.strategies.montecarlo import Node, Tree, puct, uct, walk
from ttc_runtime.strategies.steps import grow_steps
from ttc_runtime.strategies.values import RewardValue, Rollouts, Value

RULES = {"uct": uct, "puct": puct}


@dataclass(frozen=True)
class MCTS:
    """Each simulation walks to a finished solution, whose value counts for every step on the way.

    A step that is met for the first time gets `width` children, sampled and valued in one batch;
    the walk goes on to the child with the highest priority. simulations: walks in all. rule:
    ``puct``, with priors from the policy's probability of a step, or ``uct``. exploration: weight
    of rarely visited steps, the "c" of the rules. value: of a new step: ``reward``, the reward
    model's; ``rollout``, the reward model's of a completion sampled from it; or a `Value`.
    parallel: simulations under way at a time, kept apart by virtual loss; they share each batch.
    max_depth: steps after which a solution is completed without branching. step_tokens: longest
    step. select: how the answer is chosen among all finished solutions. sampling: how tokens are
    drawn.

    Kocsis and Szepesvari, "Bandit based Monte-Carlo Planning", 2006; Silver et al., "Mastering the
    game of Go without human knowledge", 2017; walks to the end as in OpenR, exploration = 1.25 as
    there and in MuZero (for ``uct``, 1.414 is usual). Raises ValueError for other settings.

    >>> MCTS(50).simulations
    50
    """

    simulations: int = 50
    width: int = 4
    rule: str = "puct"
    exploration: float = 1.25
    value: str | Value = "reward"
    parallel: int = 4
    max_depth: int = 40
    step_tokens: int | None = None
    select: str = "weighted"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "mcts"

    def __post_init__(self) -> None:
        for setting in ("simulations", "width", "parallel", "max_depth"):
            check_count("MCTS", setting, getattr(self, setting))
        check_choice("MCTS", "rule", self.rule, tuple(RULES))
        check_number("MCTS", "exploration", self.exploration, 0, 1e6)
        check_choice("MCTS", "select", self.select, SELECTS)
        if isinstance(self.value, str):
            check_choice("MCTS", "value", self.value, ("reward", "rollout"))

    def run(self, search: Search) -> Work:
        tree = Tree(RULES[self.rule], self.exploration)
        tree.root.item = search.root
        walks: list[Node] = []
        while not search.budget_hit:
            room = self.simulations - tree.root.visits - len(walks)
            for _ in range(min(self.parallel - len(walks), room)):
                node = tree.start()
                walks += [node] if node is not None else []
            if not walks:
                break  # all simulations are done, or every solution the tree can hold was found
            walks = [at for at in (self._advance(tree, node) for node in walks) if at is not None]
            new = list(dict.fromkeys(walks))
            if new:
                yield from self._expand(search, tree, new)
        ends = [branch for branch in _below(search.root) if branch.finished]
        for node in walk(tree.root):
            node.item.visits, node.item.value = node.visits, node.mean
            if not (node.children or node.item.finished or node.item.freed):
                node.item.free("unexplored")
        return Outcome(ends, self.select, {"simulations": tree.root.visits})

    def _advance(self, tree: Tree, node: Node) -> Node | None:
        """Walk on to a node without children; None if the walk is over."""
        while node.children:
            following = tree.step(node)
            if following is None:
                tree.finish(node, math.nan)
                return None
            node = following
        if node.final:
            tree.finish(node, node.value)
            return None
        return node

    def _expand(self, search: Search, tree: Tree, nodes: list[Node]):
        """Sample, value and add the children of nodes, all in one batch."""
        named: dict[str, Value] = {"reward": RewardValue(), "rollout": Rollouts()}
        value = named[self.value] if isinstance(self.value, str) else self.value
        families = [node.item.fork(self.width) for node in nodes]
        branches = [branch for family in families for branch in family]
        starts = [len(branch.logprobs) for branch in branches]
        yield from self._grow(search, families)
        values = yield from value(search, branches, self.sampling)
        steps = [b.logprobs[start:] for b, start in zip(branches, starts, strict=True)]
        priors = [math.exp(math.fsum(step) / max(1, len(step))) for step in steps]
        found = iter(zip(branches, values, priors, strict=True))
        for node, family in zip(nodes, families, strict=True):
            children = [Node(node, *next(found), branch.finished) for branch in family]
            self._judge(children)
            tree.expand(node, children)
            for child in children:
                if child.final:
                    child.item.free()  # its text and scores stay
            if node.parent is not None:
                node.item.free()  # its children have taken over what they share

    def _grow(self, search: Search, families: list[list[Branch]]):
        """Sample the steps of new children, a family from each node."""
        every = [branch for family in families for branch in family]
        yield from grow_steps(every, self.sampling, self.step_tokens)

    def _judge(self, children: list[Node]) -> None:
        """Close new children that are not to be explored."""


def _below(root: Branch) -> list[Branch]:
    """All branches below one, in the order of their paths."""
    found, stack = [], [root]
    while stack:
        branch = stack.pop()
        found.append(branch)
        stack += reversed(branch.children)
    return found
