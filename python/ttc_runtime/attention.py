"""Tree attention as a transformers attention implementation, registered under the name ``ttc``.

Every row of every branch runs in one flattened ``[1, T]`` batch. What the attention of a pass needs
beside q, k and v travels as the keyword argument ``tree`` through the model's layers. No mask
function is registered for ``ttc``: transformers then builds no mask at all, and none is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ttc_kernels import plan_tree_attention, tree_attention
from ttc_kernels.kv_cache import write_kv

NAME = "ttc"


@dataclass
class TreeForward:
    """The paged caches and the rows of one forward pass.

    k_caches, v_caches: per layer ``[num_pages, page_size, Hkv, D]``. slots: int32[T_padded], -1 for
    padding. num_tokens: T without padding. block_tables: int32[B, max_pages]. kv_lens, q_lens:
    int32[B], in tokens, a row's new tokens included. num_q_heads: query heads.
    """

    k_caches: list[Tensor]
    v_caches: list[Tensor]
    slots: Tensor
    num_tokens: int
    block_tables: np.ndarray
    kv_lens: np.ndarray
    q_lens: np.ndarray
    num_q_heads: int
    deterministic: bool
    layers_run: int = 0
    _plans: dict = field(default_factory=dict)

    def plan(self, window_left: int):
        """The plan for one window; layers of the same window share it."""
        if window_left not in self._plans:
            cache = self.k_caches[0]
            self._plans[window_left] = plan_tree_attention(
                self.block_tables,
                self.kv_lens,
                self.q_lens,
                page_size=cache.shape[1],
                num_q_heads=self.num_q_heads,
                num_kv_heads=cache.shape[2],
                head_dim=cache.shape[3],
                dtype=cache.dtype,
                device=cache.device,
                window_left=window_left,
                deterministic=self.deterministic,
            )
        return self._plans[window_left]


def _tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: TreeForward,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """q ``[1, Hq, T, D]``, k and v ``[1, Hkv, T, D]`` as transformers hands them over."""
    if s_aux is not None or not getattr(module, "is_causal", True):
        raise ValueError(
            f"tree attention: {type(module).__name__} uses attention sinks or is not "
            "causal, which these kernels do not compute"
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    k_cache, v_cache = tree.k_caches[layer], tree.v_caches[layer]
    write_kv(key[0].transpose(0, 1), value[0].transpose(0, 1), k_cache, v_cache, tree.slots)
    q = query[0].transpose(0, 1)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    out[tree.num_tokens :] = 0  # padding rows run on through the model: keep them finite
    tree_attention(
        q[: tree.num_tokens],
        k_cache,
        v_cache,
        tree.plan(-1 if sliding_window is None else sliding_window - 1),
        sm_scale=scaling,
        logits_soft_cap=softcap or 0.0,
        out=out[: tree.num_tokens],
    )
    tree.layers_run += 1
    return out[None], None


AttentionInterface.register(NAME, _tree_attention)
