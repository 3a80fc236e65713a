// Shared memory of a block, and what is known of global memory.
//
// Shared memory has its exact size, begins at a multiple of 1024 and is filled with 0xff (NaN in every
// floating type) when the block starts. Around it lie redzones: the sanitizer's own in that build, else
// 0xff bytes whose change is an error. Every wrapper in ptx_host.h checks its addresses exactly.
//
//   | redzone 1024 | data: `bytes` | redzone >= 1024 |
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

namespace emu {

// Shared addresses begin here, so that 0 is none. A multiple of 1024, as swizzles look at address bits.
constexpr uint32_t kSharedBase = 1024;

struct SharedMemory {
  char* data = nullptr;
  size_t bytes = 0;
  char* allocation = nullptr;  // with the redzones
  size_t allocated = 0;

  void allocate(size_t size);
  void release();
  void check_redzones() const;
  bool contains(const void* p, size_t size) const {
    const char* c = static_cast<const char*>(p);
    return c >= data && c + size <= data + bytes;
  }
};

// Shared address of a pointer; fails if [p, p + size) is not shared memory or p not aligned.
uint32_t shared_address(const void* p, size_t size, size_t alignment, const char* operation);
// The other way round: size bytes at a shared address.
char* shared_pointer(uint32_t address, size_t size, const char* operation);

// Fails if the address is not aligned, or lies outside every registered range and there are some.
void check_global(const void* p, size_t size, size_t alignment, const char* operation);
// The same, and counts size bytes as read from the range.
void read_global(const void* p, size_t size, size_t alignment, const char* operation);

// In a registered range.
bool is_registered(const void* p);

std::string hex(const void* p);

}  // namespace emu
