#pragma once

#include <cuda_runtime_api.h>

#include "kv_cache/kv_cache.h"

namespace ttc {

cudaError_t write_kv_cuda(const WriteKvParams& params, cudaStream_t stream);
cudaError_t copy_pages_cuda(const CopyPagesParams& params, cudaStream_t stream);
cudaError_t commit_kv_cuda(const CommitKvParams& params, cudaStream_t stream);

}  // namespace ttc
