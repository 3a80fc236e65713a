"""Tree attention as a transformers attention implementation, registered under the name ``ttc``.

Every row of every branch runs in one flattened ``[1, T]`` batch. What the attention of a pass needs
beside q, k and v travels as the keyword argument ``tree`` through the model's layers. No mask
function is registered for ``ttc``: transformers then builds no mask at all, and none is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import AttentionInterface

from ttc_kernels import tree_attention
from ttc_kernels.kv_cache import write_kv
from ttc_runtime.batch import Batch

NAME = "ttc"


@dataclass
class TreeForward:
    """What the attention layers of one forward pass share.

    k_caches, v_caches: per layer ``[num_pages, page_size, Hkv, D]``. batch: the rows and plans.
    backend: of `tree_attention`. layers_run: counts the layers that came here.
    """

    k_caches: list[Tensor]
    v_caches: list[Tensor]
    batch: Batch
    backend: str
    layers_run: int = 0


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
    write_kv(key[0].transpose(0, 1), value[0].transpose(0, 1), k_cache, v_cache, tree.batch.slots)
    out, _ = tree_attention(
        query[0].transpose(0, 1),
        k_cache,
        v_cache,
        tree.batch.plan(-1 if sliding_window is None else sliding_window - 1),
        sm_scale=scaling,
        logits_soft_cap=softcap or 0.0,
        backend=tree.backend,
    )
    tree.layers_run += 1
    return out[None], None


AttentionInterface.register(NAME, _tree_attention)
