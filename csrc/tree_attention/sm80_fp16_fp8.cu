#include "tree_attention/sm80_instances.cuh"

namespace ttc {

Sm80Kernel sm80_kernel_fp16_fp8(int head_dim) { return sm80_kernel<__half, true>(head_dim); }

}  // namespace ttc
