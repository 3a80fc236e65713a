#include "tma.h"

#include <algorithm>
#include <cstring>

#include "block.h"

namespace emu {

namespace {

constexpr uint64_t kMark = 0x70c7ed7e450a9a11u;
static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));

uint32_t swizzled(uint32_t address, uint32_t swizzle_bytes) {
  return swizzle_bytes ? address ^ (address >> 7 & (swizzle_bytes / 16 - 1)) << 4 : address;
}

// Calls visit(shared address, source or null if outside, bytes) for every row of the box, in pieces of
// 16 bytes (the unit of the swizzle).
template <class Visit>
void each_piece(const TensorMap& map, uint32_t shared, const std::array<int, 5>& at, Visit visit) {
  const uint32_t row_bytes = map.box[0] * map.element_bytes;
  uint32_t rows = 1;
  for (uint32_t d = 1; d < map.rank; ++d) rows *= map.box[d];
  for (uint32_t row = 0; row < rows; ++row) {
    const char* source = map.base;
    bool inside = true;
    for (uint32_t d = 1, left = row; d < map.rank; left /= map.box[d], ++d) {
      const int64_t i = int64_t{at[d]} + left % map.box[d];
      inside = inside && i >= 0 && i < static_cast<int64_t>(map.sizes[d]);
      source += i * static_cast<int64_t>(map.strides[d]);
    }
    for (uint32_t byte = 0; byte < row_bytes; byte += 16) {
      const uint32_t to = swizzled(shared + row * row_bytes + byte, map.swizzle_bytes);
      const int64_t first = at[0] + static_cast<int64_t>(byte / map.element_bytes);
      const int64_t count = 16 / map.element_bytes;
      const int64_t low = std::max<int64_t>(first, 0);
      const int64_t high = inside ? std::min<int64_t>(first + count, static_cast<int64_t>(map.sizes[0])) : low;
      visit(to, source + low * map.element_bytes, static_cast<uint32_t>(low - first) * map.element_bytes,
            high > low ? static_cast<uint32_t>(high - low) * map.element_bytes : 0);
    }
  }
}

}  // namespace

void tma_load(void* smem, const CUtensorMap* opaque, uint64_t* barrier, std::array<int, 5> coordinates, int rank,
              const Site& site) {
  TensorMap map;
  std::memcpy(&map, opaque, sizeof map);
  if (map.mark != kMark) fail("tensor load at " + at(site) + ": the tensor map was never encoded");
  if (reinterpret_cast<uintptr_t>(opaque) % 64)
    fail("tensor load at " + at(site) + ": the map is not aligned to 64 bytes");
  if (static_cast<int>(map.rank) != rank)
    fail("tensor load at " + at(site) + ": " + std::to_string(rank) + " coordinates for a map of " +
         std::to_string(map.rank) + " dimensions");
  if (map.swizzle_bytes && map.box[0] * map.element_bytes != map.swizzle_bytes)
    fail("tensor load at " + at(site) + ": rows shorter than the swizzle are not emulated");
  uint32_t bytes = map.element_bytes;
  for (uint32_t d = 0; d < map.rank; ++d) bytes *= map.box[d];
  const uint32_t shared = shared_address(smem, bytes, 128, "tensor load");
  Thread* issuer = current;
  const uint32_t access = race::async_write(*issuer, smem, bytes, "tensor load", site);
  std::memset(smem, 0xff, bytes);
  each_piece(map, shared, coordinates, [&](uint32_t, const char* from, uint32_t, uint32_t count) {
    if (!count) return;
    read_global(from, count, 1, "tensor load");
    race::read(*issuer, from, count, "tensor load", site);
  });
  auto perform = [map, shared, coordinates, issuer] {
    char* data = issuer->block->shared.data;
    each_piece(map, shared, coordinates, [&](uint32_t to, const char* from, uint32_t skip, uint32_t count) {
      char* piece = data + (to - kSharedBase);
      std::memset(piece, 0, 16);
      if (count) std::memcpy(piece + skip, from, count);
    });
  };
  mbarrier_add_load(barrier, {bytes, access, perform}, site);
}

}  // namespace emu

CUresult cuTensorMapEncodeTiled(CUtensorMap* out, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  constexpr uint32_t kElementBytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
  constexpr uint32_t kSwizzleBytes[] = {0, 32, 64, 128};
  const auto value = [](auto enumerator) { return static_cast<uint32_t>(enumerator); };
  if (value(type) >= std::size(kElementBytes) || value(swizzle) >= std::size(kSwizzleBytes) || rank < 1 || rank > 5 ||
      value(interleave) || value(fill))
    return CUDA_ERROR_INVALID_VALUE;
  emu::TensorMap map{};
  map.mark = emu::kMark;
  map.base = static_cast<char*>(address);
  map.rank = rank;
  map.element_bytes = kElementBytes[type];
  map.swizzle_bytes = kSwizzleBytes[swizzle];
  map.strides[0] = map.element_bytes;
  bool right = reinterpret_cast<uintptr_t>(out) % 64 == 0 && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  for (uint32_t d = 0; d < rank; ++d) {
    map.sizes[d] = sizes[d];
    map.box[d] = box[d];
    if (d) map.strides[d] = strides[d - 1];
    right = right && sizes[d] >= 1 && sizes[d] <= uint64_t{1} << 32 && box[d] >= 1 && box[d] <= 256;
    right = right && element_strides[d] == 1;
    right = right && (d == 0 || (strides[d - 1] % 16 == 0 && strides[d - 1] < uint64_t{1} << 40));
  }
  const uint32_t row_bytes = map.box[0] * map.element_bytes;
  right = right && row_bytes % 16 == 0 && (!map.swizzle_bytes || row_bytes <= map.swizzle_bytes);
  if (!right) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(out, &map, sizeof map);
  return CUDA_SUCCESS;
}
