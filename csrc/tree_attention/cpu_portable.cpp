// Tree attention compiled for portable.
#include "tree_attention/cpu_isa.h"
#include "tree_attention/cpu_kernels.h"

namespace ttc {
CpuKernels kernels_portable(Dtype dtype) { return fp32_kernels<DotF32<Portable>>(dtype, "portable"); }
}  // namespace ttc
