// torch.ops.ttc_kernels.tree_attention on a GPU: check, fill the params, launch.
//
// The plan is in device memory and is not read here: what its header says was checked when Python planned.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "common/op_cuda.h"
#include "common/plan_layout.h"
#include "tree_attention/launch.h"

namespace ttc {
namespace {

constexpr const char* kOp = "tree_attention";
constexpr const char* kOtherwise = "backend=\"triton\" would do";

bool is_aligned(const Tensor& x) {
  const int64_t elements = 16 / int64_t(x.element_size());
  bool even = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) even &= x.size(i) <= 1 || x.stride(i) % elements == 0;
  return even;
}

// The same messages as for backend="triton" (ttc_kernels/_attention_input.py).
void check_tensors(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse) {
  const auto each = [&](const char* name, const Tensor& x, int64_t rank) {
    require(x.dim() == rank && x.size(rank - 1) == q.size(2) && x.stride(rank - 1) == 1, kOp, ": ", name,
            " must have ", rank, " dimensions, the last of size ", q.size(2), " and contiguous, got ", describe(x));
    require(is_aligned(x), kOp, ": ", name,
            " must begin at a multiple of 16 bytes and have strides that are multiples of 16 bytes, got ", describe(x));
    require(same_device(x, q), kOp, ": ", name, " must be on ", device_name(q), " like q, got ", device_name(x));
  };
  require(q.dim() == 3, kOp, ": q must be [T, Hq, D], got ", describe(q));
  each("q", q, 3);
  each("k_cache", k, 4);
  each("v_cache", v, 4);
  each("out", out, 3);
  const int64_t dim = q.size(2);
  require(dim == 64 || dim == 96 || dim == 128 || dim == 256, kOp, ": head_dim must be 64, 96, 128 or 256, got ", dim);
  require(q.scalar_type() == ScalarType::Half || q.scalar_type() == ScalarType::BFloat16, kOp,
          ": q must be float16 or bfloat16 for the CUDA kernels, got ", describe(q), "; ", kOtherwise);
  require(k.scalar_type() == v.scalar_type() &&
              (k.scalar_type() == q.scalar_type() || k.scalar_type() == ScalarType::Float8_e4m3fn),
          kOp, ": caches must be in the dtype of q or float8_e4m3fn, got ", describe(k), " and ", describe(v));
  bool same = true;
  for (int64_t i = 0; i < 4; ++i) same &= k.size(i) == v.size(i) && k.stride(i) == v.stride(i);
  require(same, kOp, ": k_cache and v_cache must have one shape and one set of strides, got ", describe(k), " and ",
          describe(v));
  require(k.size(1) > 0 && k.size(2) > 0 && q.size(1) % k.size(2) == 0, kOp, ": q must have a multiple of the ",
          k.size(2), " KV heads, got ", describe(q));
  require(out.size(0) == q.size(0) && out.size(1) == q.size(1) && out.scalar_type() == q.scalar_type(), kOp,
          ": out must be like q, got ", describe(out));
  require_tensor(kOp, "lse", lse, ScalarType::Float, {q.size(0), q.size(1)}, &q);
}

const float* scales(const char* name, const std::optional<Tensor>& x, const Tensor& k) {
  if (!x) return nullptr;
  require_tensor(kOp, name, *x, ScalarType::Float, {k.size(2)}, &k);
  return static_cast<const float*>(x->const_data_ptr());
}

void tree_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& plan,
                    const std::optional<Tensor>& workspace, const std::optional<Tensor>& counters, double sm_scale,
                    double logits_soft_cap, double v_scale, const std::optional<Tensor>& k_scales,
                    const std::optional<Tensor>& v_scales, const Tensor& out, const Tensor& lse) {
  check_tensors(q, k_cache, v_cache, out, lse);
  require_tensor(kOp, "plan", plan, ScalarType::Int, {kAnySize}, &q);
  require(plan.numel() >= kHeaderInts, kOp, ": plan must be the buffer of plan_tree_attention, got ", describe(plan));
  require(workspace && counters, kOp, ": workspace and counters must be those of the plan on a GPU, got none");
  require_tensor(kOp, "workspace", *workspace, ScalarType::Float, {kAnySize}, &q);
  require_tensor(kOp, "counters", *counters, ScalarType::Int, {kAnySize}, &q);
  const int64_t heads = q.size(1), kv_heads = k_cache.size(2), dim = q.size(2);
  require(counters->numel() >= kArrivals + q.size(0) * kv_heads, kOp, ": counters must have at least ",
          kArrivals + q.size(0) * kv_heads, " ints, got ", describe(*counters));
  if (q.size(0) == 0) return;

  TreeAttentionCudaParams params{};
  params.dtype = float_dtype(kOp, "q", q);
  params.fp8_cache = k_cache.scalar_type() == ScalarType::Float8_e4m3fn;
  params.head_dim = int32_t(dim);
  params.set_page_size(k_cache.size(1));
  params.num_kv_heads = int32_t(kv_heads);
  params.group = int32_t(heads / kv_heads);
  params.num_pages = k_cache.size(0);
  params.q = q.const_data_ptr();
  params.k_cache = k_cache.const_data_ptr();
  params.v_cache = v_cache.const_data_ptr();
  params.out = out.mutable_data_ptr();
  params.lse = static_cast<float*>(lse.mutable_data_ptr());
  params.q_token_stride = q.stride(0);
  params.q_head_stride = q.stride(1);
  params.out_token_stride = out.stride(0);
  params.out_head_stride = out.stride(1);
  params.page_stride = k_cache.stride(0);
  params.token_stride = k_cache.stride(1);
  params.head_stride = k_cache.stride(2);
  params.sm_scale = float(sm_scale);
  params.logits_soft_cap = float(logits_soft_cap);
  params.v_scale = float(v_scale);
  params.k_scales = scales("k_scales", k_scales, k_cache);
  params.v_scales = scales("v_scales", v_scales, k_cache);
  params.plan = static_cast<const int32_t*>(plan.const_data_ptr());
  params.partial_out = static_cast<float*>(workspace->mutable_data_ptr());
  params.partial_ml = params.partial_out + workspace->numel() / (heads * (dim + 2)) * heads * dim;
  params.counters = static_cast<int32_t*>(counters->mutable_data_ptr());

  const CudaLaunch launch(kOp, q, kOtherwise);
  // What wgmma and tensor loads became after Hopper is other instructions; Ampere's run on all GPUs.
  const auto run = launch.capability() == 90 ? tree_attention_sm90 : tree_attention_sm80;
  launch.check(run(params, launch.stream()));
}

}  // namespace
}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CUDA, m) { m.impl("tree_attention", TORCH_BOX(&ttc::tree_attention)); }
