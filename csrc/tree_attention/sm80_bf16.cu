#include "tree_attention/sm80_instances.cuh"

namespace ttc {

Sm80Kernel sm80_kernel_bf16(int head_dim) { return sm80_kernel<__nv_bfloat16, false>(head_dim); }

}  // namespace ttc
