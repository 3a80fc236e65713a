#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>

#include "block.h"

namespace emu {

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kRedzone = 0;
#else
constexpr size_t kRedzone = 1024;
#endif

struct Range {
  uintptr_t begin = 0, end = 0;
  std::string name;
  uint64_t bytes_read = 0;
};
std::map<uintptr_t, Range> ranges;  // by first address; they do not overlap

Range* find_range(uintptr_t address) {
  auto it = ranges.upper_bound(address);
  return it == ranges.begin() ? nullptr : &std::prev(it)->second;
}

Range* checked_range(const void* p, size_t size, size_t alignment, const char* operation) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  if (address % alignment)
    fail(std::string(operation) + " at global address " + hex(p) + ", which is no multiple of " +
         std::to_string(alignment));
  Range* range = find_range(address);
  if ((!range || address + size > range->end) && !ranges.empty()) {
    std::string text = std::string(operation) + " of " + std::to_string(size) + " bytes at " + hex(p) +
                       ", outside every registered range of global memory";
    if (range)
      text += "; the nearest before it, " + range->name + ", begins " + std::to_string(address - range->begin) +
              " bytes earlier and has " + std::to_string(range->end - range->begin);
    fail(text);
  }
  return range;
}

}  // namespace

bool is_registered(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const Range* range = find_range(address);
  return range && address < range->end;
}

std::string hex(const void* p) {
  std::ostringstream text;
  text << p;
  return text.str();
}

void SharedMemory::allocate(size_t size) {
  bytes = size;
  void* memory = nullptr;
  allocated = kRedzone + size + kRedzone;
  if (posix_memalign(&memory, 1024, std::max<size_t>(allocated, 1))) throw std::bad_alloc();
  allocation = static_cast<char*>(memory);
  data = allocation + kRedzone;
  std::memset(allocation, 0xff, allocated);
}

void SharedMemory::release() {
  std::free(allocation);
  allocation = data = nullptr;
}

void SharedMemory::check_redzones() const {
  const auto* zone = reinterpret_cast<const unsigned char*>(allocation);
  for (size_t i = 0; i < kRedzone; ++i) {
    if (zone[i] != 0xff) fail("wrote " + std::to_string(kRedzone - i) + " bytes before the block's shared memory");
    if (zone[kRedzone + bytes + i] != 0xff)
      fail("wrote at byte " + std::to_string(bytes + i) + " of " + std::to_string(bytes) + " of shared memory");
  }
}

uint32_t shared_address(const void* p, size_t size, size_t alignment, const char* operation) {
  const SharedMemory& shared = current->block->shared;
  const auto offset = static_cast<const char*>(p) - shared.data;
  if (!shared.contains(p, size)) {
    if (offset > -65536 && offset < static_cast<std::ptrdiff_t>(shared.bytes) + 65536)
      fail(std::string(operation) + " of " + std::to_string(size) + " bytes at byte " + std::to_string(offset) +
           " of shared memory, which has " + std::to_string(shared.bytes));
    fail(std::string(operation) + ": " + hex(p) + " is no address in shared memory");
  }
  if (offset % static_cast<std::ptrdiff_t>(alignment))
    fail(std::string(operation) + " at byte " + std::to_string(offset) + " of shared memory, which is no multiple of " +
         std::to_string(alignment));
  return kSharedBase + static_cast<uint32_t>(offset);
}

char* shared_pointer(uint32_t address, size_t size, const char* operation) {
  const SharedMemory& shared = current->block->shared;
  if (address < kSharedBase || address - kSharedBase + size > shared.bytes)
    fail(std::string(operation) + " of " + std::to_string(size) + " bytes at byte " +
         std::to_string(static_cast<int64_t>(address) - kSharedBase) + " of shared memory, which has " +
         std::to_string(shared.bytes));
  return shared.data + (address - kSharedBase);
}

void check_global(const void* p, size_t size, size_t alignment, const char* operation) {
  checked_range(p, size, alignment, operation);
}

void read_global(const void* p, size_t size, size_t alignment, const char* operation) {
  if (Range* range = checked_range(p, size, alignment, operation)) range->bytes_read += size;
}

}  // namespace emu

extern "C" {

// Ranges of global memory. While there are any, asynchronous copies and the 16-byte loads and stores
// must stay inside them; what they read is counted.
void emu_register(const void* p, uint64_t size, const char* name) {
  const auto begin = reinterpret_cast<uintptr_t>(p);
  emu::ranges[begin] = {begin, begin + size, name, 0};
}

void emu_forget_ranges() { emu::ranges.clear(); }

// Bytes read since registration from the range that begins at p.
uint64_t emu_bytes_read(const void* p) {
  auto it = emu::ranges.find(reinterpret_cast<uintptr_t>(p));
  return it == emu::ranges.end() ? ~uint64_t{0} : it->second.bytes_read;
}
}
