// torch.ops.ttc_kernels.tree_attention on the CPU: check, fill the params, run.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "common/op_check.h"
#include "common/plan_layout.h"
#include "tree_attention/params.h"

namespace {

using ttc::require;
using ttc::ScalarType;
using ttc::Tensor;

// The friendly messages are Python's; these guard memory against direct callers of the op.
void check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& plan, const Tensor& out,
           const Tensor& lse) {
  require(plan.scalar_type() == ScalarType::Int && plan.dim() == 1 && plan.is_contiguous() &&
                      plan.numel() >= ttc::kHeaderInts,
                  "tree_attention: plan must be the int32 buffer of plan_tree_attention");
  const auto& h = *static_cast<const ttc::PlanHeader*>(plan.const_data_ptr());
  require(h.magic == ttc::kPlanMagic && h.total_ints <= plan.numel(),
                  "tree_attention: plan must be the whole buffer of plan_tree_attention, got ", plan.numel(),
                  " ints that begin with ", h.magic);
  require(q.dim() == 3 && q.size(0) == h.num_queries && q.size(1) == h.num_q_heads && q.size(2) == h.head_dim &&
                      q.stride(2) == 1,
                  "tree_attention: q must be [", h.num_queries, ", ", h.num_q_heads, ", ", h.head_dim, "]");
  for (const Tensor* cache : {&k, &v})
    require(cache->dim() == 4 && cache->size(0) > h.max_page && cache->size(1) == h.page_size &&
                        cache->size(2) == h.num_kv_heads && cache->size(3) == h.head_dim && cache->stride(3) == 1 &&
                        cache->scalar_type() == q.scalar_type(),
                    "tree_attention: caches must be [> ", h.max_page, ", ", h.page_size, ", ", h.num_kv_heads, ", ",
                    h.head_dim, "] in the dtype of q");
  require(out.dim() == 3 && out.size(0) == q.size(0) && out.size(1) == q.size(1) && out.size(2) == q.size(2) &&
                      out.stride(2) == 1 && out.scalar_type() == q.scalar_type(),
                  "tree_attention: out must be like q");
  require(lse.dim() == 2 && lse.size(0) == q.size(0) && lse.size(1) == q.size(1) && lse.is_contiguous() &&
                      lse.scalar_type() == ScalarType::Float,
                  "tree_attention: lse must be float32 [", h.num_queries, ", ", h.num_q_heads, "], contiguous");
}

// workspace and counters are for the kernels of GPUs; here partials stand in memory of the threads.
void tree_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& plan,
                    const std::optional<Tensor>& workspace, const std::optional<Tensor>& counters, double sm_scale,
                    double logits_soft_cap, double v_scale, const std::optional<Tensor>& k_scales,
                    const std::optional<Tensor>& v_scales, const Tensor& out, const Tensor& lse) {
  static_cast<void>(workspace);
  static_cast<void>(counters);
  require(v_scale == 1 && !k_scales && !v_scales,
          "tree_attention: scales of the caches are for float8_e4m3fn, which the cpu does not read");
  check(q, k_cache, v_cache, plan, out, lse);
  ttc::TreeAttentionParams params{
      .dtype = ttc::float_dtype("tree_attention", "q", q),
      .q = q.const_data_ptr(),
      .k_cache = k_cache.const_data_ptr(),
      .v_cache = v_cache.const_data_ptr(),
      .out = out.mutable_data_ptr(),
      .lse = static_cast<float*>(lse.mutable_data_ptr()),
      .q_token_stride = q.stride(0),
      .q_head_stride = q.stride(1),
      .out_token_stride = out.stride(0),
      .out_head_stride = out.stride(1),
      .k_page_stride = k_cache.stride(0),
      .k_token_stride = k_cache.stride(1),
      .k_head_stride = k_cache.stride(2),
      .v_page_stride = v_cache.stride(0),
      .v_token_stride = v_cache.stride(1),
      .v_head_stride = v_cache.stride(2),
      .sm_scale = float(sm_scale),
      .logits_soft_cap = float(logits_soft_cap),
      .plan = static_cast<const int32_t*>(plan.const_data_ptr()),
  };
  ttc::tree_attention_cpu(params, torch::stable::get_num_threads(), ttc::torch_parallel_for);
}

// For reports: which instruction set the CPU kernel would use.
std::string tree_attention_cpu_isa(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return ttc::tree_attention_cpu_isa(ttc::Dtype::kFloat32);
    case ScalarType::Half: return ttc::tree_attention_cpu_isa(ttc::Dtype::kFloat16);
    case ScalarType::BFloat16: return ttc::tree_attention_cpu_isa(ttc::Dtype::kBFloat16);
    default: return "none";
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CPU, m) { m.impl("tree_attention", TORCH_BOX(&tree_attention)); }

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CompositeExplicitAutograd, m) {
  m.impl("tree_attention_cpu_isa", TORCH_BOX(&tree_attention_cpu_isa));
}
