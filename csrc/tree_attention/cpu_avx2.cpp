// Tree attention compiled for avx2.
#include "tree_attention/cpu_kernels.h"
#if defined(__AVX2__)
#include "tree_attention/cpu_tile.h"

namespace ttc {

CpuKernels kernels_avx2(Dtype dtype) {
  using Dot = DotF32<Avx2>;
  switch (dtype) {
    case Dtype::kFloat32: return {"avx2", run_tile<Dot, float>, prefetch_tile<Dot, float>, merge_query<Dot, float>};
    case Dtype::kFloat16: return {"avx2", run_tile<Dot, Half>, prefetch_tile<Dot, Half>, merge_query<Dot, Half>};
    case Dtype::kBFloat16: return {"avx2", run_tile<Dot, BFloat>, prefetch_tile<Dot, BFloat>, merge_query<Dot, BFloat>};
  }
  return {};
}

}  // namespace ttc
#else
namespace ttc {
CpuKernels kernels_avx2(Dtype) { return {}; }
}  // namespace ttc
#endif
