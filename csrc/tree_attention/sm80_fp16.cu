#include "tree_attention/sm80_instances.cuh"

namespace ttc {

Sm80Kernel sm80_kernel_fp16(int head_dim) { return sm80_kernel<__half, false>(head_dim); }

}  // namespace ttc
