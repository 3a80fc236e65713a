#include "warp.h"

#include <algorithm>

#include "block.h"

namespace emu {

namespace {

[[noreturn]] void divergent(const Collective& forming, const char* name, const Site& site, const std::string& why) {
  fail("divergent " + std::string(forming.name) + ": lanes " + lane_list(forming.arrived) + " wait in " + forming.name +
       " at " + at(forming.site) + " for lanes " + lane_list(forming.mask & ~forming.arrived) +
       ", but this lane is in " + name + " at " + at(site) + why);
}

// Runs a collective all of whose lanes have come, and lets them go on.
void complete(Warp& warp, size_t index, uint32_t participants) {
  const Collective done = warp.forming[index];
  warp.forming.erase(warp.forming.begin() + static_cast<std::ptrdiff_t>(index));
  done.operation(warp, participants, done.arguments.data());
  warp.ready |= participants;
}

}  // namespace

std::string lane_list(uint32_t lanes) {
  std::string text;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    int last = lane;
    while (last < 31 && lanes >> (last + 1) & 1) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(lane) + (last > lane ? "-" + std::to_string(last) : "");
    lane = last;
  }
  return text.empty() ? "none" : text;
}

void collective(const char* name, uint32_t mask, Aligned aligned, void* arguments, Operation operation,
                const Site& site) {
  Thread& self = *current;
  Warp& warp = *self.warp;
  const uint32_t bit = 1u << self.lane;
  if (aligned == Aligned::kYes) mask = warp.lanes;
  if (!(mask & bit))
    fail(std::string(name) + " at " + at(site) + ": the mask, lanes " + lane_list(mask) +
         ", does not name the calling lane");
  if (mask & ~warp.lanes && mask != ~0u)
    fail(std::string(name) + " at " + at(site) + ": the mask names lanes " + lane_list(mask & ~warp.lanes) +
         ", which the warp does not have");
  mask &= warp.lanes;
  if (aligned == Aligned::kYes && warp.exited)
    fail("divergent " + std::string(name) + " at " + at(site) + ": lanes " + lane_list(warp.exited) + " have returned");

  size_t index = 0;
  for (; index < warp.forming.size(); ++index) {
    Collective& other = warp.forming[index];
    if (other.operation == operation && other.mask == mask && other.name == name) {
      const bool same_place =
          other.site.line() == site.line() && std::string_view(other.site.file_name()) == site.file_name();
      if (aligned == Aligned::kYes && !same_place) divergent(other, name, site, ", another place in the code");
      break;
    }
    if (other.mask & bit && mask & other.arrived) divergent(other, name, site, " and waits for them");
  }
  if (index == warp.forming.size())
    warp.forming.push_back({name, operation, mask, 0, aligned == Aligned::kYes, site, {}});
  Collective& mine = warp.forming[index];
  mine.arrived |= bit;
  mine.arguments[self.lane] = arguments;
  if (mine.arrived == (mask & ~warp.exited))
    complete(warp, index, mine.arrived);
  else
    block_current(name, site);
}

void lane_exited(Thread& thread) {
  Warp& warp = *thread.warp;
  for (size_t i = 0; i < warp.forming.size();) {
    const Collective& forming = warp.forming[i];
    if (!(forming.mask >> thread.lane & 1)) {
      ++i;
      continue;
    }
    if (forming.aligned)
      fail("divergent " + std::string(forming.name) + ": lanes " + lane_list(forming.arrived) + " wait in it at " +
           at(forming.site) + ", and this lane has returned");
    if (forming.arrived == (forming.mask & ~warp.exited))
      complete(warp, i, forming.arrived);
    else
      ++i;
  }
}

void syncwarp(uint32_t mask, const Site& site) {
  collective(
      "__syncwarp", mask, Aligned::kNo, nullptr,
      [](Warp& warp, uint32_t lanes, void* const*) { race::join_lanes(warp, lanes); }, site);
}

}  // namespace emu
