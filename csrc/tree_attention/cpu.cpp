// Chooses the instruction set, gives workers their memory, hands out work items, merges.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <string_view>
#include <vector>

#include "tree_attention/cpu_kernels.h"

namespace ttc {
namespace {

CpuKernels choose(Dtype dtype) {
  const char* wanted = std::getenv("TTC_CPU_ISA");
  const auto allowed = [&](const char* isa) {
    // Asking for one instruction set rules out the better ones.
    static constexpr std::string_view kOrder[] = {"avx512_bf16", "avx512", "avx2", "portable"};
    if (wanted == nullptr) return true;
    for (const auto name : kOrder) {
      if (name == wanted) return true;
      if (name == isa) return false;
    }
    return true;
  };
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && allowed("avx512_bf16"))
    if (const CpuKernels k = kernels_avx512bf16(dtype); k.isa) return k;
  if (avx512 && allowed("avx512"))
    if (const CpuKernels k = kernels_avx512(dtype); k.isa) return k;
  if (avx2 && allowed("avx2"))
    if (const CpuKernels k = kernels_avx2(dtype); k.isa) return k;
#endif
  return kernels_portable(dtype);
}

// Aligned memory that grows and is kept: one per worker thread, one for the partials.
class Arena {
 public:
  ~Arena() { release(); }
  char* reserve(size_t bytes) {
    if (bytes > size_) {
      release();
      data_ = static_cast<char*>(::operator new(bytes, std::align_val_t(64)));
      size_ = bytes;
    }
    return data_;
  }

 private:
  void release() {
    ::operator delete(data_, std::align_val_t(64));
    data_ = nullptr;
    size_ = 0;
  }
  char* data_ = nullptr;
  size_t size_ = 0;
};

TileScratch carve(Arena& arena, int64_t group, int64_t dim) {
  const int64_t rows = std::max<int64_t>(group, kMaxUnitRows);
  // Sizes for fp32 operands; bf16 ones need half of it.
  const int64_t keys = kMaxTileHeads * packed_head(dim);
  const int64_t scores = std::min<int64_t>(rows, std::max<int64_t>(group, kMaxTileRows)) * kTileKeys;
  const auto lay_out = [&](char* memory) {
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
      char* const part = memory == nullptr ? nullptr : memory + used;
      used += (floats * int64_t(sizeof(float)) + 63) / 64 * 64;
      return reinterpret_cast<float*>(part);
    };
    const auto states = [&] { return RowStates{take(rows * dim), take(rows), take(rows)}; };
    const TileScratch s{take(rows * dim),
                        take(keys),
                        take(keys),
                        take(scores / 2),
                        take(scores),
                        take(rows),
                        take(rows),
                        states(),
                        states(),
                        states(),
                        reinterpret_cast<int64_t*>(take(2 * rows)),
                        reinterpret_cast<int64_t*>(take(2 * rows))};
    return std::pair(s, used);
  };
  return lay_out(arena.reserve(size_t(lay_out(nullptr).second))).first;
}

// A piece of work for one worker: some KV heads of an item.
struct Unit {
  WorkItem item;
  int32_t kv_head, num_heads;
  const WorkItem* siblings;  // these three as in TileArgs
  int32_t num_siblings, shared;
};

struct Siblings {
  int32_t count = 1, shared = 0;
};

// How many of the items from `first` on are best computed together, and how many keys they share. Children of
// one node are such items where a chunk crosses the fork.
Siblings find_siblings(const PlanView& plan, int32_t first, int64_t most, int64_t group) {
  // Repacking shared keys costs as much as reading them for so many items.
  constexpr float kRepack = 2.5f;
  const WorkItem& item = plan.items[first];
  const int32_t page_size = plan.header->page_size;
  const auto pages = [&](const WorkItem& x) { return (x.k_end - 1) / page_size - x.k_begin / page_size + 1; };
  const auto keys = [&](const WorkItem& x) {  // that some query sees
    int32_t end = 0;
    for (int32_t q = x.q_begin; q < x.q_begin + x.q_count; ++q)
      end = std::max(end, plan.kv_lens[plan.q_row[q]] - plan.q_back[q]);
    return std::min(end, x.k_end) - x.k_begin;
  };
  Siblings best;
  if (item.k_end - item.k_begin > kTileKeys) return best;
  int32_t alike = pages(item), least = keys(item), total = 0;
  float best_saved = 0;  // keys that need not be read, per item
  for (int32_t count = 1; count <= most && first + count <= plan.header->num_items; ++count) {
    const WorkItem& x = plan.items[first + count - 1];
    if (x.k_begin != item.k_begin || x.k_end - x.k_begin > kTileKeys || x.q_count != item.q_count ||
        x.q_begin != item.q_begin + (count - 1) * item.q_count || count * item.q_count * group > kMaxSiblingRows)
      break;
    const int32_t *a = plan.pages + item.page_offset, *b = plan.pages + x.page_offset;
    alike = int32_t(std::mismatch(a, a + std::min(alike, pages(x)), b).first - a);
    least = std::min(least, keys(x));
    total += (keys(x) + kSharedQuantum - 1) / kSharedQuantum * kSharedQuantum;
    // Each has a key of its own.
    const int32_t shared = std::min(alike * page_size - item.k_begin % page_size, least - 1);
    const int32_t whole = shared / kSharedQuantum * kSharedQuantum;
    if (whole <= 0 || total - (count - 1) * whole > kMaxSiblingKeys) break;
    const float saved = float(whole) * (1 - kRepack / float(count));
    if (saved > best_saved) best = {count, whole}, best_saved = saved;
  }
  return best;
}

// Items to units, as long as every worker still gets a few: small items take several KV heads at once,
// whose keys stand side by side; query tiles of one rectangle are joined, so that its keys are packed once,
// and so are siblings, for the keys that they share.
std::vector<Unit> make_units(const PlanView& plan, int64_t num_threads, int max_few_rows) {
  const PlanHeader& h = *plan.header;
  const int64_t group = h.num_q_heads / h.num_kv_heads;
  const int64_t most = std::max<int64_t>(1, int64_t(h.num_items) * h.num_kv_heads / (4 * num_threads));
  // A unit that is a large part of all work would be waited for in the end. Of a KV head: reading a key takes
  // about as long as its products with some rows.
  const auto work_of = [](const WorkItem& item, int64_t rows) {
    return (item.k_end - item.k_begin) * (kFewRows + rows);
  };
  int64_t total_work = 0;
  for (int32_t i = 0; i < h.num_items; ++i)
    total_work += h.num_kv_heads * work_of(plan.items[i], plan.items[i].q_count * group);
  std::vector<Unit> units;
  for (int32_t i = 0; i < h.num_items;) {
    WorkItem item = plan.items[i];
    const int32_t first = i++;
    const int64_t rows = item.q_count * group;
    const Siblings siblings = rows <= max_few_rows ? find_siblings(plan, first, most, group) : Siblings{};
    for (; i < first + siblings.count; ++i) {
      const WorkItem& next = plan.items[i];
      if (next.k_end > item.k_end) item.k_end = next.k_end, item.page_offset = next.page_offset;
      item.q_count += next.q_count;
      item.has_draft |= next.has_draft;
    }
    for (; siblings.count == 1 && i < h.num_items && i - first < most; ++i) {
      const WorkItem& next = plan.items[i];
      const bool same_keys =
          next.page_offset == item.page_offset && next.k_begin == item.k_begin && next.k_end == item.k_end;
      const int32_t partial = item.partial_base < 0 ? -1 : item.partial_base + item.q_count;
      if (!same_keys || next.q_begin != item.q_begin + item.q_count || next.partial_base != partial ||
          (item.q_count + next.q_count) * group > kMaxUnitRows)
        break;
      item.q_count += next.q_count;
      item.has_draft |= next.has_draft;
    }
    const int64_t unit_rows = item.q_count * group + (siblings.count > 1 ? computed_rows(rows) - rows : 0);
    const int64_t fit = std::min<int64_t>(kMaxTileHeads, kMaxTileRows / unit_rows);
    const int64_t fair = total_work / (4 * num_threads) / work_of(item, unit_rows);
    const auto heads = int32_t(std::clamp<int64_t>(std::min({fit, most, fair}), 1, h.num_kv_heads));
    for (int32_t k = 0; k < h.num_kv_heads; k += heads)
      units.push_back(
          {item, k, std::min(heads, h.num_kv_heads - k), plan.items + first, siblings.count, siblings.shared});
  }
  return units;
}

// Partials of more than this would not be found in the caches again.
constexpr int64_t kStreamBytes = 16 << 20;

// Units that are handed out one by one.
struct Queue {
  const Unit* units;
  int64_t size;
  std::atomic<int64_t> next{0};
  const Unit* take() {
    const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
    return i < size ? units + i : nullptr;
  }
};

}  // namespace

const char* tree_attention_cpu_isa(Dtype dtype) { return choose(dtype).isa; }

void tree_attention_cpu(const TreeAttentionParams& params, int64_t num_threads, ParallelFor parallel_for) {
  const CpuKernels kernels = choose(params.dtype);
  const PlanView plan(params.plan);
  const PlanHeader& h = *plan.header;
  const int64_t group = h.num_q_heads / h.num_kv_heads;

  static thread_local Arena partials;
  const int64_t slots = int64_t(h.num_partials) * h.num_q_heads;
  auto* partial_o = reinterpret_cast<float*>(partials.reserve(size_t(slots) * (h.head_dim + 2) * sizeof(float) + 64));
  float* const partial_m = partial_o + slots * h.head_dim;

  // Calls run(args, worker) once for each of `workers` workers.
  const auto run_phase = [&](int64_t workers, auto&& run) {
    parallel_for(0, std::min(num_threads, workers), 1, [&](int64_t first, int64_t last) {
      for (; first < last; ++first) {
        static thread_local Arena arena;
        TileArgs args{};
        args.params = &params;
        args.plan = &plan;
        args.scratch = carve(arena, group, h.head_dim);
        args.partials = {partial_o, partial_m, partial_m + slots};
        args.stream_partials = slots * h.head_dim * int64_t(sizeof(float)) > kStreamBytes;
        run(args, first);
      }
    });
  };

  // Units of few rows wait for memory, the others for arithmetic: half of the workers begin with either
  // kind, so that both are kept busy.
  std::vector<Unit> units = make_units(plan, num_threads, kernels.few_rows);
  const auto middle = std::stable_partition(
      units.begin(), units.end(), [&](const Unit& u) { return u.item.q_count / u.num_siblings * group > kFewRows; });
  Queue queues[2] = {{units.data(), middle - units.begin()},
                     {units.data() + (middle - units.begin()), units.end() - middle}};
  run_phase(int64_t(units.size()), [&](TileArgs& args, int64_t worker) {
    const auto take = [&] {
      const Unit* unit = queues[worker % 2].take();
      return unit ? unit : queues[1 - worker % 2].take();
    };
    // A worker knows its next unit while it computes one, and asks for its keys meanwhile.
    for (const Unit *unit = take(), *next; unit; unit = next) {
      next = take();
      args.item = &unit->item;
      args.kv_head = unit->kv_head;
      args.num_heads = unit->num_heads;
      args.siblings = unit->siblings;
      args.num_siblings = unit->num_siblings;
      args.shared = unit->shared;
      args.next_item = next ? &next->item : nullptr;
      args.next_kv_head = next ? next->kv_head : 0;
      args.asked = kernels.tile(args);
    }
  });

  constexpr int64_t kMerges = 8;  // at a time
  std::atomic<int64_t> next_merge{0};
  run_phase((h.num_merges + kMerges - 1) / kMerges, [&](TileArgs& args, int64_t) {
    args.item = plan.items;
    args.num_heads = args.num_siblings = 1;
    for (int64_t i; (i = next_merge.fetch_add(kMerges, std::memory_order_relaxed)) < h.num_merges;)
      for (int64_t m = i; m < std::min<int64_t>(i + kMerges, h.num_merges); ++m) kernels.merge(args, m);
  });
}

}  // namespace ttc
