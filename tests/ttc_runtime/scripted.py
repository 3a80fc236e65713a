"""An engine whose models follow a script, so that a search's tree can be written down by hand.

Pages, scheduler, sampling limits, scoring: all of the engine is real but for three things. The
models look up what they say in a table, from the text they find *in the pages of the branch*; a
token is drawn by rank, not at random; and a branch's seed is its child number, so that where the
script offers several texts, child 0 takes the first, child 1 the second, and so on, round again.
At temperature 0 every branch takes the first.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from ttc_runtime.engine import Engine
from ttc_runtime.generation import Policy
from ttc_runtime.rewards import RewardModel, RewardSpec

from ttc_kernels import PagePool
from ttc_kernels.verify import DESCRIPTOR_COLUMNS

CHARACTERS = ["<eos>", "<unk>", *map(chr, range(10, 11)), *map(chr, range(32, 127))]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {c: i for i, c in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(CHARACTERS[:2])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


class ScriptedModel:
    """Stands for a `PagedModel`: its cache holds token ids, its output is `answer(text)`.

    answer: function of the text up to a token, that token included, giving the output row. width:
    numbers in a row.
    """

    page_bytes, num_weights, row_block = 1, 1000, 1

    def __init__(
        self, tokenizer, answer, width, num_pages=4000, page_size=4, max_positions=4000
    ) -> None:
        self.tokenizer, self.answer, self.width = tokenizer, answer, width
        self.page_size = page_size
        self.max_positions, self.vocab_size = max_positions, len(tokenizer)
        self.pool = PagePool(num_pages, page_size=page_size)
        self.cache = np.full(num_pages * page_size, -1, np.int64)
        self.config = SimpleNamespace(eos_token_id=tokenizer.eos_token_id, num_labels=2)
        self.model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
        self.runner = SimpleNamespace(report=lambda: {"all": "eager: scripted"})
        self.has_pages = True

    @contextmanager
    def threads(self):
        yield

    def run_copies(self) -> None:
        for source, target, count in self.pool.take_copies():
            at, to = source * self.page_size, target * self.page_size
            self.cache[to : to + count] = self.cache[at : at + count]

    def forward(self, token_ids, positions, slots, branches, kv_lens, q_lens, keep):
        self.run_copies()
        self.cache[slots] = token_ids
        tables, ends = self.pool.block_tables(branches), np.cumsum(q_lens)
        rows = []
        for index in keep:
            row = int(np.searchsorted(ends, index, side="right"))
            length = kv_lens[row] - (ends[row] - 1 - index)
            places = np.arange(length)
            slot = tables[row, places // self.page_size] * self.page_size
            tokens = self.cache[slot + places % self.page_size]
            assert (tokens >= 0).all(), "a token was read that nobody wrote"
            rows.append(self.answer(self.tokenizer.decode(tokens)))
        return torch.tensor(np.array(rows, np.float32)).reshape(len(rows), self.width)


class ScriptedReward(RewardModel):
    """Stands for a `RewardModel`: the output row of its model is the score."""

    def __init__(self, tokenizer, score, prompt, **sizes) -> None:
        spec = RewardSpec.load("token_classification")
        self.spec = RewardSpec(**{**vars(spec), "prompt": "{problem}", "aggregation": "last"})

        def answer(text):
            return [score(text.removeprefix(prompt))]

        super().__init__(ScriptedModel(tokenizer, answer, 1, **sizes), tokenizer, self.spec)

    def probabilities(self, logits):
        return [round(float(x), 6) for x in logits.flatten()]


def follow(steps: dict[str, list[str]], text: str) -> list[str]:
    """What may come next: characters in the order of the options they begin, none at the end."""
    known = max((key for key in steps if text.startswith(key)), key=len)
    while True:
        rest = text[len(known) :]
        options = [o for o in steps[known] if o.startswith(rest) and o != rest]
        if options:
            return list(dict.fromkeys(o[len(rest)] for o in options))
        if rest in steps[known] or not rest:
            return []
        raise AssertionError(f"the script has nothing for {text!r}")


PROMPT = "?"


@pytest.fixture
def scripted(monkeypatch):
    """Factory of engines: ``scripted(steps, scores)``.

    steps: for each text so far, the texts that may follow; nothing for a text ends it. With several
    `prompts`, such a dict for each; or a function of the whole text that returns the
    characters that may come next. scores: of the text up to a step's end; a number for all, a dict,
    a function, or None for no reward model. peers: steps of more policies, by name.
    """
    from ttc_runtime import branch, generation

    def child_number(seed, problem, path):
        return int(str(path[-1]).rpartition(":")[2]) if path else 0

    monkeypatch.setattr(branch, "branch_seed", child_number)

    def draw(logits, desc, seeds, positions):
        tokens = []
        for row, seed, settings in zip(logits, seeds, desc, strict=True):
            ranked = torch.argsort(row, descending=True, stable=True)
            options = int((row > -50).sum())
            greedy = float(settings[DESCRIPTOR_COLUMNS.index("temperature")]) == 0
            tokens.append(int(ranked[0 if greedy else int(seed) % options]))
        return torch.tensor(tokens, dtype=torch.int32)

    monkeypatch.setattr(generation, "sample_tokens", draw)

    def make(
        steps, scores=None, *, prompts=(PROMPT,), extract=None, max_batch=256, peers=None, **sizes
    ):
        tokenizer = make_tokenizer()

        def options(steps, text):
            if callable(steps):
                return steps(text)
            prompt = next(p for p in sorted(prompts, key=len, reverse=True) if text.startswith(p))
            script = steps.get(prompt, steps) if isinstance(steps.get(prompt), dict) else steps
            return follow(script, text[len(prompt) :])

        def policy(steps, name=""):
            def answer(text):
                row = np.full(len(tokenizer), -100.0)
                for rank, character in enumerate(options(steps, text) or ["<eos>"]):
                    row[tokenizer.convert_tokens_to_ids(character)] = -rank
                return row

            model = ScriptedModel(tokenizer, answer, len(tokenizer), **sizes)
            return Policy(model, tokenizer, "\n", name)

        table = {k.strip(): v for k, v in scores.items()} if isinstance(scores, dict) else {}

        def score(text):
            return (
                table[text.strip()]
                if isinstance(scores, dict)
                else (scores(text) if callable(scores) else scores)
            )

        reward = None
        if scores is not None:
            reward = ScriptedReward(tokenizer, score, PROMPT, **sizes)
        first = policy(steps)
        first.peers = {name: policy(script, name) for name, script in (peers or {}).items()}
        return Engine(first, reward, extract or (lambda text: last_number(text)), max_batch)

    return make


def last_number(text: str) -> str | None:
    """The answer of a scripted solution: what follows the last ``#``."""
    return text.rpartition("#")[2].strip() or None if "#" in text else None


def texts(result) -> list[str]:
    return [branch.text for branch in result.branches]


def walk(branch):
    """A branch and all below it, parents first."""
    yield branch
    for child in branch.children:
        yield from walk(child)


def check_tree(engine, result) -> None:
    """What must hold after every search: all ends have reasons, sums add up, no page is lost."""
    nodes = list(walk(result.tree))
    for node in nodes[1:]:
        if not node.children:
            reason = node.end_reason or node.stop_reason
            assert reason not in (None, "step", "pause"), f"{node} has no end"
    asked = sum(n.prompt_tokens for n in nodes if n.sequence.parent is None)
    inserted = result.usage.prompt - asked
    inherited = sum(max(0, n.sequence.fork_len - n.prompt_tokens) for n in nodes)
    assert result.usage.generated + inserted == sum(len(n.tokens) for n in nodes) - inherited
    engine.clear_cache()
    users = [engine.policy, *engine.policy.peers.values(), engine.scorer]
    for lane in [user.lane for user in users if user is not None]:
        lane.model.run_copies()
        lane.model.pool.check_integrity()
        assert lane.model.pool.num_free == lane.model.pool.num_pages
