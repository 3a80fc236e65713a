"""A search tree as JSON: one node a branch, parents first."""

from __future__ import annotations

from ttc_runtime.branch import FINISHED, Branch


def tree_nodes(root: Branch) -> tuple[list[dict], dict[int, int]]:
    """The nodes of a search tree, each before its children, and each branch's place by its `id()`.

    root: the branch that holds the prompt. A node has ``parent`` (a place, -1 for the root),
    ``path`` (child numbers from the root), ``tokens`` (its own, the prompt's for the root),
    ``reused`` (tokens before those, whose keys and values it shares), ``steps`` (texts and scores
    of the steps it closed; a score is None where there is none), ``rest`` (text of a step it left
    open), ``value``, ``visits`` and ``end`` (why it ended).
    """
    nodes: list[dict] = []
    places: dict[int, int] = {}
    stack = [root]
    while stack:
        branch = stack.pop()
        places[id(branch)] = len(nodes)
        nodes.append(_node(branch, -1 if branch.parent is None else places[id(branch.parent)]))
        stack += reversed(branch.children)
    return nodes, places


def end_of(branch: Branch) -> str:
    """Why a branch ended: its stop reason, the search's reason, or what became of it."""
    if branch.parent is None:
        return "prompt"
    if branch.stop_reason in FINISHED:
        return str(branch.stop_reason)
    if branch.end_reason is not None:
        return branch.end_reason
    if branch.children:
        return "forked"
    return "pruned" if branch.freed else "left"


def _node(branch: Branch, parent: int) -> dict:
    sequence = branch.sequence
    # Steps closed before the fork are the parent's; one that was open then is told by the child.
    first = sum(start <= sequence.fork_len for start in branch.step_starts[1:])
    scores = branch.step_scores + [float("nan")] * (len(branch.steps) - len(branch.step_scores))
    open_from = branch.step_starts[-1]
    rest = [] if branch.parent is None else sequence.tokens[open_from:]
    return {
        "parent": parent,
        "path": list(branch.path),
        "tokens": len(sequence.tokens) - sequence.fork_len,
        "reused": sequence.fork_len,
        "steps": [
            {"text": text, "score": score if score == score else None}
            for text, score in zip(branch.steps[first:], scores[first:], strict=False)
        ],
        "rest": branch.search.policy.decode(rest) if rest else "",
        "value": branch.value,
        "visits": branch.visits,
        "end": end_of(branch),
    }
