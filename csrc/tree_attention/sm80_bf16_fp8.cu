#include "tree_attention/sm80_instances.cuh"

namespace ttc {

Sm80Kernel sm80_kernel_bf16_fp8(int head_dim) { return sm80_kernel<__nv_bfloat16, true>(head_dim); }

}  // namespace ttc
