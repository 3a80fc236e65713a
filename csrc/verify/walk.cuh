// verify on a GPU: a block walks a request's tree, with the code that walks it on a CPU (walk.h). All of
// its threads take the same way and come together where a row is read.
#pragma once

#include "verify/cuda_rows.cuh"

namespace ttc {

constexpr int kWalkThreads = 384;

// Block, traversal and typical acceptance come to nearly all rows.
template <VerifyRule kRule>
using WhenDescribed = std::conditional_t<
    kRule == VerifyRule::kSampled || kRule == VerifyRule::kTargetOnly || kRule == VerifyRule::kRejection, Lazy, Eager>;

template <VerifyRule kRule>
__global__ void __launch_bounds__(kWalkThreads, 1)
    verify_kernel(const __grid_constant__ VerifyParams p, const int32_t* drawn) {
  using When = WhenDescribed<kRule>;
  auto& s = *reinterpret_cast<WalkBlock<When>*>(dynamic_smem());
  const int64_t request = blockIdx.x;
  CudaRows<When> rows(p, p.cu_nodes[request], drawn, s.rows);
  Walk<CudaRows<When>, kRule>(p, request, rows, s.walk).run();
}

}  // namespace ttc
