#include "atomics.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include "cuda_emulator.h"

namespace emu {

void atomic_begin(const void* address, size_t size, Order order, const Site& site) {
  if (reinterpret_cast<uintptr_t>(address) % size) fail("atomic at " + at(site) + " on a misaligned address");
  race::atomic_begin(*current, address, size, order == Order::kAcqRel, true, site);
}

void atomic_end(const void* address, Order order) { race::atomic_end(*current, address, order == Order::kAcqRel); }

int32_t load_acquire(const int32_t* address, const Site& site) {
  yield_current();  // so that a loop around it lets others write
  race::atomic_begin(*current, address, sizeof *address, true, false, site);
  return *address;
}

std::string function_name(const void* address) {
  Dl_info info;
  if (!dladdr(address, &info) || !info.dli_sname) return "kernel";
  int status = 0;
  char* readable = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string name = status == 0 ? readable : info.dli_sname;
  std::free(readable);
  return name.substr(0, name.find('('));
}

}  // namespace emu
