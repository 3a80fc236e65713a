// Tree attention compiled for avx512.
#include "tree_attention/cpu_kernels.h"
#if defined(__AVX512F__)
#include "tree_attention/cpu_isa.h"

namespace ttc {
CpuKernels kernels_avx512(Dtype dtype) { return fp32_kernels<DotF32<Avx512>>(dtype, "avx512"); }
}  // namespace ttc
#else
namespace ttc {
CpuKernels kernels_avx512(Dtype) { return {}; }
}  // namespace ttc
#endif
