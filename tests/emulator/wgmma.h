// wgmma m64nNk16: each warp of the group computes its 16 rows, as late as its waits allow.
//
//   issue      accumulators are taken out of the lanes (which get NaN), operands stay in shared memory
//   wait       the first of the four warps to wait for a group waits until all four have issued it; then
//              shared operands are read and multiplied for all of them, in order of issue
//   own wait   the lanes of a warp get their accumulators back
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
  int columns = 0;
  uint64_t last_group = 0;  // the last group that uses it, counting from 1
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
  std::deque<std::vector<WgmmaOperation>> groups;  // committed, not performed
  uint64_t committed = 0, performed = 0;           // how many groups
  uint64_t waits_for = 0;                          // groups that must be performed before the warp goes on
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
