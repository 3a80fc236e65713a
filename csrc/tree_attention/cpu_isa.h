// What a file compiled for one instruction set offers: all ways of computing a tile, for one dtype.
#pragma once

#include "tree_attention/cpu_few_rows.h"
#include "tree_attention/cpu_panels.h"

namespace ttc {

// Eight rows of sums need 32 registers.
template <class Dot>
constexpr int kMaxFewRows = Dot::Simd::kWidth == 16 ? kFewRows : kFewRows / 2;

template <class Dot, class Src>
int run_tile(const TileArgs& args) {
  const PlanHeader& h = *args.plan->header;
  const int rows = args.sibling_queries() * (h.num_q_heads / h.num_kv_heads);
  if (rows == 1) return FewRowsTile<Dot, Src, 1>(args).run();
  if (rows == 2) return FewRowsTile<Dot, Src, 2>(args).run();
  if (rows <= 4) return FewRowsTile<Dot, Src, 4>(args).run();
  if constexpr (kMaxFewRows<Dot> == kFewRows)
    if (rows <= kFewRows) return FewRowsTile<Dot, Src, kFewRows>(args).run();
  return PanelTile<Dot, Src>(args).run();
}

template <class Dot, class Src>
void merge_query(const TileArgs& args, int64_t index) {
  PanelTile<Dot, Src>(args).merge(index);
}

template <class Dot, class Src>
CpuKernels kernels_of(const char* isa) {
  return {isa, kMaxFewRows<Dot>, run_tile<Dot, Src>, merge_query<Dot, Src>};
}

template <class Dot>
CpuKernels fp32_kernels(Dtype dtype, const char* isa) {
  switch (dtype) {
    case Dtype::kFloat32: return kernels_of<Dot, float>(isa);
    case Dtype::kFloat16: return kernels_of<Dot, Half>(isa);
    case Dtype::kBFloat16: return kernels_of<Dot, BFloat>(isa);
  }
  return {};
}

}  // namespace ttc
