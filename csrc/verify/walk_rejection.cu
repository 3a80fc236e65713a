#include "verify/walk_launch.cuh"

namespace ttc {

template cudaError_t launch_walk<VerifyRule::kRejection>(const VerifyParams&, const int32_t*, cudaStream_t);
template cudaError_t launch_walk<VerifyRule::kBlock>(const VerifyParams&, const int32_t*, cudaStream_t);

}  // namespace ttc
