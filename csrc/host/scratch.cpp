#include "host/scratch.h"

#include <algorithm>

namespace ttc {
namespace {

constexpr size_t kLeast = 1 << 16, kMost = 1 << 26;

struct Kept {
  std::unique_ptr<std::byte[]> block;
  size_t size = 0;
};
thread_local Kept kept;

}  // namespace

// While the block is borrowed the thread has none; another Scratch then gets one of its own.
Scratch::Scratch()
    : block_(std::move(kept.block)),
      size_(block_ ? kept.size : kLeast),
      arena_((block_ ? block_ : block_ = std::make_unique_for_overwrite<std::byte[]>(kLeast)).get(), size_,
             &overflow_) {}

Scratch::~Scratch() {
  arena_.release();
  if (overflow_.bytes > 0) {
    const size_t wanted = std::min(kMost, size_ + overflow_.bytes);
    if (wanted > size_) {
      block_ = std::make_unique_for_overwrite<std::byte[]>(wanted);
      size_ = wanted;
    }
  }
  kept = {std::move(block_), size_};
}

}  // namespace ttc
