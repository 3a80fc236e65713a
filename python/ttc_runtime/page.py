"""A search tree as one HTML page that needs nothing else: no network, no script to be read."""

from __future__ import annotations

import html
from collections.abc import Iterator

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif }
body { margin: 1.5rem auto; max-width: 72rem; padding: 0 1rem }
h1 { font-size: 1.2rem } pre, code, .text { font-family: ui-monospace, monospace }
pre { white-space: pre-wrap; padding: .6rem; border: 1px solid #8884; border-radius: .4rem }
table { border-collapse: collapse } td, th { padding: .1rem .9rem .1rem 0; text-align: left }
details.node { margin: .15rem 0 .15rem .6rem; padding-left: .7rem; border-left: 2px solid #8886 }
details.chosen { border-left-color: #2a7de1; border-left-width: 4px }
summary { cursor: pointer } summary .text { white-space: pre-wrap }
.score { border-radius: .3rem; padding: 0 .35rem; color: #000; font-variant-numeric: tabular-nums }
.note { opacity: .7; font-size: .85rem; margin-left: .5rem }
.leaf > summary { list-style: none } .step { margin: .1rem 0 .1rem 1.4rem; white-space: pre-wrap }
button { font: inherit; margin-right: .5rem }
"""

_SCRIPT = """
const nodes = () => document.querySelectorAll('details.node');
document.getElementById('expand').onclick = () => nodes().forEach(n => n.open = true);
document.getElementById('collapse').onclick = () => nodes().forEach(n => n.open = false);
document.getElementById('answer').onclick = () => nodes().forEach(
  n => n.open = n.classList.contains('chosen'));
"""

_FIGURES = {
    "generated": "tokens generated",
    "scored": "tokens scored",
    "recomputed": "tokens recomputed",
    "flops": "FLOPs",
}


def tree_page(record: dict) -> str:
    """The page of one record of a results file.

    record: with its ``tree``. Each branch is an element ``details.node`` inside its parent's; its
    steps are elements ``step`` with their scores as colours, red for 0 to green for 1. Raises
    ValueError for a record without a tree.

    >>> node = {"parent": -1, "path": [], "tokens": 4, "reused": 0, "steps": [], "rest": "",
    ...         "value": None, "visits": 0, "end": "prompt"}
    >>> tree = {"nodes": [node], "completions": [], "chosen": None}
    >>> page = tree_page({"id": 1, "problem": "1+1=", "strategy": "greedy", "seed": 0,
    ...                   "tree": tree, "usage": {}})
    >>> page.count('class="node')
    1
    """
    tree = record.get("tree")
    if not tree:
        raise ValueError(f"tree: the record of problem {record.get('id')!r} holds no tree")
    nodes = tree["nodes"]
    own = sum(node["tokens"] for node in nodes)
    leaves = {i for i in range(len(nodes))} - {node["parent"] for node in nodes}
    paths = sum(nodes[i]["tokens"] + nodes[i]["reused"] for i in leaves)
    title = f"Problem {record['id']}: {record['strategy']}, seed {record['seed']}"
    rows = {
        "answer": _answer(record),
        "completions": len(tree["completions"]),
        "branches": len(nodes),
        "distinct tokens of the tree": f"{own:,}",
        "tokens of its paths, one by one": f"{paths:,}",
        **{
            name: f"{record['usage'][key]:,}"
            for key, name in _FIGURES.items()
            if key in record.get("usage", {})
        },
    }
    table = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(figure))}</td></tr>"
        for name, figure in rows.items()
    )
    return "".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style><body>",
            f"<h1>{html.escape(title)}</h1><pre>{html.escape(record['problem'])}</pre>",
            f"<table>{table}</table><p>",
            '<button id="expand">Expand all</button><button id="collapse">Collapse all</button>',
            '<button id="answer">Show the answer\'s path</button>',
            f" {_score(0.0)} to {_score(1.0)}: scores of steps</p>",
            *_elements(nodes, _chosen(tree)),
            f"<script>{_SCRIPT}</script></body></html>\n",
        ]
    )


def _answer(record: dict) -> str:
    answer = "none" if record.get("pred") is None else str(record["pred"])
    if record.get("correct") is None:
        return answer
    return answer + (", right" if record["correct"] else f", wrong: it is {record['answer']}")


def _chosen(tree: dict) -> set[int]:
    """The nodes on the way to the completion whose answer was chosen."""
    path: set[int] = set()
    place = tree["chosen"]
    while place is not None and place >= 0:
        path.add(place)
        place = tree["nodes"][place]["parent"]
    return path


def _elements(nodes: list[dict], chosen: set[int]) -> Iterator[str]:
    children: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        children.setdefault(node["parent"], []).append(place)
    stack: list[tuple[int, bool]] = [(0, False)] if nodes else []
    while stack:
        place, closing = stack.pop()
        if closing:
            yield "</details>"
            continue
        below = children.get(place, [])
        kinds = ["node", *(["chosen"] if place in chosen else []), *([] if below else ["leaf"])]
        opened = " open" if place == 0 or place in chosen else ""
        yield f'<details class="{" ".join(kinds)}"{opened}>{_summary(nodes[place], len(below))}'
        stack.append((place, True))
        stack += [(child, False) for child in reversed(below)]


def _summary(node: dict, num_children: int) -> str:
    steps, rest = node["steps"], node["rest"]
    texts = [step["text"] for step in steps] + ([rest] if rest else [])
    scores = [step["score"] for step in steps if step["score"] is not None]
    name = ".".join(map(str, node["path"])) or "prompt"
    notes = [f"{node['tokens']} tokens", f"{node['reused']} reused"] if node["path"] else []
    if node["visits"]:
        notes.append(f"{node['visits']} visits")
    if node["value"] is not None:
        notes.append(f"value {node['value']:.3f}")
    if num_children:
        notes.append(f"{num_children} children")
    if node["path"]:
        notes.append(node["end"])
    head = [f"<code>{name}</code> "]
    if scores:
        head.append(_score(scores[-1]) + " ")
    if len(texts) == 1:
        head.append(f'<span class="text">{html.escape(texts[0].strip())}</span>')
    head.append(f'<span class="note">{html.escape(", ".join(notes))}</span>')
    body = "" if len(texts) <= 1 else "".join(map(_step, [*steps, *_open_step(rest)]))
    return f"<summary>{''.join(head)}</summary>{body}"


def _open_step(rest: str) -> list[dict]:
    return [{"text": rest, "score": None}] if rest else []


def _step(step: dict) -> str:
    score = "" if step["score"] is None else _score(step["score"]) + " "
    text = html.escape(step["text"].strip())
    return f'<div class="step">{score}<span class="text">{text}</span></div>'


def _score(score: float) -> str:
    hue = 120 * min(1.0, max(0.0, score))
    return f'<span class="score" style="background:hsl({hue:.0f} 75% 70%)">{score:.3f}</span>'
