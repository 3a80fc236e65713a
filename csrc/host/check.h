// What callers of the planner may have got wrong.
#pragma once

#include <span>
#include <sstream>
#include <stdexcept>

#include "host/planner.h"
#include "host/trie.h"

namespace ttc {

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  text << "plan_tree_attention: ";
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

void check_options(const PlanOptions& options);

// Checks a row against the length of its table; sets its default reserve and its number of pages.
void prepare_row(PlanRow& row, int64_t index, const PlanOptions& options);

// Refuses negative page ids; returns the largest one, -1 if there is none.
int32_t check_pages(const Trie& trie, std::span<const PlanRow> rows);

}  // namespace ttc
