"""Collective search: steps of several policies in one tree."""

from __future__ import annotations

import pytest
from scripted import PROMPT, check_tree, texts, walk
from ttc_runtime import Engine, Generate, Outcome
from ttc_runtime.strategies import MCTS, Collective, Greedy

MINE = {"": ["a\n"], "a\n": ["#1"], "b\n": ["#2"]}
THEIRS = {"": ["b\n"], "a\n": ["#3"], "b\n": ["#4"]}
SCORES = {"a": 0.3, "b": 0.6, "a\n#1": 0.2, "a\n#3": 0.1, "b\n#2": 0.4, "b\n#4": 0.9}


def test_children_come_from_all_policies_in_turn(scripted):
    """The first walk goes to b, which only the other policy proposes, and to its #4 (0.9)."""
    engine = scripted(MINE, SCORES, peers={"other": THEIRS})
    strategy = Collective(1, 2, exploration=0, parallel=1, select="naive")
    result = engine.solve(PROMPT, strategy)
    assert [child.text for child in result.tree.children] == ["a\n", "b\n"]
    assert texts(result) == ["b\n#2", "b\n#4"] and result.answer == "4"
    assert result.usage.recomputed == 0
    mine, theirs = engine.policy.lane.model, engine.policy.peers["other"].lane.model
    ledgers = result.tree.search.ledgers
    assert set(ledgers) == {"", "other"} and result.usage.run == sum(
        x.run for x in ledgers.values()
    )
    policy_flops = 2 * (
        ledgers[""].run * mine.num_weights + ledgers["other"].run * theirs.num_weights
    )
    assert result.usage.flops - result.usage.reward_flops == policy_flops
    check_tree(engine, result)


def test_below_the_threshold_nothing_is_explored(scripted):
    engine = scripted(MINE, SCORES, peers={"other": THEIRS})
    strategy = Collective(9, 2, exploration=0, parallel=1, threshold=0.5)
    result = engine.solve(PROMPT, strategy)
    assert [n.text for n in walk(result.tree) if n.end_reason == "pruned"] == ["a\n"]
    assert set(texts(result)) == {"b\n#2", "b\n#4"}
    check_tree(engine, result)


def test_a_policy_goes_on_where_another_stopped(scripted):
    """Steps in turn, each on what the other wrote; every token is run once by each."""
    mine = {"": ["a\n"], "a\nb\n": ["c\n"]}
    theirs = {"a\n": ["b\n"], "a\nb\nc\n": ["#5"], "": ["?"]}

    class InTurn(Greedy):
        def run(self, search):
            [branch] = search.root.fork(1)
            for name in ("", "other", "", "other"):
                yield Generate([branch], self.sampling, until_step=True, policy=name)
            return Outcome([branch])

    engine = scripted(mine, peers={"other": theirs})
    result = engine.solve(PROMPT, InTurn())
    assert texts(result) == ["a\nb\nc\n#5"] and result.usage.recomputed == 0
    tokens = 1 + len(result.branches[0].tokens)
    ledgers = result.tree.search.ledgers
    assert ledgers["other"].run == tokens - 1  # all but the end of text
    assert ledgers[""].run == tokens - 1 - len("\n#5")
    check_tree(engine, result)


def test_policies_must_be_there(scripted):
    alone = scripted(MINE, SCORES)
    with pytest.raises(ValueError, match=r"Collective: needs 2 to width = 4 policies .*has \[''\]"):
        alone.solve(PROMPT, Collective(4))
    engine = scripted(MINE, SCORES, peers={"other": THEIRS})
    with pytest.raises(ValueError, match="got \\['', 'third'\\]"):
        engine.solve(PROMPT, Collective(4, policies=("", "third")))
    assert engine.solve(PROMPT, MCTS(2, 1)).answer == "1"  # others do not use them

    class Lost(Greedy):
        def run(self, search):
            yield Generate(search.root.fork(1), self.sampling, policy="third")
            return Outcome()

    with pytest.raises(ValueError, match=r"policy must be one of \['', 'other'\], got 'third'"):
        engine.solve(PROMPT, Lost())


def test_another_tokenizer_is_refused(tiny_model, tmp_path):
    import json
    import shutil

    shutil.copytree(tiny_model("Llama"), tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"policies\['x'\] must have .* 2 are others in"):
        Engine.from_pretrained(
            tiny_model("Llama"), device="cpu", policies={"x": str(tmp_path / "other")}
        )
