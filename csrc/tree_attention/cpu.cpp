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
  void release() { ::operator delete(data_, std::align_val_t(64)); data_ = nullptr; size_ = 0; }
  char* data_ = nullptr;
  size_t size_ = 0;
};

TileScratch carve(Arena& arena, int64_t rows, int64_t dim) {
  // Sizes for fp32 operands; bf16 ones need half of it.
  const int64_t keys = kMaxTileHeads * packed_head(dim);
  const int64_t sizes[] = {rows * dim, keys, keys, rows * kTileKeys / 2, rows * kTileKeys,
                           rows * dim, rows,            rows,            rows,                 2 * rows,
                           2 * rows};
  int64_t total = 0;
  for (const int64_t s : sizes) total += (s + 15) / 16 * 16;
  auto* at = reinterpret_cast<float*>(arena.reserve(size_t(total) * sizeof(float)));
  float* part[11];
  for (int i = 0; i < 11; ++i) {
    part[i] = at;
    at += (sizes[i] + 15) / 16 * 16;
  }
  return {part[0], part[1], part[2], part[3], part[4], part[5], part[6], part[7], part[8],
          reinterpret_cast<int64_t*>(part[9]), reinterpret_cast<int64_t*>(part[10])};
}

}  // namespace

const char* tree_attention_cpu_isa(Dtype dtype) { return choose(dtype).isa; }

void tree_attention_cpu(const TreeAttentionParams& params, int64_t num_threads, ParallelFor parallel_for) {
  const CpuKernels kernels = choose(params.dtype);
  const PlanView plan(params.plan);
  const PlanHeader& h = *plan.header;
  const int64_t group = h.num_q_heads / h.num_kv_heads;
  const int64_t rows = std::max<int64_t>(group, kMaxTileRows);

  static thread_local Arena partials;
  const int64_t slots = int64_t(h.num_partials) * h.num_q_heads;
  auto* partial_out = reinterpret_cast<float*>(partials.reserve(size_t(slots) * (h.head_dim + 2) * sizeof(float) + 64));
  float* partial_ml = partial_out + slots * h.head_dim;

  // Each phase is a queue: whoever is free takes the next `take` units.
  const auto run_phase = [&](int64_t units, int64_t take, auto&& work) {
    std::atomic<int64_t> next{0};
    const int64_t workers = units < num_threads * take ? (units + take - 1) / take : num_threads;
    parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
      for (; first < last; ++first) {
        static thread_local Arena arena;
        TileArgs args{&params, &plan, plan.items, 0, 1, carve(arena, rows, h.head_dim), partial_out, partial_ml};
        for (int64_t u; (u = next.fetch_add(take, std::memory_order_relaxed)) < units;)
          for (int64_t i = u; i < u + take && i < units; ++i) work(args, i);
      }
    });
  };
  // Units: small items take several KV heads at once, as long as every worker still gets a few.
  struct Unit {
    int32_t item, kv_head, num_heads;
  };
  std::vector<Unit> units;
  const int64_t enough = 4 * num_threads;
  for (int32_t i = 0; i < h.num_items; ++i) {
    int64_t heads = std::min<int64_t>(kMaxTileHeads, kMaxTileRows / (plan.items[i].q_count * group));
    heads = std::min(heads, int64_t(h.num_items) * h.num_kv_heads / enough);
    heads = std::clamp<int64_t>(heads, 1, h.num_kv_heads);
    for (int32_t k = 0; k < h.num_kv_heads; k += int32_t(heads))
      units.push_back({i, k, std::min(int32_t(heads), h.num_kv_heads - k)});
  }
  run_phase(int64_t(units.size()), 1, [&](TileArgs& args, int64_t u) {
    const auto aim = [&](int64_t unit) {
      args.item = plan.items + units[unit].item;
      args.kv_head = units[unit].kv_head;
      args.num_heads = units[unit].num_heads;
    };
    // With workers taking turns, this one's next unit is most likely the num_threads-th from here.
    if (const int64_t next = u + num_threads; next < int64_t(units.size())) {
      aim(next);
      kernels.prefetch(args);
    }
    aim(u);
    kernels.tile(args);
  });
  run_phase(h.num_merges, 8, [&](TileArgs& args, int64_t i) { kernels.merge(args, i); });
}

}  // namespace ttc
