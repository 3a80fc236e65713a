// 16-bit numbers as floats, by a tag for their type.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace emu {

struct Bf16 {
  static float load(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

struct Fp16 {
  static float load(uint16_t bits) {
    _Float16 v;
    std::memcpy(&v, &bits, 2);
    return static_cast<float>(v);
  }
};

inline uint16_t low(uint32_t pair) { return static_cast<uint16_t>(pair); }
inline uint16_t high(uint32_t pair) { return static_cast<uint16_t>(pair >> 16); }

}  // namespace emu
