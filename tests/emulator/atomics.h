// Atomic operations. Threads change only where they wait, so each is a plain update that the race
// check is told of.
#pragma once

#include <cstdint>
#include <cstring>

#include "block.h"

namespace emu {

enum class Order { kRelaxed, kAcqRel };

void atomic_begin(const void* address, size_t size, Order order, const Site& site);
void atomic_end(const void* address, Order order);
int32_t load_acquire(const int32_t* address, const Site& site);

// Replaces *address by update(*address) and returns what was there.
template <class T, class Update>
__attribute__((no_sanitize("thread"))) T atomic_update(T* address, Update update, Order order, const Site& site) {
  atomic_begin(address, sizeof(T), order, site);
  T before;
  std::memcpy(&before, address, sizeof before);
  const T after = update(before);
  std::memcpy(address, &after, sizeof after);
  atomic_end(address, order);
  return before;
}

}  // namespace emu

#define EMU_ATOMIC(NAME, EXPRESSION)                                                                         \
  template <class T>                                                                                         \
  inline T NAME(T* address, std::type_identity_t<T> operand, const emu::Site& site = emu::Site::current()) { \
    return emu::atomic_update(address, [=](T old) -> T { return EXPRESSION; }, emu::Order::kRelaxed, site);  \
  }
EMU_ATOMIC(atomicAdd, old + operand)
EMU_ATOMIC(atomicSub, old - operand)
EMU_ATOMIC(atomicMax, old > operand ? old : operand)
EMU_ATOMIC(atomicMin, old < operand ? old : operand)
EMU_ATOMIC(atomicAnd, old& operand)
EMU_ATOMIC(atomicOr, old | operand)
EMU_ATOMIC(atomicXor, old ^ operand)
EMU_ATOMIC(atomicExch, (static_cast<void>(old), operand))
EMU_ATOMIC(atomicInc, old >= operand ? 0 : old + 1)
#undef EMU_ATOMIC

template <class T>
inline T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> desired,
                   const emu::Site& site = emu::Site::current()) {
  return emu::atomic_update(
      address, [=](T old) { return old == expected ? desired : old; }, emu::Order::kRelaxed, site);
}
