// Runs CUDA kernels as host code. A kernel's .cuh, included after this header by a small adapter, is
// ordinary C++:
//
//   kernel.cuh ── #include "common/ptx.cuh" ── ptx_host.h ─┐
//      │                                                   ├── emulator core (grid, warp, mma, ...)
//   adapter.cpp ── emu::launch(grid, block, smem, kernel, args...) ─┘
//      │
//   test_*.py ── build.py compiles the adapter (plain, sanitize, race), ctypes calls it
//
//   extern "C" const char* scale(float* x, int n) {       // null, or what went wrong
//     return emu::guarded([&] { emu::launch(n / 128, 128, 0, scale_kernel, x, n); });
//   }
//
// docs/emulator.md says what is emulated how.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstring>
#include <string>
#include <type_traits>

#include "atomics.h"
#include "barrier.h"
#include "block.h"
#include "cuda_words.h"
#include "lanes.h"
#include "mma.h"
#include "tma.h"

#define threadIdx (emu::current->index)
#define blockIdx (emu::current->block->index)
#define blockDim (emu::block_dim)
#define gridDim (emu::grid_dim)
constexpr int warpSize = 32;

inline void __syncthreads(const emu::Site& site = emu::Site::current()) {
  emu::barrier_sync(0, emu::kWholeBlock, "__syncthreads", site);
}
inline void __syncwarp(uint32_t mask = ~0u, const emu::Site& site = emu::Site::current()) { emu::syncwarp(mask, site); }
inline void __threadfence() { emu::race::threadfence(*emu::current); }
inline void __threadfence_block() { emu::race::threadfence(*emu::current); }
inline void __nanosleep(unsigned) { emu::yield_current(); }
[[noreturn]] inline void __trap() { emu::fail("__trap"); }

namespace emu {

std::string function_name(const void* address);

// Runs kernel for every thread of the grid. Throws Error at the first fault.
template <class... Parameters, class... Arguments>
void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...), const Arguments&... arguments) {
  const std::string name = function_name(reinterpret_cast<const void*>(kernel));
  run_grid(name.c_str(), grid, block, shared_bytes, [&] { kernel(arguments...); });
}

// What f threw, as text that lives until the next call, or null.
template <class F>
const char* guarded(F f) {
  static std::string text;
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    text = error.what();
    return text.c_str();
  }
}

}  // namespace emu
