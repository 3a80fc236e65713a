#include "host/queries.h"

#include <algorithm>

namespace ttc {
namespace {

// Preorder intervals and depths of one draft tree, parents before children.
void encode_draft(const int32_t* parent, int64_t n, int32_t row_begin, DraftNode* out) {
  std::vector<int32_t> size(n, 1), next(n + 1);
  for (int64_t j = n - 1; j >= 0; --j)
    if (parent[j] >= 0) size[parent[j]] += size[j];
  int32_t root_next = 0;
  for (int64_t j = 0; j < n; ++j) {
    int32_t& cursor = parent[j] >= 0 ? next[parent[j]] : root_next;
    const int32_t depth = parent[j] >= 0 ? out[parent[j]].depth + 1 : 0;
    out[j] = {row_begin, cursor, cursor + size[j], depth};
    next[j] = cursor + 1;
    cursor += size[j];
  }
}

}  // namespace

Queries::Queries(const Trie& trie, std::span<const PlanRow> rows, std::pmr::memory_resource* memory)
    : row_ptr(memory), token(memory), row(memory), back(memory), draft(memory) {
  Vector<int32_t> first_token(rows.size(), memory);
  bool has_draft = false;
  for (size_t i = 0; i < rows.size(); ++i) {
    first_token[i] = int32_t(count);
    count += rows[i].q_len;
    one_each &= rows[i].q_len <= 1;
    has_draft |= rows[i].draft_parents != nullptr;
  }
  token.resize(count);
  row.resize(count);
  back.resize(count);
  if (has_draft) draft.resize(count, DraftNode{-1, 0, 0, 0});
  row_ptr.reserve(trie.order.size() + 1);
  row_ptr.push_back(0);
  int32_t at = 0;
  const auto add = [&](int32_t r) {
    const auto n = int32_t(rows[r].q_len);
    for (int32_t j = 0; j < n; ++j) {
      token[at + j] = first_token[r] + j;
      row[at + j] = r;
      back[at + j] = n - 1 - j;
    }
    if (rows[r].draft_parents) encode_draft(rows[r].draft_parents, n, at, draft.data() + at);
    at += n;
  };
  for (const int32_t r : trie.order) {
    add(r);
    row_ptr.push_back(at);
  }
  if (at < count)
    for (size_t i = 0; i < rows.size(); ++i)
      if (rows[i].num_pages == 0) add(int32_t(i));
}

int64_t Queries::first_key(int64_t q, const PlanRow& row, int64_t window_left) const {
  if (window_left < 0) return 0;
  const bool in_draft = !draft.empty() && draft[q].row_begin >= 0;
  const int64_t position = in_draft ? row.kv_len - row.q_len + draft[q].depth : row.kv_len - 1 - back[q];
  return std::max<int64_t>(0, position - window_left);
}

}  // namespace ttc
