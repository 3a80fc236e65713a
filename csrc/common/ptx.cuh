// The instructions of the CUDA kernels that C++ has no words for, one name each, with two
// implementations: inline PTX under nvcc (the headers in ptx/), and host versions with the same
// semantics under g++ (tests/emulator, whose include folder must be on the include path). Kernels
// include this header and nothing else of either.
//
//   ptx/memory.cuh      shared addresses, 16-byte loads and stores, acquire and release
//   ptx/convert.cuh     packing, fp8 to 16 bits, 2^x and tanh
//   ptx/barrier.cuh     named barriers, register budgets of warp groups
//   ptx/mma.cuh         ldmatrix, stmatrix, mma.sync m16n8k16                       sm_80 (stmatrix: 90)
//   ptx/cp_async.cuh    cp.async                                                    sm_80
//   ptx/mbarrier.cuh    mbarrier, fences between generic and async proxy            sm_90
//   ptx/tma.cuh         tensor loads                                                sm_90
//   ptx/wgmma.cuh       warp group matrix multiply, its operand descriptors         sm_90a
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#if defined(__CUDACC__)
#include "ptx/barrier.cuh"
#include "ptx/convert.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#else
#include <ptx_host.h>
#endif
