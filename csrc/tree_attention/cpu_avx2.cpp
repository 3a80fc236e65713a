// Tree attention compiled for avx2.
#include "tree_attention/cpu_kernels.h"
#if defined(__AVX2__)
#include "tree_attention/cpu_isa.h"

namespace ttc {
CpuKernels kernels_avx2(Dtype dtype) { return fp32_kernels<DotF32<Avx2>>(dtype, "avx2"); }
}  // namespace ttc
#else
namespace ttc {
CpuKernels kernels_avx2(Dtype) { return {}; }
}  // namespace ttc
#endif
