"""Collective search: MCTS whose steps are proposed by several policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.branch import Branch
from ttc_runtime.search import Search, Together
from ttc_runtime.strategies.base import Work, check_number
from ttc_runtime.strategies.mcts import MCTS
from ttc_runtime.strategies.montecarlo import Node
from ttc_runtime.strategies.steps import grow_steps


@dataclass(frozen=True)
class Collective(MCTS):
    """MCTS in which each new step's children come from all policies in turn.

    policies: their names, the empty one being the engine's first; by default all there are.
    threshold: children valued below are not explored. The rest as for `MCTS`; width must be at
    least the number of policies. Yao et al., "Mulberry: Empowering MLLM with o1-like Reasoning and
    Reflection via Collective Monte Carlo Tree Search", 2024, with threshold 0 as there. Raises
    ValueError for other settings, and at its start where the engine has no further policy.

    >>> Collective(50, policies=("", "large")).width
    4
    """

    policies: tuple[str, ...] = ()
    threshold: float = 0.0
    name: ClassVar[str] = "collective"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("Collective", "threshold", self.threshold, 0, 1)
        object.__setattr__(self, "policies", tuple(self.policies))

    def run(self, search: Search) -> Work:
        names = self._names(search)
        unknown = [name for name in names if name and name not in search.policy.peers]
        if len(names) < 2 or unknown or len(names) > self.width:
            raise ValueError(
                f"Collective: needs 2 to width = {self.width} policies of the engine, which has "
                f"{['', *search.policy.peers]}, got {list(names)}"
            )
        return (yield from super().run(search))

    def _names(self, search: Search) -> tuple[str, ...]:
        return self.policies or ("", *search.policy.peers)

    def _grow(self, search: Search, families: list[list[Branch]]):
        names = self._names(search)
        shares: list[list[Branch]] = [[] for _ in names]
        for family in families:
            for i, branch in enumerate(family):
                shares[i % len(names)].append(branch)
        grown = zip(shares, names, strict=True)
        yield Together([grow_steps(b, self.sampling, self.step_tokens, policy=n) for b, n in grown])

    def _judge(self, children: list[Node]) -> None:
        for child in children:
            if child.value < self.threshold and not child.final:
                child.closed = True
                child.item.free("pruned")
