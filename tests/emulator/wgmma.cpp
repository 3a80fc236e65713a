#include "wgmma.h"

#include <cstring>

#include "block.h"
#include "number.h"

namespace emu {

namespace {

// NaN that lanes hold while the accumulator is in flight: a signalling one, which any arithmetic changes.
constexpr uint32_t kTaken = 0xffbfffffu;

// One operand in shared memory, as its descriptor says (csrc/common/ptx/wgmma_descriptor.cuh).
struct Operand {
  uint32_t start, leading, stride, swizzle_bytes;
  bool transposed;

  Operand(uint64_t descriptor, bool transposed, const WgmmaOperation& operation) : transposed(transposed) {
    start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
    leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
    stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
    constexpr uint32_t kBytes[4] = {0, 128, 64, 32};
    swizzle_bytes = kBytes[descriptor >> 62];
    if (descriptor >> 49 & 7) fail("wgmma at " + at(operation.site) + ": base offsets are not emulated");
    if (swizzle_bytes && start & (swizzle_bytes * 8 - 1) & ~127u)
      fail("wgmma at " + at(operation.site) + ": an operand with a swizzle of " + std::to_string(swizzle_bytes) +
           " bytes begins at byte " + std::to_string(start - kSharedBase) +
           ", inside a pattern of 8 rows, and its base offset is 0");
  }

  // Address of the 16 bytes with 8 neighbours along the contiguous direction: k for K-major, else m/n.
  uint32_t chunk(int mn, int k) const {
    uint32_t address = start;
    if (!transposed && !swizzle_bytes)
      address += mn / 8 * stride + k / 8 * leading + mn % 8 * 16;
    else if (!transposed)
      address += mn / 8 * stride + mn % 8 * swizzle_bytes + k * 2;
    else if (!swizzle_bytes)
      address += mn / 8 * stride + k / 8 * leading + k % 8 * 16;
    else {
      const int span = static_cast<int>(swizzle_bytes) / 2;
      address += mn / span * leading + mn % span * 2 + k % 8 * swizzle_bytes + k / 8 * stride;
    }
    if (swizzle_bytes) address ^= (address >> 7 & (swizzle_bytes / 16 - 1)) << 4;
    return address;
  }

  // Calls store(mn, k, bits) for rows or columns [first, first + count) and all 16 k. issuing: the thread whose access
  // it is, null when the operation is performed.
  template <class Store>
  void read(Thread* issuing, int first, int count, const Site& site, Store store) const {
    for (int outer = 0; outer < (transposed ? 16 : count); ++outer)
      for (int inner = 0; inner < (transposed ? count : 16); inner += 8) {
        const int mn = first + (transposed ? inner : outer), k = transposed ? outer : inner;
        const char* p = shared_pointer(chunk(mn, k), 16, "wgmma");
        if (issuing) race::async_read(*issuing, p, 16, issuing->warp->wgmma.committed, site);
        uint16_t bits[8];
        std::memcpy(bits, p, 16);
        for (int i = 0; i < 8; ++i) store(transposed ? mn + i : mn, transposed ? k : k + i, bits[i]);
      }
  }
};

template <class Number>
void perform(Warp& warp, const WgmmaOperation& operation) {
  const int columns = operation.columns, first_row = warp.id % 4 * 16;
  alignas(64) float a[16][16];
  alignas(64) float b[16][256];
  if (operation.registers_a)
    std::memcpy(a, operation.a_values.data(), sizeof a);
  else
    Operand(operation.a, operation.transposed_a, operation)
        .read(nullptr, first_row, 16, operation.site,
              [&](int m, int k, uint16_t bits) { a[m - first_row][k] = Number::load(bits); });
  Operand(operation.b, operation.transposed_b, operation)
      .read(nullptr, 0, columns, operation.site, [&](int n, int k, uint16_t bits) { b[k][n] = Number::load(bits); });

  WgmmaAccumulator& accumulator = warp.wgmma.accumulators.at(operation.accumulator);
  if (!operation.accumulate) std::fill(accumulator.values.begin(), accumulator.values.end(), 0.0f);
  for (int row = 0; row < 16; ++row) {
    float* d = accumulator.values.data() + row * columns;
    for (int k = 0; k < 16; ++k) {
      const float factor = a[row][k];
      for (int n = 0; n < columns; ++n) d[n] += factor * b[k][n];
    }
  }
}

// Calls visit(register of the lane, place in [16][columns]) for all accumulators of a lane.
template <class Visit>
void each_register(int lane, int columns, Visit visit) {
  for (int i = 0; i < columns / 2; ++i)
    visit(i, (lane / 4 + i / 2 % 2 * 8) * columns + i / 4 * 8 + lane % 4 * 2 + i % 2);
}

// Removes the registers from the lanes, unless an earlier operation in flight has them already.
void take(Warp& warp, void* const* arguments, const WgmmaArguments& first) {
  auto [it, fresh] = warp.wgmma.accumulators.try_emplace(first.d);
  WgmmaAccumulator& taken = it->second;
  taken.last_group = warp.wgmma.committed + 1;
  if (!fresh) {
    if (taken.columns != first.columns)
      fail("wgmma at " + at(first.site) + ": its accumulator is in flight with " + std::to_string(taken.columns) +
           " columns");
    return;
  }
  if (!warp.wgmma.fenced)
    fail("wgmma at " + at(first.site) + ": no wgmma_fence since the last wait, and its accumulator was not in flight");
  taken.columns = first.columns;
  taken.values.resize(16 * first.columns);
  for (int lane = 0; lane < 32; ++lane) {
    taken.lanes[lane] = static_cast<const WgmmaArguments*>(arguments[lane])->d;
    each_register(lane, first.columns, [&](int i, int place) {
      taken.values[place] = taken.lanes[lane][i];
      std::memcpy(&taken.lanes[lane][i], &kTaken, 4);
    });
  }
}

// Returns the accumulators that no group after the first `groups` uses.
void give_back(Warp& warp, uint64_t groups) {
  auto& accumulators = warp.wgmma.accumulators;
  for (auto it = accumulators.begin(); it != accumulators.end();) {
    const WgmmaAccumulator& taken = it->second;
    if (taken.last_group > groups) {
      ++it;
      continue;
    }
    for (int lane = 0; lane < 32; ++lane)
      each_register(lane, taken.columns, [&](int i, int place) {
        if (std::memcmp(&taken.lanes[lane][i], &kTaken, 4))
          fail("wgmma: lane " + std::to_string(lane) + " of warp " + std::to_string(warp.id) +
               " wrote its accumulator " + std::to_string(i) + " while it was in flight");
        taken.lanes[lane][i] = taken.values[place];
      });
    it = accumulators.erase(it);
  }
}

// Performs the first `groups` groups of the warp group, if its four warps have committed them.
bool perform_groups(Block& block, int first_warp, uint64_t groups) {
  for (int i = 0; i < 4; ++i)
    if (block.warps[first_warp + i].wgmma.committed < groups) return false;
  for (int i = 0; i < 4; ++i) {
    Warp& warp = block.warps[first_warp + i];
    for (WgmmaState& state = warp.wgmma; state.performed < groups; ++state.performed, state.groups.pop_front())
      for (const WgmmaOperation& operation : state.groups.front())
        operation.bf16 ? perform<Bf16>(warp, operation) : perform<Fp16>(warp, operation);
  }
  return true;
}

void wait_done(Warp& warp) {
  WgmmaState& state = warp.wgmma;
  give_back(warp, state.waits_for);
  race::wgmma_waited(warp, state.waits_for);
  state.waits_for = 0;
  if (state.groups.empty() && state.open.empty()) state.fenced = false;
}

// Lets warps of the group go on that waited for others to commit.
void commit(Warp& warp, uint32_t, void* const*) {
  WgmmaState& state = warp.wgmma;
  state.groups.push_back(std::exchange(state.open, {}));
  ++state.committed;
  const int first_warp = warp.id / 4 * 4;
  for (int i = 0; i < 4 && first_warp + 4 <= static_cast<int>(warp.block->warps.size()); ++i) {
    Warp& other = warp.block->warps[first_warp + i];
    if (other.wgmma.waits_for && perform_groups(*warp.block, first_warp, other.wgmma.waits_for)) {
      wait_done(other);
      other.ready = other.lanes;
    }
  }
}

void wait(Warp& warp, uint32_t, void* const* arguments) {
  WgmmaState& state = warp.wgmma;
  const auto pending = static_cast<uint64_t>(*static_cast<const int*>(arguments[0]));
  if (state.committed <= pending) return;
  state.waits_for = state.committed - pending;
  if (perform_groups(*warp.block, warp.id / 4 * 4, state.waits_for)) wait_done(warp);
}

void issue(Warp& warp, uint32_t, void* const* arguments) {
  const auto& first = *static_cast<const WgmmaArguments*>(arguments[0]);
  if (warp.id / 4 * 4 + 4 > static_cast<int>(warp.block->warps.size()) || warp.lanes != ~0u)
    fail("wgmma at " + at(first.site) + ": the warp is not one of four whole warps");
  if (first.columns % 8 || first.columns < 8 || first.columns > 256)
    fail("wgmma at " + at(first.site) + ": there is no shape with " + std::to_string(first.columns) + " columns");
  for (int lane = 1; lane < 32; ++lane) {
    const auto& other = *static_cast<const WgmmaArguments*>(arguments[lane]);
    if (other.a != first.a || other.b != first.b || other.columns != first.columns ||
        other.accumulate != first.accumulate)
      fail("wgmma at " + at(first.site) + ": lane " + std::to_string(lane) + " gives other operands than lane 0");
  }
  take(warp, arguments, first);
  WgmmaOperation operation{first.columns,
                           first.bf16,
                           first.transposed_a,
                           first.transposed_b,
                           first.accumulate,
                           first.a_registers != nullptr,
                           first.a,
                           first.b,
                           {},
                           first.d,
                           first.site};
  if (operation.registers_a) {
    operation.a_values.resize(256);
    for (int lane = 0; lane < 32; ++lane) {
      const uint32_t* a = static_cast<const WgmmaArguments*>(arguments[lane])->a_registers;
      for (int i = 0; i < 4; ++i) {
        float* to = &operation.a_values[(lane / 4 + i % 2 * 8) * 16 + lane % 4 * 2 + i / 2 * 8];
        to[0] = first.bf16 ? Bf16::load(low(a[i])) : Fp16::load(low(a[i]));
        to[1] = first.bf16 ? Bf16::load(high(a[i])) : Fp16::load(high(a[i]));
      }
    }
  }
  WgmmaState& state = warp.wgmma;
  ++state.issued;
  for (uint64_t word : {operation.registers_a ? 0 : first.a, first.b, static_cast<uint64_t>(first.columns)})
    state.digest = (state.digest ^ word) * 0x100000001b3u;
  if (!operation.registers_a)
    Operand(operation.a, operation.transposed_a, operation)
        .read(&warp.thread(0), warp.id % 4 * 16, 16, operation.site, [](int, int, uint16_t) {});
  Operand(operation.b, operation.transposed_b, operation)
      .read(&warp.thread(0), 0, operation.columns, operation.site, [](int, int, uint16_t) {});
  state.open.push_back(std::move(operation));
}

}  // namespace

void wgmma(WgmmaArguments arguments) { collective("wgmma", ~0u, Aligned::kYes, &arguments, issue, arguments.site); }

void wgmma_fence(const Site& site) {
  collective(
      "wgmma.fence", ~0u, Aligned::kYes, nullptr, [](Warp& warp, uint32_t, void* const*) { warp.wgmma.fenced = true; },
      site);
}

void wgmma_commit(const Site& site) { collective("wgmma.commit_group", ~0u, Aligned::kYes, nullptr, commit, site); }

void wgmma_wait(int pending, const Site& site) {
  collective("wgmma.wait_group", ~0u, Aligned::kYes, &pending, wait, site);
  while (current->warp->wgmma.waits_for) block_current("wgmma.wait_group", site);
}

void finish_wgmma(Block& block) {
  for (const Warp& warp : block.warps) {
    const WgmmaState &state = warp.wgmma, &first = block.warps[warp.id / 4 * 4].wgmma;
    if (!state.open.empty() || !state.accumulators.empty())
      fail("block " + std::to_string(block.serial) + " warp " + std::to_string(warp.id) +
           " ended with wgmma in flight");
    if (state.issued != first.issued || state.digest != first.digest)
      fail("block " + std::to_string(block.serial) + ": warp " + std::to_string(warp.id) + " issued " +
           std::to_string(state.issued) + " wgmma, warp " + std::to_string(warp.id / 4 * 4) + " of its group " +
           std::to_string(first.issued) + ", or with other operands");
  }
}

}  // namespace emu
