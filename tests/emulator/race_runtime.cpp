#include "race_runtime.h"

#if defined(EMU_RACE)

#include <dlfcn.h>

#include <unordered_map>

#include "block.h"

namespace emu::race {

namespace {

struct Place {
  const char* operation = nullptr;
  std::source_location site;
  const void* code = nullptr;
};
std::vector<Place> places;
std::unordered_map<uint64_t, uint32_t> place_by_key;

uint32_t intern(uint64_t key, const Place& place) {
  auto [it, fresh] = place_by_key.try_emplace(key, places.size());
  if (fresh) places.push_back(place);
  return it->second;
}

// "file.cuh:12 inlined from file.cuh:40", by binutils.
std::string source_of(const void* code) {
  Dl_info info;
  if (!dladdr(code, &info)) return "?";
  const auto offset = static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase) - 1;
  char command[4096];
  std::snprintf(command, sizeof command, "addr2line -i -s -e '%s' %#lx 2>/dev/null", info.dli_fname,
                static_cast<unsigned long>(offset));
  std::string text;
  if (FILE* pipe = popen(command, "r")) {
    char line[512];
    while (std::fgets(line, sizeof line, pipe)) {
      std::string name = line;
      name = name.substr(0, name.find_first_of(" \n"));
      text += (text.empty() ? "" : " in ") + name;
    }
    pclose(pipe);
  }
  return text.empty() ? hex(code) : text;
}

// Shared and registered global memory; the rest (stacks, constants) is each thread's own.
void on_access(const void* p, size_t size, bool writes, const void* code) {
  if (!current) return;
  const SharedMemory& shared = current->block->shared;
  const char* c = static_cast<const char*>(p);
  if (c >= shared.allocation && c < shared.allocation + shared.allocated) {
    if (!shared.contains(p, size))
      fail(std::string(writes ? "write" : "read") + " of " + std::to_string(size) + " bytes at byte " +
           std::to_string(c - shared.data) + " of shared memory, which has " + std::to_string(shared.bytes) + " (" +
           source_of(code) + ")");
  } else if (!is_registered(p)) {
    return;
  }
  plain(*current, p, size, writes, place(code));
}

}  // namespace

uint32_t place(const char* operation, const std::source_location& site) {
  const uint64_t key = (reinterpret_cast<uintptr_t>(site.file_name()) * 0x9e3779b97f4a7c15u + site.line()) ^
                       reinterpret_cast<uintptr_t>(operation) << 40;
  return intern(key, {operation, site, nullptr});
}

uint32_t place(const void* code) { return intern(reinterpret_cast<uintptr_t>(code), {nullptr, {}, code}); }

std::string place_name(uint32_t place) {
  const Place& p = places[place];
  return p.operation ? p.operation + (" at " + at(p.site)) : source_of(p.code);
}

}  // namespace emu::race

// The interface of -fsanitize=thread between compiled code and its runtime.
#define EMU_ACCESS(NAME, SIZE, WRITES) \
  void __tsan_##NAME(const void* p) { emu::race::on_access(p, SIZE, WRITES, __builtin_return_address(0)); }
#define EMU_ACCESSES(SIZE)                      \
  EMU_ACCESS(read##SIZE, SIZE, false)           \
  EMU_ACCESS(write##SIZE, SIZE, true)           \
  EMU_ACCESS(unaligned_read##SIZE, SIZE, false) \
  EMU_ACCESS(unaligned_write##SIZE, SIZE, true)

extern "C" {
EMU_ACCESSES(1)
EMU_ACCESSES(2)
EMU_ACCESSES(4)
EMU_ACCESSES(8)
EMU_ACCESSES(16)
void __tsan_read_range(const void* p, size_t size) {
  emu::race::on_access(p, size, false, __builtin_return_address(0));
}
void __tsan_write_range(const void* p, size_t size) {
  emu::race::on_access(p, size, true, __builtin_return_address(0));
}
void __tsan_vptr_read(const void*) {}
void __tsan_vptr_update(const void*, const void*) {}
void __tsan_func_entry(const void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
// Guards of static variables.
char __tsan_atomic8_load(const volatile char* p, int) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
}

#endif
