// ldmatrix, stmatrix and mma.sync m16n8k16; layouts in csrc/common/ptx/mma.cuh.
#pragma once

#include <cstdint>
#include <source_location>

namespace emu {

// r: matrices registers of the lane; row: the address this lane gives (used of the first 8 * matrices lanes).
void ldmatrix(uint32_t* r, int matrices, bool transposed, const void* row, const std::source_location& site);
void stmatrix(void* row, const uint32_t* r, int matrices, bool transposed, const std::source_location& site);

// d[4] += a[4] * b[2], products and sums in fp32, k ascending.
void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, bool bf16, const std::source_location& site);

}  // namespace emu
