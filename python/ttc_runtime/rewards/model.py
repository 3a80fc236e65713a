"""A process reward model from a local directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ttc_runtime.loading import load_tokenizer, model_directory
from ttc_runtime.models import PagedModel
from ttc_runtime.rewards.spec import RewardSpec


class RewardModel:
    """Scores the steps of a solution. Made by `from_pretrained`.

    model: paged model. tokenizer: its own. spec: its format.
    """

    def __init__(self, model: PagedModel, tokenizer, spec: RewardSpec) -> None:
        self.model, self.tokenizer, self.spec = model, tokenizer, spec
        labels = model.config.num_labels
        if not 0 <= spec.good_label < labels:
            raise ValueError(
                f"reward spec {spec.name}: good_label must be a label of the model, "
                f"0 to {labels - 1}, got {spec.good_label}"
            )

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
        path of a JSON file; by default ``token_classification``, which TRL's PRMTrainer writes. The
        rest as for `Engine.from_pretrained`. Raises ValueError for what cannot be loaded.
        """
        path = model_directory(directory)
        loaded = RewardSpec.load(spec or "token_classification")
        model = PagedModel(
            path,
            loaded.auto_class,
            device=device,
            backend=backend,
            dtype=dtype,
            page_size=page_size,
            deterministic=deterministic,
            row_block=row_block,
        )
        return cls(model, load_tokenizer(path), loaded)

    def score(self, problem: str, steps: list[str]) -> list[float]:
        """One score in [0, 1] for each step, run over the whole text in one pass.

        problem: its text. steps: texts, without or with their closing separator. Raises ValueError
        for no steps or a text longer than the model's context.

        >>> reward = RewardModel.from_pretrained("zoo:arith-prm")      # doctest: +SKIP
        >>> len(reward.score("1+2=\\n", ["1+2=3", "#3"]))              # doctest: +SKIP
        2
        """
        if not steps or not all(isinstance(step, str) and step.strip() for step in steps):
            raise ValueError(f"RewardModel.score: steps must be non-empty texts, got {steps!r}")
        ids = self.spec.prompt_tokens(self.tokenizer, problem)
        ends = []
        for step in steps:
            ids += self.spec.step_tokens(self.tokenizer, step)
            ends.append(len(ids) - 1)
        if len(ids) > self.model.max_positions:
            raise ValueError(
                f"RewardModel.score: the text has {len(ids)} tokens, the model's "
                f"context {self.model.max_positions}"
            )
        if not self.model.has_pages:
            self.model.allocate(-(-self.model.max_positions // self.model.page_size))
        branch = self.model.pool.new_branch()
        try:
            slots = branch.append(len(ids))
            length = np.array([len(ids)], np.int32)
            logits = self.model.forward(
                np.array(ids, np.int64),
                np.arange(len(ids)),
                slots,
                [branch],
                length,
                length,
                np.array(ends),
            )
        finally:
            branch.free()
        return self.probabilities(logits)

    def probabilities(self, logits: Tensor) -> list[float]:
        """Scores from the model's outputs at step ends, ``[S, labels]``."""
        return torch.softmax(logits.float(), dim=-1)[:, self.spec.good_label].tolist()
