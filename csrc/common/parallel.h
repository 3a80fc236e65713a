// How a kernel asks for threads without knowing who owns them.
//
// Kernels are plain C++ and must not include torch. Their op.cpp passes a ParallelFor that forwards
// to torch's thread pool, so that torch.set_num_threads() governs our kernels as well; tests and
// tools pass serial_for.
#pragma once

#include <cstdint>
#include <functional>

namespace ttc {

// Work on the half-open range [begin, end).
using RangeFn = std::function<void(int64_t begin, int64_t end)>;

// Splits [begin, end) into disjoint ranges, calls the function once for each, possibly at the same
// time, and returns when all are done. `grain` is the smallest range worth a thread of its own.
// Where the ranges are cut depends on the number of threads, so results must not.
using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain, const RangeFn& fn);

inline void serial_for(int64_t begin, int64_t end, int64_t /*grain*/, const RangeFn& fn) {
  if (begin < end) fn(begin, end);
}

}  // namespace ttc
