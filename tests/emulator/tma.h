// Tensor loads: what a CUtensorMap holds here, the checks the driver makes, and the box copy.
//
//   coordinates innermost first; element (i0, i1, ...) of the box goes to byte
//   offset = (... (i1 * box0) + i0) * element size, whose address bits are then swizzled
#pragma once

#include <array>
#include <cstdint>
#include <source_location>

#include "cuda.h"

namespace emu {

struct TensorMap {
  uint64_t mark;
  char* base;
  uint64_t sizes[5], strides[5];  // elements; bytes, strides[0] is the element's size
  uint32_t box[5];
  uint32_t rank, element_bytes, swizzle_bytes;
};

void tma_load(void* smem, const CUtensorMap* map, uint64_t* barrier, std::array<int, 5> coordinates, int rank,
              const std::source_location& site);

}  // namespace emu
