#include "verify/walk_launch.cuh"

namespace ttc {

template cudaError_t launch_walk<VerifyRule::kTargetOnly>(const VerifyParams&, const int32_t*, cudaStream_t);
template cudaError_t launch_walk<VerifyRule::kTypical>(const VerifyParams&, const int32_t*, cudaStream_t);

}  // namespace ttc
