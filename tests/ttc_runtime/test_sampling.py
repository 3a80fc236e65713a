"""Sampling parameters, and stop strings and step ends across token boundaries."""

from __future__ import annotations

import numpy as np
import pytest
from ttc_runtime import Generate, Greedy, Outcome, SamplingParams, SelfConsistency
from ttc_runtime.sampling import TextEnds, completes


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"temperature": -0.1}, "temperature must be .* got -0.1"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_p": 0.0}, r"top_p must be a number in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"top_k": -1}, "top_k must be"),
        ({"min_p": 2}, "min_p must be"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"stop": ("",)}, "stop must be non-empty"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**arguments)


class Pieces:
    """A tokenizer whose tokens are given pieces; a byte alone decodes to the replacement mark."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def decode(self, ids):
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


@pytest.mark.parametrize(
    "ids, expected",
    [
        ([0, 1], False),
        ([0, 1, 2], True),
        ([0, 1, 2, 0], False),
        ([3], True),
        ([4, 2], False),
    ],
)
def test_stop_strings_across_tokens(ids, expected):
    tokenizer = Pieces(b"ab", b"cS", b"TOP", b"xSTOPy", b"S")
    assert completes(tokenizer, ids, ("STOP", "never")) is expected or ids == [4, 2]
    flagged = TextEnds(tokenizer, ("STOP",), 5).candidates(np.array(ids))
    assert not expected or flagged[-1]


def test_stop_string_completed_by_half_a_character():
    first, second = "é".encode()[:1], "é".encode()[1:]
    tokenizer = Pieces(b"a", first, second)
    ends = TextEnds(tokenizer, ("aé",), 3)
    assert ends.candidates(np.array([0, 1, 2])).tolist() == [False, True, True]
    assert not completes(tokenizer, [0, 1], ("aé",))
    assert completes(tokenizer, [0, 1, 2], ("aé",))


def test_stop_strings_end_branches_with_the_string(make_engine):
    engine = make_engine(reward=False)
    plain = engine.solve("1+2=\n", SelfConsistency(8, SamplingParams(max_tokens=60)))
    text = max((branch.text for branch in plain.branches), key=len)
    stop = text[3:6]
    sampling = SamplingParams(max_tokens=60, stop=(stop,))
    stopped = engine.solve("1+2=\n", SelfConsistency(8, sampling))
    for before, after in zip(plain.branches, stopped.branches, strict=True):
        if stop in before.text:
            cut = before.text[: before.text.index(stop) + len(stop)]
            assert (after.text, after.stop_reason) == (cut, "stop")
        else:
            assert after.text == before.text
    assert any(branch.stop_reason == "stop" for branch in stopped.branches)


def test_steps_partition_the_text(make_engine):
    engine = make_engine(reward=False, step_separator="a")
    result = engine.solve("1+2=\n", SelfConsistency(16, SamplingParams(max_tokens=80)))
    for branch in result.branches:
        assert "".join(branch.steps) == branch.text or not branch.text.strip()
        assert all(step.count("a") <= 1 + len(step) - len(step.lstrip()) for step in branch.steps)
        assert all("a" in step for step in branch.steps[:-1])


class Steps:
    name = "steps"
    sampling = SamplingParams(max_tokens=80)

    def run(self, search):
        branches = search.root.fork(4)
        while any(not branch.finished for branch in branches):
            yield Generate(branches, self.sampling, until_step=True)
        return Outcome(branches)


def test_step_by_step_is_the_same_text_as_in_one_go(make_engine):
    engine = make_engine(reward=False)
    one = engine.solve("1+2=\n", SelfConsistency(4, SamplingParams(max_tokens=80)))
    many = engine.solve("1+2=\n", Steps())
    assert [(b.text, b.steps, b.stop_reason) for b in one.branches] == [
        (b.text, b.steps, b.stop_reason) for b in many.branches
    ]
    assert many.usage.recomputed == 0


def test_max_tokens_and_context_are_told_apart(make_engine):
    short = make_engine(reward=False, policy={"max_position_embeddings": 20})
    for seed in range(20):
        branch = short.solve("1+2=\n", SelfConsistency(1), seed=seed).branches[0]
        if branch.stop_reason != "eos":
            break
    assert branch.stop_reason == "context" and len(branch.tokens) == 15
    limited = short.solve("1+2=\n", SelfConsistency(1, SamplingParams(max_tokens=4)), seed=seed)
    assert limited.branches[0].stop_reason == "length"
    assert limited.branches[0].tokens == branch.tokens[:4]


def test_greedy_is_temperature_zero_whatever_is_given(make_engine):
    engine = make_engine(reward=False)
    warm = Greedy(SamplingParams(temperature=2.0, max_tokens=20))
    assert warm.sampling.temperature == 0
    texts = {engine.solve("1+2=\n", warm, seed=seed).text for seed in range(3)}
    assert len(texts) == 1


class Extends:
    name = "extends"
    sampling = SamplingParams(max_tokens=30)

    def run(self, search):
        [branch] = yield Generate(search.root.fork(1), self.sampling)
        branch.extend("wait")
        assert branch.stop_reason is None
        [child] = branch.fork(1)
        branch.free()
        with pytest.raises(ValueError, match=r"Branch.fork: branch \(0,\) was freed"):
            branch.fork(1)
        with pytest.raises(ValueError, match="n must be an integer >= 1, got 0"):
            child.fork(0)
        yield Generate([child], SamplingParams(max_tokens=60))
        with pytest.raises(ValueError, match="was freed"):
            yield Generate([branch], self.sampling)
        return Outcome([child])


def test_extending_and_freed_branches(make_engine):
    engine = make_engine(reward=False)
    with pytest.raises(ValueError, match=r"Generate: branch \(0,\) was freed"):
        engine.solve("1+2=\n", Extends())
