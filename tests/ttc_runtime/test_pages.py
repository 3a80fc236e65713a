"""Trees as JSON and as pages that a browser opens without a network, and metrics as text."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess

import pytest
from test_cli import run  # noqa: F401
from test_engine import PROBLEMS, StepBeam, nodes_of
from ttc_runtime import BestOfN, SamplingParams
from ttc_runtime.metrics import comma_separated, prometheus
from ttc_runtime.page import tree_page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SHORT = SamplingParams(max_tokens=40)


@pytest.fixture
def beam(make_engine):
    return make_engine().solve(PROBLEMS[0], StepBeam(), seed=3)


def test_the_tree_of_a_record_is_the_tree_of_the_search(beam):
    tree = json.loads(json.dumps(beam.record()))["tree"]
    branches = {tuple(b.path): b for b in nodes_of(beam)}
    assert len(tree["nodes"]) == len(branches) >= 7
    assert tree["nodes"][0]["end"] == "prompt" and tree["nodes"][0]["parent"] == -1
    for place, node in enumerate(tree["nodes"]):
        branch = branches[tuple(node["path"])]
        if place:
            parent = tree["nodes"][node["parent"]]
            assert node["parent"] < place and node["path"][:-1] == parent["path"]
        assert node["tokens"] + node["reused"] == len(branch.sequence.tokens)
    ends = {node["end"] for node in tree["nodes"][1:]}
    assert ends <= {"forked", "pruned", "eos", "length"} and "forked" in ends
    # The text of a completion is that of the steps on its path, each told once.
    for place, branch in zip(tree["completions"], beam.branches, strict=True):
        steps, at = [], place
        while at >= 0:
            steps = tree["nodes"][at]["steps"] + steps
            at = tree["nodes"][at]["parent"]
        assert [step["text"] for step in steps] == branch.steps
        assert [step["score"] for step in steps] == branch.step_scores
    assert tree["completions"][beam.chosen] == tree["chosen"]


def test_columns_of_search_and_learn(make_engine):
    result = make_engine().solve(PROBLEMS[0], BestOfN(6, sampling=SHORT))
    record = result.record()
    assert record["agg_scores"] == result.scores
    assert record["completion_tokens"] == [len(b.tokens) for b in result.branches]
    subsets = {key for key in record if "@" in key}
    assert subsets == {f"pred_{v}@{n}" for v in ("maj", "weighted", "naive") for n in (1, 2, 4)}
    best = max(range(4), key=lambda i: (result.answers[i] is not None, result.scores[i]))
    assert record["pred_naive@4"] == f"\\boxed{{{result.answers[best]}}}"


def in_browser(page, tmp_path, script=""):
    """The page's DOM after its scripts have run, with no network to reach."""
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine")
def test_the_page_in_a_browser(beam, tmp_path):
    record = beam.record()
    count = len(record["tree"]["nodes"])
    told = (
        "const all = [...document.querySelectorAll('details.node')];"
        "const open = () => all.filter(n => n.open).length;"
        "const at = id => { document.getElementById(id).click(); return open(); };"
        "const root = all.filter(n => !n.parentElement.closest('details.node')).length;"
        "document.title = ['told', all.length, root, at('expand'), at('collapse'), at('answer'),"
        " performance.getEntriesByType('resource').length].join(' ');"
    )
    dom = in_browser(tree_page(record), tmp_path, told)
    figures = re.search(r"<title>told ([\d ]+)</title>", dom)
    assert figures is not None, dom[:500]
    path = len(record["tree"]["nodes"][record["tree"]["chosen"]]["path"]) + 1
    # All nodes, one root; all open, none, those on the answer's path; nothing was loaded.
    assert list(map(int, figures[1].split())) == [count, 1, count, 0, path, 0]


def test_the_page_is_self_contained_and_safe(make_engine):
    result = make_engine().solve(PROBLEMS[0], BestOfN(3, sampling=SHORT))
    record = result.record()
    record["problem"] = "<script>alert(1)</script>"
    record["tree"]["nodes"][1]["steps"] = [{"text": "<img src=x onerror=a>", "score": 0.25}]
    record["tree"]["nodes"][1]["rest"] = ""
    page = tree_page(record)
    assert "<script>alert" not in page and "<img" not in page
    assert not re.search(r"https?://|src=[\"']|@import|url\(", page)
    assert page.count('<details class="node') == page.count("</details>") == 4
    assert "hsl(30 " in page and "0.250" in page


def test_a_deep_tree_has_a_page():
    nodes = [
        {
            "parent": i - 1,
            "path": [0] * i,
            "tokens": 3,
            "reused": 3 * i,
            "steps": [],
            "rest": "x",
            "value": 0.5,
            "visits": 2,
            "end": "forked",
        }
        for i in range(3000)
    ]
    tree = {"nodes": nodes, "completions": [2999], "chosen": 2999}
    record = {"id": 1, "problem": "p", "strategy": "mcts", "seed": 0, "tree": tree, "usage": {}}
    assert tree_page(record).count("</details>") == 3000
    with pytest.raises(ValueError, match=r"problem 1.* holds no tree"):
        tree_page({**record, "tree": None})


@pytest.fixture
def results(make_engine, tmp_path):
    file = tmp_path / "results.jsonl"
    engine = make_engine()
    records = [{"id": f"q{i}", "problem": p, "answer": "3"} for i, p in enumerate(PROBLEMS[:3])]
    found = [r.record() for r in engine.stream(records, BestOfN(2, sampling=SHORT))]
    found.sort(key=lambda record: record["id"])
    file.write_text("".join(json.dumps(record) + "\n" for record in found))
    return file, found


def test_the_tree_command(run, results, tmp_path):  # noqa: F811
    file, _ = results
    for name in ("q1", "1"):
        page = tmp_path / f"{name}.html"
        status, out, _ = run("tree", file, "--problem", name, "--out", page)
        assert status == 0 and "3 branches" in out
        assert "Problem q1: best_of_n" in page.read_text()
    status, _, err = run("tree", file, "--problem", "q7")
    assert status == 1 and "no problem 'q7'; the file has 3 results" in err
    status, _, err = run("tree", file, "--problem", "0", "--strategy", "beam")
    assert status == 1 and "the file has best_of_n" in err
    status, _, err = run("tree", tmp_path / "none.jsonl", "--problem", "0")
    assert status == 1 and "no such file" in err


def test_metrics(run, results):  # noqa: F811
    file, found = results
    text = prometheus(found)
    pattern = r'^ttc_query_\w+\{strategy="best_of_n",seed="0",id="q\d"(,phase="\w+")?\} [\d.e+-]+$'
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert samples and all(re.match(pattern, line) for line in samples)
    assert (
        f'ttc_query_generated_tokens{{strategy="best_of_n",seed="0",id="q1"}} '
        f"{found[1]['usage']['generated']}" in text
    )
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families)) >= 10
    rows = list(csv.DictReader(comma_separated(found).splitlines()))
    assert [row["id"] for row in rows] == ["q0", "q1", "q2"]
    assert rows[2]["flops"] == str(found[2]["usage"]["flops"])
    assert float(rows[0]["seconds_total"]) > 0
    status, out, _ = run("metrics", file)
    assert status == 0 and out == text
    status, out, _ = run("metrics", file, "--format", "csv")
    assert status == 0 and out == comma_separated(found)
    assert "expected one of prometheus, csv" in run("metrics", file, "--format", "xml")[2]
