// The head dimensions of one pair of types, for the files sm80_*.cu.
#pragma once

#include "tree_attention/launch.h"
#include "tree_attention/sm80.cuh"

namespace ttc {

template <class T, bool kFp8, int kHeadDim>
Sm80Kernel sm80_kernel() {
  return {reinterpret_cast<const void*>(tree_attention_sm80_kernel<T, kFp8, kHeadDim>), kSm80Threads,
          Sm80Layout<T, kFp8, kHeadDim>::kSharedBytes};
}

template <class T, bool kFp8>
Sm80Kernel sm80_kernel(int head_dim) {
  switch (head_dim) {
    case 64: return sm80_kernel<T, kFp8, 64>();
    case 96: return sm80_kernel<T, kFp8, 96>();
    case 128: return sm80_kernel<T, kFp8, 128>();
    case 256: return sm80_kernel<T, kFp8, 256>();
    default: return {};
  }
}

}  // namespace ttc
