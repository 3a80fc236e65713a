// The 64-bit word that tells wgmma where a shared operand lies; the same on both sides.
//
//   63..62  swizzle   51..49  base offset (0: patterns start at multiples of their 256, 512 or 1024 bytes)
//   45..32  stride byte offset / 16    29..16  leading byte offset / 16    13..0  address / 16
//
// An operand is a grid of core matrices of 8 rows of 16 bytes. With a swizzle of S bytes, atoms of 8
// rows of S bytes repeat, and bits 4..6 of each address are XORed with bits 7..9 (S = 128; 4..5 with
// 7..8 for 64; 4 with 7 for 32):
//
//   K-major (rows run along k)       stride: from 8 rows to the next 8; leading: unused with a
//                                    swizzle, else from 16 bytes of k to the next 16
//   MN-major (rows run along m or n) leading: from S bytes of m/n to the next S; stride: from 8 k to
//                                    the next 8 (without a swizzle the two change places)
#pragma once

#include <cstdint>

namespace ttc::ptx {

enum class Swizzle : uint32_t { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

__device__ __forceinline__ uint64_t wgmma_descriptor(const void* smem, int leading_bytes, int stride_bytes,
                                                     Swizzle swizzle) {
  return (static_cast<uint64_t>(smem_u32(smem)) & 0x3ffff) >> 4 |
         static_cast<uint64_t>((leading_bytes & 0x3ffff) >> 4) << 16 |
         static_cast<uint64_t>((stride_bytes & 0x3ffff) >> 4) << 32 | static_cast<uint64_t>(swizzle) << 62;
}

}  // namespace ttc::ptx
