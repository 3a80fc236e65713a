// The Hopper kernel and its launch.
#pragma once

#include "tree_attention/sm90_consumer.cuh"
#include "tree_attention/sm90_producer.cuh"

namespace ttc::sm90 {

// T: of q and out; KV: T, or uint8_t for float8_e4m3fn caches.
template <class T, class KV, int D>
__global__ void __launch_bounds__(kThreads, 1)
    tree_attention_sm90(const __grid_constant__ TreeAttentionCudaParams params, const __grid_constant__ TensorMaps maps) {
  auto& shared = *reinterpret_cast<Shared<KV, D>*>(dynamic_smem());
  load_header(params.plan, &shared.header, threadIdx.x);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages<KV, D>; ++i) {
      ptx::mbarrier_init(&shared.full[i], kGroup);
      ptx::mbarrier_init(&shared.empty[i], 4 * kConsumers);
    }
    for (int i = 0; i < Tile<D>::kQBuffers; ++i) {
      ptx::mbarrier_init(&shared.q_full[i], 2 * kGroup);
      ptx::mbarrier_init(&shared.q_empty[i], 4 * kConsumers);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x < kGroup) {
    ptx::reg_dealloc<kProducerRegisters>();
    Producer<T, KV, D>(params, maps, shared).run();
  } else {
    ptx::reg_alloc<kConsumerRegisters>();
    Consumer<T, KV, D>(params, shared).run();
  }
}

}  // namespace ttc::sm90
