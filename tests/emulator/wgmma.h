// wgmma m64nNk16: each warp of the group computes its 16 rows, as late as its waits allow.
//
//   issue      accumulators are taken out of the lanes (which get NaN), operands stay in shared memory
//   wait       shared operands are read and multiplied, in order of issue
//   last wait  for an accumulator: the lanes get it back
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <source_location>
#include <vector>

namespace emu {

struct Block;

struct WgmmaAccumulator {
  int columns = 0, in_flight = 0;
  std::array<float*, 32> lanes{};
  std::vector<float> values;  // [16][columns]
};

struct WgmmaOperation {
  int columns;
  bool bf16, transposed_a, transposed_b, accumulate, registers_a;
  uint64_t a, b;
  std::vector<float> a_values;  // [16][16] if registers_a
  float* accumulator;           // of lane 0: which one
  std::source_location site;
};

struct WgmmaState {
  std::vector<WgmmaOperation> open;               // issued, not committed
  std::deque<std::vector<WgmmaOperation>> groups;  // committed, not waited for
  std::map<float*, WgmmaAccumulator> accumulators;
  bool fenced = false;
  uint64_t issued = 0, digest = 0;  // how many, and which: the four warps must agree
};

struct WgmmaArguments {
  float* d;
  const uint32_t* a_registers;  // null: a is the descriptor
  uint64_t a, b;
  int columns;
  bool bf16, transposed_a, transposed_b, accumulate;
  std::source_location site;
};

void wgmma(WgmmaArguments arguments);
void wgmma_fence(const std::source_location& site);
void wgmma_commit(const std::source_location& site);
void wgmma_wait(int pending, const std::source_location& site);

// The block has ended: the four warps of a group must have issued the same operations.
void finish_wgmma(Block& block);

}  // namespace emu
