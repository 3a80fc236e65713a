#include "verify/row_ops.cuh"

#include "verify/children.cuh"
#include "verify/launch.h"
#include "verify/row_launch.cuh"

namespace ttc {

namespace {

template <class Scratch, int kThreads = kRowThreads, class Kernel, class... Args>
cudaError_t launch_rows(Kernel kernel, const LogitRows& logits, cudaStream_t stream, const Args&... args) {
  const dim3 grid(static_cast<unsigned>(logits.num_rows)), block(row_threads(logits.vocab_size, kThreads));
  return launch_kernel(kernel, grid, block, sizeof(Scratch), stream, args...);
}

}  // namespace

cudaError_t row_descriptor_cuda(const RowDescriptorParams& p, cudaStream_t stream) {
  return launch_rows<SelectScratch>(row_descriptor_kernel, p.logits, stream, p);
}

cudaError_t sample_tokens_cuda(const SampleTokensParams& p, cudaStream_t stream) {
  return launch_rows<ReduceScratch>(sample_tokens_kernel, p.logits, stream, p);
}

cudaError_t draw_nodes_cuda(const VerifyParams& p, int32_t* drawn, cudaStream_t stream) {
  return launch_rows<ReduceScratch>(draw_nodes_kernel, p.logits, stream, p, drawn);
}

cudaError_t sample_children_cuda(const SampleChildrenParams& p, cudaStream_t stream) {
  return launch_rows<ChildScratch, kChildThreads>(sample_children_kernel, p.logits, stream, p);
}

cudaError_t token_logprobs_cuda(const TokenLogprobsParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.count)), block(row_threads(p.logits.vocab_size, kRowThreads));
  return launch_kernel(token_logprobs_kernel, grid, block, sizeof(ReduceScratch), stream, p);
}

}  // namespace ttc
