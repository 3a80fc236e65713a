"""Reward specs and models."""

from __future__ import annotations

import json

import pytest
import torch
from ttc_runtime import BestOfN, RewardModel, RewardSpec, SamplingParams


@pytest.fixture
def reward(tiny_model):
    return RewardModel.from_pretrained(tiny_model("Llama", "ForTokenClassification"))


def test_scores_are_read_at_step_ends(reward):
    from transformers import AutoModelForTokenClassification

    steps = ["1+2=3\n", "3+4=7", "#7\n"]
    text = "1+2+4=\n" + "1+2=3\n3+4=7\n#7\n"
    ids = reward.tokenizer(text, return_tensors="pt")["input_ids"]
    plain = AutoModelForTokenClassification.from_pretrained(reward.model.config.name_or_path)
    with torch.no_grad():
        probabilities = plain(ids).logits[0].softmax(-1)[:, 1]
    ends = (ids[0] == 3).nonzero()[:, 0][1:]
    assert len(ends) == 3
    scores = reward.score("1+2+4=\n", steps)
    assert scores == pytest.approx(probabilities[ends].tolist(), abs=1e-5)
    assert reward.score("1+2+4=\n", steps[:2]) == pytest.approx(scores[:2], abs=1e-6)


def test_bad_steps(reward):
    for steps in ([], ["a", ""], ["a", 3]):
        with pytest.raises(ValueError, match="steps must be non-empty texts"):
            reward.score("1", steps)
    with pytest.raises(ValueError, match=r"the text has \d+ tokens, the model's context 512"):
        reward.score("1", ["2" * 600])


def test_specs_are_data(tmp_path):
    shipped = RewardSpec.load("token_classification")
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**shipped.__dict__, "name": "mine", "aggregation": "min"}))
    assert RewardSpec.load(file).aggregation == "min"
    for content, message in (
        ("{", "mine.json: "),
        ('{"step": "x"}', "missing"),
        ('{"name": "x"}', "head kind must be one of"),
        (json.dumps({**shipped.__dict__, "aggregation": "best"}), "best"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            RewardSpec.load(file)
    with pytest.raises(ValueError, match="expected a JSON file or one of"):
        RewardSpec.load("unknown")


def test_a_label_the_model_lacks(tmp_path, tiny_model):
    spec = tmp_path / "spec.json"
    shipped = RewardSpec.load("token_classification").__dict__
    spec.write_text(json.dumps({**shipped, "head": {**shipped["head"], "good": [2]}}))
    with pytest.raises(ValueError, match=r"good must name outputs in \[0, 2\), got \(2,\)"):
        RewardModel.from_pretrained(tiny_model("Llama", "ForTokenClassification"), spec)


def test_a_policy_is_no_reward_model(tiny_model):
    directory = tiny_model("Llama")
    with pytest.raises(ValueError, match=r"found architectures \['LlamaForCausalLM'\] in") as error:
        RewardModel.from_pretrained(directory)
    for known in ("qwen2.5-math-prm", "skywork-o1-open-prm", "openrlhf: only by name"):
        assert known in str(error.value)


def test_solutions_longer_than_the_reward_models_context(make_engine, tiny_model):
    from ttc_runtime import Engine

    short = tiny_model("Llama", "ForTokenClassification", max_position_embeddings=24)
    engine = Engine.from_pretrained(
        tiny_model("Llama"), reward=short, kv_memory="32MiB", step_separator="a"
    )
    strategy = BestOfN(16, sampling=SamplingParams(max_tokens=40))
    result = engine.solve("1+2=\n", strategy)
    lengths = [sum(len(s.strip()) + 1 for s in b.steps) + 5 for b in result.branches]
    assert max(lengths) > 24
    for branch, length, score in zip(result.branches, lengths, result.scores, strict=True):
        assert len(branch.step_scores) == len(branch.steps)
        assert (score == score) == (length - 5 > 0 and length <= 24)
