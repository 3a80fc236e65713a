// Collectives: operations that some lanes of a warp perform together.
#pragma once

#include <array>
#include <cstdint>
#include <source_location>
#include <string>

namespace emu {

struct Thread;
struct Warp;

// arguments[lane]: what the lane brought, for every lane in mask that takes part.
using Operation = void (*)(Warp& warp, uint32_t mask, void* const* arguments);

struct Collective {
  const char* name;
  Operation operation;
  uint32_t mask, arrived;
  bool aligned;
  std::source_location site;
  std::array<void*, 32> arguments;
};

enum class Aligned : bool { kNo, kYes };

// The calling lane joins; the last of mask to come runs operation. Aligned::kYes: every lane of the
// warp must come to the same place in the code. Lanes that wait for each other in different
// operations are an error at once, as is an aligned operation that a lane has returned before.
void collective(const char* name, uint32_t mask, Aligned aligned, void* arguments, Operation operation,
                const std::source_location& site);

// Completes what waited for this lane only.
void lane_exited(Thread& thread);

// "0-3, 7"
std::string lane_list(uint32_t lanes);

void syncwarp(uint32_t mask, const std::source_location& site);

}  // namespace emu
