"""A reward model from a local directory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from torch import Tensor

from ttc_kernels import Branch as PoolBranch
from ttc_runtime.loading import BACKBONE, CAUSAL_LM, load_tokenizer, model_directory
from ttc_runtime.models import PagedModel
from ttc_runtime.rewards.format import Format, Written
from ttc_runtime.rewards.head import load_head
from ttc_runtime.rewards.spec import RewardSpec
from ttc_runtime.rewards.verdict import Verdict


class RewardModel:
    """Scores the steps of a solution. Made by `from_pretrained`.

    model: paged model; its outputs are scores, or logits for a judge. tokenizer: its own. spec:
    its format; format: the two together. verdict: reads what a judge writes, None for others.
    """

    def __init__(self, model: PagedModel, tokenizer, spec: RewardSpec) -> None:
        self.model, self.tokenizer, self.spec = model, tokenizer, spec
        self.format = Format(spec, tokenizer)
        self.verdict = None if spec.verdict is None else Verdict(self.format)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        spec: str | Path | None = None,
        *,
        device="auto",
        backend="auto",
        dtype="auto",
        page_size: int = 16,
        deterministic: bool = True,
        row_block: int = 64,
    ) -> RewardModel:
        """Load a reward model.

        directory: a local Hugging Face directory or ``zoo:NAME``. spec: name of a shipped format or
        path of a JSON file; by default the one the model's config and directory name show. The rest
        as for `Engine.from_pretrained`. Raises ValueError for what cannot be loaded, or recognised:
        the message lists the formats known and what was found.

        >>> RewardModel.from_pretrained("zoo:arith-prm").spec.name     # doctest: +SKIP
        'token_classification'
        """
        path = model_directory(directory)
        loaded = RewardSpec.load(spec) if spec is not None else _recognise(path)
        tokenizer = load_tokenizer(path)
        written = Format(loaded, tokenizer)
        model = PagedModel(
            path,
            BACKBONE if loaded.verdict is None else CAUSAL_LM,
            device=device,
            backend=backend,
            dtype=dtype,
            page_size=page_size,
            deterministic=deterministic,
            row_block=row_block,
        )
        if loaded.verdict is None:
            model.attach_head(load_head(path, written, model.model))
        return cls(model, tokenizer, loaded)

    def score(self, problem: str, steps: list[str]) -> list[float]:
        """One score for each step, the whole text run in one pass.

        problem: its text. steps: texts, without or with their closing separator. Raises ValueError
        for no steps, a text longer than the model's context, or one the format refuses; it names
        the step.

        >>> reward = RewardModel.from_pretrained("zoo:arith-prm")      # doctest: +SKIP
        >>> len(reward.score("1+2=\\n", ["1+2=3", "#3"]))              # doctest: +SKIP
        2
        """
        if not steps or not all(isinstance(step, str) and step.strip() for step in steps):
            raise ValueError(f"RewardModel.score: steps must be non-empty texts, got {steps!r}")
        texts = [self.format.prompt(problem)]
        for step in steps:
            texts.append(self.format.extend(texts[-1], step))
        for number, text in enumerate(texts):
            self.check_length(text, number)
        if not self.model.has_pages:
            self.model.allocate(-(-self.model.max_positions // self.model.page_size) * 2)
        branch = self.model.pool.new_branch()
        try:
            ends = np.array([len(text.tokens) - 1 for text in texts[1:]])
            if self.spec.probe is None:
                return self.probabilities(self._run([branch], [texts[-1].tokens], ends))
            return [self._probe(branch, text) for text in texts[1:]]
        finally:
            branch.free()

    def check_length(self, text: Written, number: int) -> None:
        """Raises ValueError if step `number`, with what is read behind it, ends out of context."""
        needed = len(text.tokens)
        if number:
            keep, probe = self.format.probe(text)
            needed = keep + len(probe) + (self.verdict.longest if self.verdict else 0)
        if needed > self.model.max_positions:
            raise ValueError(
                f"reward model: up to step {number} the text has {needed} tokens, the model's "
                f"context {self.model.max_positions}"
            )

    def probabilities(self, outputs: Tensor) -> list[float]:
        """Scores from the model's outputs at step ends, ``[S]``."""
        scores = outputs.tolist()
        bad = [k for k, score in enumerate(scores) if score != score]
        if bad:
            raise ValueError("reward model: a score is not a number; its weights may be broken")
        return scores

    def _probe(self, branch: PoolBranch, text: Written) -> float:
        """The score of one step, on a fork that is dropped again."""
        common = min(branch.length, len(text.tokens) - 1)
        branch.truncate(common)  # the tokens behind it may have changed
        self._run([branch], [text.tokens[common:]], np.zeros(0, np.int64))
        scratch, critique = branch.fork(1)[0], list[int]()
        try:
            keep, new = self.format.probe(text)
            scratch.truncate(keep)
            while True:
                output = self._run([scratch], [new], np.array([len(new) - 1]))
                if self.verdict is None:
                    return self.probabilities(output)[0]
                found = self.verdict.advance(critique, output[0])
                if isinstance(found, float):
                    return found
                new, critique = found, critique + found
        finally:
            scratch.free()

    def _run(self, branches: list[PoolBranch], tokens: list[list[int]], keep: np.ndarray) -> Tensor:
        starts = [branch.length for branch in branches]
        slots = [b.append(len(new)) for b, new in zip(branches, tokens, strict=True)]
        counts = np.array([len(new) for new in tokens], np.int32)
        spans = zip(starts, counts, strict=True)
        return self.model.forward(
            np.concatenate([np.array(new, np.int64) for new in tokens]),
            np.concatenate([np.arange(start, start + count) for start, count in spans]),
            np.concatenate(slots),
            branches,
            (np.array(starts, np.int32) + counts).astype(np.int32),
            counts,
            keep,
        )


def _recognise(path: Path) -> RewardSpec:
    config = json.loads((path / "config.json").read_text())
    # A path in the hub's cache has the model's name further up.
    name = next((p for p in path.parts if p.startswith("models--")), path.name)
    try:
        return RewardSpec.recognise(name, config.get("architectures") or [])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
