// The plan buffer: one contiguous int32 array, written by the planner, read by every backend.
//
//   header[kHeaderInts]
//   kv_lens     [num_rows]            the only part that plan.update() rewrites; always at kHeaderInts
//   items       [num_items][8]        the rectangles, most expensive first (struct WorkItem)
//   pages       [num_pages]           page ids; each item owns a run of them
//   q_token     [num_queries]         planned query -> row of q in the caller's order
//   q_row       [num_queries]         planned query -> row of kv_lens
//   q_back      [num_queries]         planned query -> its distance to the row's end (0 = last token)
//   draft       [num_queries][4]      row's first planned query, preorder in, preorder out, depth;
//                                     no entries at all if no row has a draft tree
//   merge_query [num_merges]          planned queries whose output is merged from partials
//   merge_ptr   [num_merges + 1]      ... and where their partials are listed
//   merge_slot  [num_merge_slots]     partial slots in path order; ~slot where chunks are folded and the
//                                     partial begins a stretch
//   q_merge     [num_queries]         planned query -> its index in merge_query, -1: not merged
//
// "Planned query" means: query tokens in depth-first order of the tree, so that the queries below any
// shared run of pages are contiguous. Keys are absolute positions in a row. Queries of rows that have
// no page are the last ones and are in no item; a backend writes their empty state.
//
// Every section begins at a multiple of 8 ints; the header says where. A kernel reads these offsets from
// the buffer itself, so that one captured launch serves every plan that is later written to the same
// address. The buffer may be longer than total_ints.
#pragma once

#include <cstdint>

namespace ttc {

// Chunks are folded from left to right within a stretch, and stretches within a row. So a stretch may be
// one item or several, and a row's first stretches too: no bit depends on it.
//
//    chunk 0   1   2   3  |  4   5   6   7  |  8   9
//         ((((0 + 1) + 2) + 3) + (((4 + 5) + 6) + 7)) + (8 + 9)
constexpr int32_t kStretchTokens = 512;

struct WorkItem {
  int32_t q_begin;       // first planned query
  int32_t q_count;       // how many
  int32_t k_begin;       // first key position
  int32_t k_end;         // one past the last position; keys end earlier if every row does (kv_lens)
  int32_t page_offset;   // pages[page_offset] holds position k_begin rounded down to a page
  int32_t partial_base;  // slot of the first query's partial; -1: this item alone makes the output
  int32_t tile_rows;     // tile class: 16, 32, 64 or 128 rows (query tokens x heads of a GQA group)
  int32_t has_draft;     // 1: some query here is part of a draft tree
};
static_assert(sizeof(WorkItem) == 32);

struct DraftNode {
  int32_t row_begin;  // first planned query of the row; -1: the row is an ordinary causal one
  int32_t in, out;    // preorder interval: node k is an ancestor of q, or q itself, iff in[k] <= in[q] < out[k]
  int32_t depth;      // logical position = prefix length + depth
};
static_assert(sizeof(DraftNode) == 16);

struct PlanHeader {
  int32_t magic;
  int32_t total_ints;
  int32_t num_rows, num_queries, num_items, num_pages, num_partials, num_merges, num_merge_slots;
  int32_t page_size, num_q_heads, num_kv_heads, head_dim;
  int32_t window_left;  // -1: unlimited
  int32_t max_page;     // largest page id in use, -1 if none
  int32_t chunk;  // deterministic: tokens of a chunk; 0: not
  int32_t items, pages, q_token, q_row, q_back, draft, merge_query, merge_ptr, merge_slot, q_merge;
  int32_t reserved[6];
};
constexpr int32_t kHeaderInts = 32;
constexpr int32_t kPlanMagic = 0x74746334;
static_assert(sizeof(PlanHeader) == 4 * kHeaderInts);

// The plan with its sections as pointers.
struct PlanView {
  const PlanHeader* header;
  const WorkItem* items;
  const int32_t *pages, *kv_lens, *q_token, *q_row, *q_back;
  const DraftNode* draft;
  const int32_t *merge_query, *merge_ptr, *merge_slot, *q_merge;

  explicit PlanView(const int32_t* p)
      : header(reinterpret_cast<const PlanHeader*>(p)),
        items(reinterpret_cast<const WorkItem*>(p + header->items)),
        pages(p + header->pages),
        kv_lens(p + kHeaderInts),
        q_token(p + header->q_token),
        q_row(p + header->q_row),
        q_back(p + header->q_back),
        draft(reinterpret_cast<const DraftNode*>(p + header->draft)),
        merge_query(p + header->merge_query),
        merge_ptr(p + header->merge_ptr),
        merge_slot(p + header->merge_slot),
        q_merge(p + header->q_merge) {}
};

}  // namespace ttc
