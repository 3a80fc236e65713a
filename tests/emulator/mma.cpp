#include "mma.h"

#include <cstring>

#include "block.h"
#include "number.h"

namespace emu {

namespace {

struct MatrixArguments {
  uint32_t* registers;
  const uint32_t* stored;
  char* row;
  int matrices;
  bool transposed;
  const Site* site;
};

template <bool Store>
void move_matrices(Warp& warp, uint32_t, void* const* arguments) {
  const auto lane = [&](int i) -> const MatrixArguments& { return *static_cast<const MatrixArguments*>(arguments[i]); };
  constexpr const char* name = Store ? "stmatrix" : "ldmatrix";
  const bool transposed = lane(0).transposed;
  for (int matrix = 0; matrix < lane(0).matrices; ++matrix) {
    uint16_t elements[8][8];
    if constexpr (Store)
      for (int i = 0; i < 32; ++i)
        for (int half = 0; half < 2; ++half) {
          const uint32_t pair = lane(i).stored[matrix];
          const int row = i / 4, column = i % 4 * 2 + half;
          (transposed ? elements[column][row] : elements[row][column]) = half ? high(pair) : low(pair);
        }
    for (int row = 0; row < 8; ++row) {
      const int giver = 8 * matrix + row;
      char* address = lane(giver).row;
      Thread* const caller = std::exchange(current, &warp.thread(giver));  // errors name the lane that gave it
      shared_address(address, 16, 16, name);
      current = caller;
      if constexpr (Store) {
        race::write(warp.thread(giver), address, 16, name, *lane(giver).site);
        std::memcpy(address, elements[row], 16);
      } else {
        race::read(warp.thread(giver), address, 16, name, *lane(giver).site);
        std::memcpy(elements[row], address, 16);
      }
    }
    if constexpr (!Store)
      for (int i = 0; i < 32; ++i) {
        const int row = i / 4, column = i % 4 * 2;
        const uint16_t first = transposed ? elements[column][row] : elements[row][column];
        const uint16_t second = transposed ? elements[column + 1][row] : elements[row][column + 1];
        lane(i).registers[matrix] = first | static_cast<uint32_t>(second) << 16;
      }
  }
}

struct MmaArguments {
  float* d;
  const uint32_t *a, *b;
};

template <class Number>
void multiply(Warp&, uint32_t, void* const* arguments) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& given = *static_cast<const MmaArguments*>(arguments[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, k = 2 * t + i / 2 * 8;
      a[row][k] = Number::load(low(given.a[i]));
      a[row][k + 1] = Number::load(high(given.a[i]));
      d[g + i / 2 * 8][2 * t + i % 2] = given.d[i];
    }
    for (int i = 0; i < 2; ++i) {
      b[2 * t + 8 * i][g] = Number::load(low(given.b[i]));
      b[2 * t + 8 * i + 1][g] = Number::load(high(given.b[i]));
    }
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      static_cast<const MmaArguments*>(arguments[lane])->d[i] = d[g + i / 2 * 8][2 * t + i % 2];
  }
}

}  // namespace

void ldmatrix(uint32_t* r, int matrices, bool transposed, const void* row, const Site& site) {
  MatrixArguments arguments{r, nullptr, static_cast<char*>(const_cast<void*>(row)), matrices, transposed, &site};
  collective("ldmatrix", ~0u, Aligned::kYes, &arguments, move_matrices<false>, site);
}

void stmatrix(void* row, const uint32_t* r, int matrices, bool transposed, const Site& site) {
  MatrixArguments arguments{nullptr, r, static_cast<char*>(row), matrices, transposed, &site};
  collective("stmatrix", ~0u, Aligned::kYes, &arguments, move_matrices<true>, site);
}

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, bool bf16, const Site& site) {
  MmaArguments arguments{d, a, b};
  collective("mma.sync", ~0u, Aligned::kYes, &arguments, bf16 ? multiply<Bf16> : multiply<Fp16>, site);
}

}  // namespace emu
