"""The Triton kernels of tree attention: the rectangles of a plan, then the merge of their partials.

Both read everything about the plan on the device (csrc/common/plan_layout.h), so that one captured
graph serves every plan that is copied into the same buffer.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Positions in PlanHeader, in ints.
NUM_ITEMS = tl.constexpr(4)
NUM_MERGES = tl.constexpr(7)
NUM_Q_HEADS = tl.constexpr(10)
NUM_KV_HEADS = tl.constexpr(11)
WINDOW_LEFT = tl.constexpr(13)
ITEMS = tl.constexpr(16)
PAGES = tl.constexpr(17)
Q_TOKEN = tl.constexpr(18)
Q_ROW = tl.constexpr(19)
Q_BACK = tl.constexpr(20)
DRAFT = tl.constexpr(21)
MERGE_QUERY = tl.constexpr(22)
MERGE_PTR = tl.constexpr(23)
MERGE_SLOT = tl.constexpr(24)
KV_LENS = tl.constexpr(32)  # where the lengths themselves begin

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MAX_INT = tl.constexpr(2**31 - 1)
FP32_CHUNK = tl.constexpr(32)  # head dimensions multiplied at a time without tensor cores
STRIDE_UNIT = tl.constexpr(16)  # strides arrive in units of this many elements


@triton.jit
def _from_e4m3(bits):
    """fp16 of float8_e4m3fn bits, for GPUs without the instruction: rebias the exponent by 8."""
    wide = bits.to(tl.uint16)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    value = half.to(tl.float16, bitcast=True) * 256.0
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), value).to(tl.float16)


@triton.jit
def _operand(x, dtype: tl.constexpr, FP8_BITS: tl.constexpr):
    """Cache elements as an operand of tl.dot."""
    if FP8_BITS:
        return _from_e4m3(x).to(dtype)
    else:
        return x.to(dtype)


@triton.jit
def _soft_cap(s, scale, cap):
    """cap * tanh(s * scale / cap) in units of log2: a polynomial where 1 - tanh would cancel."""
    y = s * (scale / cap)
    y2 = y * y
    far = 1.0 - 2.0 / (1.0 + tl.exp2(y * (2 * LOG2E)))
    near = tl.fma(y2, 62.0 / 2835, -17.0 / 315)
    near = tl.fma(near, y2, 2.0 / 15)
    near = tl.fma(near, y2, -1.0 / 3)
    near = tl.fma(near, y2, 1.0)
    return tl.where(tl.abs(y) < 0.25, near * y, far) * (cap * LOG2E)


@triton.jit
def _finish(out, lse, offset, lse_offset, store, row, acc, m, norm):
    """out = acc / norm and lse = ln(sum of exponentials); the empty state is (0, -inf)."""
    total = tl.where(norm == 0, 1.0, norm)
    inverse = 1.0 / total
    tl.store(out + offset, (acc * inverse[:, None]).to(out.dtype.element_ty), mask=store)
    log = (m.to(tl.float64) + tl.log2(total).to(tl.float64)) * LN2
    tl.store(lse + lse_offset, tl.where(norm == 0, float("-inf"), log).to(tl.float32), mask=row)


@triton.jit
def _row_index(plan, q_count, r):
    """Of tile rows r: is it one, its query token, its head in the GQA group, the group."""
    group = tl.load(plan + NUM_Q_HEADS, volatile=True) // tl.load(plan + NUM_KV_HEADS)
    # r // group without a division for every row; exact below 512 rows and heads.
    index = r * (((1 << 22) + group - 1) // group) >> 22
    return r < q_count * group, index, r - index * group, group


@triton.jit
def _visible(plan, planned, valid):
    """Keys [lo, hi) of each query, before draft trees; the first key that a draft tree may hide."""
    back = tl.load(plan + tl.load(plan + Q_BACK) + planned, mask=valid, other=0)
    row = tl.load(plan + tl.load(plan + Q_ROW) + planned, mask=valid, other=0)
    hi = tl.load(plan + KV_LENS + row, mask=valid, other=0) - back
    logical = hi - 1
    first_draft = tl.full(planned.shape, MAX_INT, tl.int32)
    if tl.load(plan + DRAFT + 1) > tl.load(plan + DRAFT):
        node = plan + tl.load(plan + DRAFT) + planned * 4
        begin = tl.load(node, mask=valid, other=-1)
        depth = tl.load(node + 3, mask=valid, other=0)
        prefix = hi - 1 - (planned - begin)
        first_draft = tl.where(begin >= 0, prefix, MAX_INT)
        logical = tl.where(begin >= 0, prefix + depth, logical)
    window = tl.load(plan + WINDOW_LEFT)
    lo = tl.where((window >= 0) & (logical > window), logical - window, 0)
    return tl.where(valid, lo, MAX_INT), tl.where(valid, hi, 0), tl.min(first_draft)


@triton.jit
def _must_part(plan, item, q_begin, q_end):
    """Does the item reach into drafts of several rows? Draft masks are made for a row at a time.

    Rows that share an item seldom share it that far: only copies of one row do.
    """
    parts = False
    if tl.load(item + 7) != 0:
        rows = plan + tl.load(plan + Q_ROW)
        if tl.load(rows + q_begin) != tl.load(rows + q_end - 1):
            planned = q_begin + tl.arange(0, 128)
            _, hi, first_draft = _visible(plan, planned, planned < q_end)
            parts = first_draft < tl.minimum(tl.load(item + 3), tl.max(hi))
    return parts


@triton.jit
def _part(plan, q_begin, q_end, part, parts):
    """First query and number of queries of a part of an item: all of it, or one row's queries."""
    first = q_begin + part
    stop = q_end
    if parts:
        rows = plan + tl.load(plan + Q_ROW)
        backs = plan + tl.load(plan + Q_BACK)
        stop = tl.minimum(q_end, first + tl.load(backs + first) + 1)
        if tl.load(rows + first - 1, mask=first > q_begin, other=-1) == tl.load(rows + first):
            stop = first  # not the row's first query: done already
    return first, stop - first


@triton.jit
def _related(plan, key, end, q_begin, planned, valid):
    """In its draft block a query sees its ancestors and itself, and the window counts depths."""
    draft = plan + tl.load(plan + DRAFT)
    begin = tl.load(draft + q_begin * 4)
    row = tl.load(plan + tl.load(plan + Q_ROW) + begin)
    back = tl.load(plan + tl.load(plan + Q_BACK) + begin)
    prefix = tl.load(plan + KV_LENS + row) - 1 - back
    drafted = (key >= prefix) & (key < end)
    other = draft + (begin + key - prefix) * 4
    other_in = tl.load(other + 1, mask=drafted, other=0)
    other_out = tl.load(other + 2, mask=drafted, other=MAX_INT)
    other_depth = tl.load(other + 3, mask=drafted, other=MAX_INT)
    entry = tl.load(draft + planned * 4 + 1, mask=valid, other=0)
    depth = tl.load(draft + planned * 4 + 3, mask=valid, other=0)
    window = tl.load(plan + WINDOW_LEFT)
    nearest = tl.where(window < 0, -MAX_INT, depth - window)
    return (
        (other_in[None, :] <= entry[:, None])
        & (other_out[None, :] > entry[:, None])
        & (other_depth[None, :] >= nearest[:, None])
    )


@triton.jit
def _step(
    k, m, norm, acc, q_tile, q_row, q, k_head, v_head, pages, lo, hi, end, paging, scale, soft_cap,
    plan, q_begin, q_count, r, HEAD_DIM: tl.constexpr, N: tl.constexpr, SOFT_CAP: tl.constexpr,
    FP8_BITS: tl.constexpr, IS_DRAFT: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: keys k .. k + N against the tile's rows."""
    M: tl.constexpr = acc.shape[0]
    dtype: tl.constexpr = q.dtype.element_ty
    page_size, page_magic, page_shift, page_stride, token_stride = paging
    d = tl.arange(0, acc.shape[1])
    key = k + tl.arange(0, N)
    live = key < end
    page_index = ((key.to(tl.int64) * page_magic) >> page_shift).to(tl.int32)
    page = tl.load(pages + page_index, mask=live, other=0).to(tl.int64)
    cache_row = page * page_stride + (key - page_index * page_size).to(tl.int64) * token_stride
    here = cache_row[:, None] + d[None, :]
    mask = live[:, None] & (d < HEAD_DIM)[None, :]
    if dtype == tl.float32:
        s = tl.zeros([M, N], tl.float32)
        for c in tl.static_range(HEAD_DIM // FP32_CHUNK):
            part = c * FP32_CHUNK + tl.arange(0, FP32_CHUNK)
            q_part = tl.load(q + q_row[:, None] + part[None, :], mask=(hi > 0)[:, None], other=0.0)
            k_part = tl.load(
                k_head + cache_row[:, None] + part[None, :], mask=live[:, None], other=0.0
            )
            s = tl.dot(q_part, k_part.T, s, input_precision="ieee")
    else:
        s = tl.dot(
            q_tile, _operand(tl.load(k_head + here, mask=mask, other=0.0), dtype, FP8_BITS).T
        )
    to_log2 = scale * LOG2E
    if SOFT_CAP:
        s = _soft_cap(s, scale, soft_cap)
        to_log2 = 1.0
    sees = (key[None, :] >= lo[:, None]) & (key[None, :] < hi[:, None])
    if IS_DRAFT:
        valid, index, _, _ = _row_index(plan, q_count, r)
        sees = sees & _related(plan, key, end, q_begin, q_begin + index, valid)
    s = tl.where(sees, s, float("-inf"))

    top = tl.maximum(m, tl.max(s, 1) * to_log2)
    # Nothing visible so far: any finite shift gives zeros, and lets a NaN through.
    shift = tl.where(top == float("-inf"), 0.0, top)
    p = tl.exp2(tl.fma(s, tl.zeros_like(s) + to_log2, tl.zeros_like(s) - shift[:, None]))
    alpha = tl.exp2(m - shift)
    norm = tl.fma(norm, alpha, tl.sum(p, 1))
    acc = acc * alpha[:, None]
    v_tile = tl.load(v_head + here, mask=mask, other=0.0)
    if dtype == tl.float32:
        acc = tl.dot(p, v_tile, acc, input_precision="ieee")
    else:
        acc = tl.dot(p.to(dtype), _operand(v_tile, dtype, FP8_BITS), acc)
    return top, norm, acc


@triton.jit
def _rows(
    tensors, strides, paging, scales, item, q_begin, q_count, kv_head, r0,
    HEAD_DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STAGES: tl.constexpr,
    SOFT_CAP: tl.constexpr, FP8_BITS: tl.constexpr,
):  # fmt: skip
    """Rows [r0, r0 + M) of one item and KV head: query tokens x heads of a GQA group."""
    q, k_cache, v_cache, out, lse, plan, partials, k_scales, v_scales = tensors
    q_token_stride, q_head_stride, out_token_stride, out_head_stride, head_stride = strides
    sm_scale, soft_cap, v_scale, per_head, num_slots = scales
    _, page_magic, page_shift, _, _ = paging
    BLOCK_D: tl.constexpr = triton.next_power_of_2(HEAD_DIM)
    d = tl.arange(0, BLOCK_D)
    r = r0 + tl.arange(0, M)

    k_begin = tl.load(item + 2)
    first_page = ((k_begin.to(tl.int64) * page_magic) >> page_shift).to(tl.int32)
    pages = plan + tl.load(plan + PAGES) + tl.load(item + 4) - first_page
    valid, index, in_group, group = _row_index(plan, q_count, r)
    lo, hi, first_draft = _visible(plan, q_begin + index, valid)
    hi = tl.minimum(hi, tl.load(item + 3))
    end = tl.max(hi)
    start = k_begin + tl.maximum(tl.min(lo) - k_begin, 0) // N * N

    planned = q_begin + index
    token = tl.load(plan + tl.load(plan + Q_TOKEN) + planned, mask=valid, other=0).to(tl.int64)
    head = kv_head * group + in_group
    q_row = token * q_token_stride + head * q_head_stride
    q_tile = tl.load(
        q + q_row[:, None] + d[None, :], mask=valid[:, None] & (d < HEAD_DIM)[None, :], other=0.0
    )
    scale = sm_scale * tl.load(k_scales + kv_head, mask=(per_head & 1) != 0, other=1.0)
    k_head = k_cache + kv_head * head_stride
    v_head = v_cache + kv_head * head_stride

    m = tl.full([M], float("-inf"), tl.float32)
    norm = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BLOCK_D], tl.float32)
    first_draft = k_begin + tl.maximum(first_draft - k_begin, 0) // N * N
    drafts_from = tl.minimum(tl.maximum(first_draft, start), tl.maximum(end, start))
    for k in tl.range(start, drafts_from, N, num_stages=STAGES):
        m, norm, acc = _step(
            k, m, norm, acc, q_tile, q_row, q, k_head, v_head, pages, lo, hi, end, paging, scale,
            soft_cap, plan, q_begin, q_count, r, HEAD_DIM, N, SOFT_CAP, FP8_BITS, False,
        )  # fmt: skip
    for k in tl.range(drafts_from, end, N, num_stages=1, disable_licm=True):
        m, norm, acc = _step(
            k, m, norm, acc, q_tile, q_row, q, k_head, v_head, pages, lo, hi, end, paging, scale,
            soft_cap, plan, q_begin, q_count, r, HEAD_DIM, N, SOFT_CAP, FP8_BITS, True,
        )  # fmt: skip

    # Looked up anew: kept in registers through the loop, these would spill.
    valid, index, in_group, group = _row_index(plan, q_count, r)
    planned = q_begin + index
    head = (kv_head * group + in_group).to(tl.int64)
    num_q_heads = tl.load(plan + NUM_Q_HEADS)
    acc = acc * (v_scale * tl.load(v_scales + kv_head, mask=(per_head & 2) != 0, other=1.0))
    store = valid[:, None] & (d < HEAD_DIM)[None, :]
    partial_base = tl.load(item + 5)
    if partial_base >= 0:
        state = (partial_base + planned - tl.load(item)).to(tl.int64) * num_q_heads + head
        tl.store(partials + state[:, None] * HEAD_DIM + d[None, :], acc, mask=store)
        sums = partials + num_slots * num_q_heads * HEAD_DIM + state * 2
        tl.store(sums, m, mask=valid)
        tl.store(sums + 1, norm, mask=valid)
    else:
        token = tl.load(plan + tl.load(plan + Q_TOKEN) + planned, mask=valid, other=0).to(tl.int64)
        offset = token * out_token_stride + head * out_head_stride
        _finish(
            out, lse, offset[:, None] + d[None, :], token * num_q_heads + head,
            store, valid, acc, m, norm,
        )  # fmt: skip


_SCALARS = [
    "page_size", "page_magic", "page_shift", "num_slots",
    "sm_scale", "soft_cap", "v_scale", "per_head",
    "q_token_stride", "q_head_stride", "out_token_stride", "out_head_stride",
    "page_stride", "token_stride", "head_stride",
]  # fmt: skip


@triton.jit(
    do_not_specialize=_SCALARS,
    do_not_specialize_on_alignment=["lse", "plan", "partials", "k_scales", "v_scales"],
)
def tree_attention_kernel(
    q, k_cache, v_cache, out, lse, plan, partials, k_scales, v_scales,
    page_size: tl.int32, page_magic: tl.int64, page_shift: tl.int32, num_slots: tl.int64,
    sm_scale: tl.float32, soft_cap: tl.float32, v_scale: tl.float32, per_head: tl.int32,
    q_token_stride: tl.int64, q_head_stride: tl.int64,
    out_token_stride: tl.int64, out_head_stride: tl.int64,
    page_stride: tl.int64, token_stride: tl.int64, head_stride: tl.int64,
    HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, KEYS_SMALL: tl.constexpr, KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    SOFT_CAP: tl.constexpr, FP8_BITS: tl.constexpr,
):  # fmt: skip
    """A persistent grid over the plan's items, most expensive first, times the KV heads.

    Items of up to 16 rows are one small tile; all others are walked in tiles of ROWS rows.
    """
    tensors = (q, k_cache, v_cache, out, lse, plan, partials, k_scales, v_scales)
    strides = (
        q_token_stride * STRIDE_UNIT, q_head_stride * STRIDE_UNIT,
        out_token_stride * STRIDE_UNIT, out_head_stride * STRIDE_UNIT, head_stride * STRIDE_UNIT,
    )  # fmt: skip
    paging = (
        page_size, page_magic, page_shift, page_stride * STRIDE_UNIT, token_stride * STRIDE_UNIT
    )  # fmt: skip
    scales = (sm_scale, soft_cap, v_scale, per_head, num_slots)

    # With many items a unit is several KV heads, whose look-ups and pages are in the cache.
    num_items = tl.load(plan + NUM_ITEMS)
    num_kv_heads = tl.load(plan + NUM_KV_HEADS)
    programs = tl.num_programs(0)
    per_unit = num_items * num_kv_heads // (4 * programs)
    per_unit = tl.minimum(tl.maximum(per_unit, 1), num_kv_heads)
    units_per_item = (num_kv_heads + per_unit - 1) // per_unit
    items = plan + tl.load(plan + ITEMS)
    for u in tl.range(
        tl.program_id(0), num_items * units_per_item, programs, num_stages=1, disable_licm=True
    ):
        item = items + u // units_per_item * 8
        first = u % units_per_item * per_unit
        last = tl.minimum(first + per_unit, num_kv_heads)
        small = tl.load(item + 6) <= 16
        q_end = tl.load(item) + tl.load(item + 1)
        for kv_head in tl.range(first, last, num_stages=1, disable_licm=True):
            q_begin = tl.load(item)
            parts = _must_part(plan, item, q_begin, q_end)
            for part in tl.range(
                0, tl.where(parts, q_end - q_begin, 1), num_stages=1, disable_licm=True
            ):
                q_first, q_count = _part(plan, q_begin, q_end, part, parts)
                if small:
                    _rows(
                        tensors, strides, paging, scales, item, q_first, q_count, kv_head, 0,
                        HEAD_DIM, 16, KEYS_SMALL, STAGES, SOFT_CAP, FP8_BITS,
                    )  # fmt: skip
                else:
                    rows = q_count * (tl.load(plan + NUM_Q_HEADS) // num_kv_heads)
                    for r0 in tl.range(0, rows, ROWS, num_stages=1, disable_licm=True):
                        _rows(
                            tensors, strides, paging, scales, item, q_first, q_count, kv_head, r0,
                            HEAD_DIM, ROWS, KEYS, STAGES, SOFT_CAP, FP8_BITS,
                        )  # fmt: skip


@triton.jit(
    do_not_specialize=["num_q_heads", "num_slots", "out_token_stride", "out_head_stride"],
    do_not_specialize_on_alignment=["lse", "plan", "partials"],
)
def merge_kernel(
    out, lse, plan, partials,
    num_q_heads: tl.int32, num_slots: tl.int64,
    out_token_stride: tl.int64, out_head_stride: tl.int64,
    HEAD_DIM: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Adds up the partials of a query in path order; a query without any gets the empty state."""
    BLOCK_D: tl.constexpr = triton.next_power_of_2(HEAD_DIM)
    queries = plan + tl.load(plan + MERGE_QUERY)
    ptr = plan + tl.load(plan + MERGE_PTR)
    slots = plan + tl.load(plan + MERGE_SLOT)
    tokens = plan + tl.load(plan + Q_TOKEN)
    sums = partials + num_slots * num_q_heads * HEAD_DIM
    blocks = (num_q_heads + HEADS - 1) // HEADS
    d = tl.arange(0, BLOCK_D)
    units = tl.load(plan + NUM_MERGES) * blocks
    for u in tl.range(tl.program_id(0), units, tl.num_programs(0), num_stages=1):
        index = u // blocks
        head = u % blocks * HEADS + tl.arange(0, HEADS)
        valid = head < num_q_heads
        store = valid[:, None] & (d < HEAD_DIM)[None, :]
        begin = tl.load(ptr + index)
        end = tl.load(ptr + index + 1)
        m = tl.full([HEADS], float("-inf"), tl.float32)
        for i in tl.range(begin, end, num_stages=1):
            state = tl.load(slots + i).to(tl.int64) * num_q_heads + head
            mi = tl.load(sums + state * 2, mask=valid, other=float("-inf"))
            m = tl.where((mi > m) | (mi != mi), mi, m)
        norm = tl.zeros([HEADS], tl.float32)
        acc = tl.zeros([HEADS, BLOCK_D], tl.float32)
        for i in tl.range(begin, end, num_stages=1):
            state = tl.load(slots + i).to(tl.int64) * num_q_heads + head
            mi = tl.load(sums + state * 2, mask=valid, other=float("-inf"))
            li = tl.load(sums + state * 2 + 1, mask=valid, other=0.0)
            part = tl.load(
                partials + state[:, None] * HEAD_DIM + d[None, :],
                mask=store & (li != 0)[:, None], other=0.0,
            )  # fmt: skip
            weight = tl.where(li == 0, 0.0, tl.exp2(mi - m))
            acc = tl.fma(part, weight[:, None] + tl.zeros_like(part), acc)
            norm = tl.fma(li, weight, norm)
        token = tl.load(tokens + tl.load(queries + index)).to(tl.int64)
        offset = token * out_token_stride * STRIDE_UNIT + head * out_head_stride * STRIDE_UNIT
        _finish(
            out, lse, offset[:, None] + d[None, :], token * num_q_heads + head,
            store, valid, acc, m, norm,
        )  # fmt: skip
