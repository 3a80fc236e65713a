#include "verify/walk_launch.cuh"

namespace ttc {

template cudaError_t launch_walk<VerifyRule::kTraversal>(const VerifyParams&, const int32_t*, cudaStream_t);

}  // namespace ttc
