// Tree attention compiled for portable.
#include "tree_attention/cpu_kernels.h"
#include "tree_attention/cpu_tile.h"

namespace ttc {

CpuKernels kernels_portable(Dtype dtype) {
  using Dot = DotF32<Portable>;
  switch (dtype) {
    case Dtype::kFloat32: return {"portable", run_tile<Dot, float>, prefetch_tile<Dot, float>, merge_query<Dot, float>};
    case Dtype::kFloat16: return {"portable", run_tile<Dot, Half>, prefetch_tile<Dot, Half>, merge_query<Dot, Half>};
    case Dtype::kBFloat16: return {"portable", run_tile<Dot, BFloat>, prefetch_tile<Dot, BFloat>, merge_query<Dot, BFloat>};
  }
  return {};
}

}  // namespace ttc
