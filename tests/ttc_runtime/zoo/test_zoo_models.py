"""The models that ship: format, shapes, sizes, and that they do what their card says."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from ttc_runtime.zoo import MODELS, arith, path, problems
from ttc_runtime.zoo.evaluate import auc
from ttc_runtime.zoo.sampling import complete, score_steps, split_steps

_POLICIES = MODELS[:3]


@pytest.fixture(scope="module")
def policies():
    return {
        name: AutoModelForCausalLM.from_pretrained(path(name), dtype=torch.float32).eval()
        for name in _POLICIES
    }


@pytest.fixture(scope="module")
def prm():
    model = AutoModelForTokenClassification.from_pretrained(path("arith-prm"), dtype=torch.float32)
    return model.eval()


def _test_problems(difficulty: str) -> list[dict]:
    rows = [json.loads(line) for line in problems("arith-test").read_text().splitlines()]
    return [row for row in rows if row["difficulty"] == difficulty]


@pytest.mark.parametrize("name", MODELS)
def test_shapes_suit_the_kernels(name):
    config = AutoConfig.from_pretrained(path(name))
    assert config.head_dim in (64, 96, 128, 256)
    assert config.hidden_size % 64 == 0
    assert config.intermediate_size % 64 == 0
    assert config.num_attention_heads % config.num_key_value_heads == 0


def test_sizes_step_up_as_the_card_says(policies):
    size = {name: model.num_parameters() for name, model in policies.items()}
    assert size["arith-draft"] < size["arith-small"] / 2
    assert size["arith-large"] > 14 * size["arith-small"]


def test_the_files_are_small_enough_to_ship():
    root = path("arith-small").parent
    assert sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) < 12e6


@pytest.mark.parametrize("name", MODELS)
def test_the_tokenizer_is_one_character_a_token(name):
    tokenizer = AutoTokenizer.from_pretrained(path(name))
    text = "417+5*3-8=\n417+5=422\n#422\n"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.chat_template is None
    config = AutoConfig.from_pretrained(path(name))
    assert tokenizer.eos_token_id == config.eos_token_id
    assert tokenizer.pad_token_id == config.pad_token_id
    assert len(tokenizer) == config.vocab_size
    assert tokenizer("x").input_ids == [tokenizer.unk_token_id]


def test_transformers_generates_a_solution_from_the_bare_problem(policies):
    tokenizer = AutoTokenizer.from_pretrained(path("arith-large"))
    problem = arith.Problem(417, (("+", 5), ("-", 8)))
    inputs = tokenizer(problem.text, return_tensors="pt")
    ids = policies["arith-large"].generate(**inputs, do_sample=False, max_new_tokens=64)
    assert ids[0, -1] == tokenizer.eos_token_id
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert text == problem.text + "".join(problem.steps)


def test_batched_completion_equals_one_prompt_at_a_time(policies):
    prompts = [row["problem"] for row in _test_problems("easy")[45:55]]
    model = policies["arith-small"]
    together = complete(model, prompts, greedy=True)
    assert together == [complete(model, [prompt], greedy=True)[0] for prompt in prompts]


@pytest.mark.parametrize(
    ("name", "difficulty", "least", "most"),
    [
        ("arith-small", "easy", 0.5, 1.0),
        ("arith-small", "medium", 0.2, 0.8),
        ("arith-large", "medium", 0.6, 1.0),
    ],
)
def test_greedy_accuracy_is_in_the_band_of_the_card(policies, name, difficulty, least, most):
    rows = _test_problems(difficulty)
    texts = complete(policies[name], [row["problem"] for row in rows], greedy=True)
    right = [arith.extract_answer(t) == row["answer"] for t, row in zip(texts, rows, strict=True)]
    assert least <= sum(right) / len(right) <= most


def test_the_prm_tells_right_steps_from_wrong_ones(policies, prm):
    rows = _test_problems("medium")[:40]
    generator = torch.Generator().manual_seed(0)
    texts = complete(
        policies["arith-small"],
        [row["problem"] for row in rows],
        greedy=False,
        generator=generator,
    )
    scores, right = [], []
    for row, text in zip(rows, texts, strict=True):
        if not text.endswith("\n"):
            continue
        steps, reference = split_steps(text), arith.parse(row["problem"]).steps
        (step_scores,) = score_steps(prm, row["problem"], [text])
        assert len(step_scores) == len(steps)
        # A line is scored by itself; a path is as good as its worst line.
        scores += itertools.accumulate(step_scores, min)
        right += [steps[: k + 1] == reference[: k + 1] for k in range(len(steps))]
    assert auc(scores, right) > 0.9


def test_a_score_depends_on_nothing_after_its_step(prm):
    problem = next(arith.generate("test", 4, seed=0))
    whole = "".join(problem.steps)
    (full,) = score_steps(prm, problem.text, [whole])
    for k, _ in itertools.islice(enumerate(problem.steps, 1), 4):
        (part,) = score_steps(prm, problem.text, ["".join(problem.steps[:k])])
        assert part == pytest.approx(full[:k], abs=1e-5)


def test_auc_counts_ties_as_half_and_needs_both_labels():
    assert auc([0.9, 0.2, 0.4], [True, False, True]) == 1.0
    assert auc([0.1, 0.2], [True, False]) == 0.0
    assert auc([0.5, 0.5], [True, False]) == 0.5
    assert math.isnan(auc([0.5], [True]))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"path: name must be one of .* got 'arith-huge'"):
        path("arith-huge")
