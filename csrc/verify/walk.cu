#include "verify/launch.h"
#include "verify/walk_launch.cuh"

namespace ttc {

extern template cudaError_t launch_walk<VerifyRule::kTargetOnly>(const VerifyParams&, const int32_t*, cudaStream_t);
extern template cudaError_t launch_walk<VerifyRule::kRejection>(const VerifyParams&, const int32_t*, cudaStream_t);
extern template cudaError_t launch_walk<VerifyRule::kBlock>(const VerifyParams&, const int32_t*, cudaStream_t);
extern template cudaError_t launch_walk<VerifyRule::kTraversal>(const VerifyParams&, const int32_t*, cudaStream_t);
extern template cudaError_t launch_walk<VerifyRule::kTypical>(const VerifyParams&, const int32_t*, cudaStream_t);

cudaError_t draw_nodes_cuda(const VerifyParams& params, int32_t* drawn, cudaStream_t stream);

cudaError_t verify_cuda(const VerifyParams& given, bool eager, int32_t* drawn, cudaStream_t stream) {
  VerifyParams p = given;
  if (p.num_requests == 0) return cudaSuccess;
  // These rules come to nearly all rows.
  eager |= p.rule == VerifyRule::kBlock || p.rule == VerifyRule::kTraversal || p.rule == VerifyRule::kTypical;
  if (!eager) drawn = nullptr;
  if (eager && p.filters.temperature != nullptr) {
    const cudaError_t status = row_descriptor_cuda({p.logits, p.filters, p.descriptors}, stream);
    if (status != cudaSuccess) return status;
    p.filters = {};
  }
  if (drawn != nullptr && p.rule == VerifyRule::kSampled) {
    const cudaError_t status = draw_nodes_cuda(p, drawn, stream);
    if (status != cudaSuccess) return status;
  }
  switch (p.rule) {
    case VerifyRule::kGreedy:
    case VerifyRule::kSampled:
      return launch_walk<VerifyRule::kSampled>(p, p.rule == VerifyRule::kGreedy ? nullptr : drawn, stream);
    case VerifyRule::kTargetOnly: return launch_walk<VerifyRule::kTargetOnly>(p, nullptr, stream);
    case VerifyRule::kRejection: return launch_walk<VerifyRule::kRejection>(p, nullptr, stream);
    case VerifyRule::kBlock: return launch_walk<VerifyRule::kBlock>(p, nullptr, stream);
    case VerifyRule::kTraversal: return launch_walk<VerifyRule::kTraversal>(p, nullptr, stream);
    case VerifyRule::kTypical: return launch_walk<VerifyRule::kTypical>(p, nullptr, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ttc
