#include "kv_cache/launch.h"

#include <algorithm>

#include "common/cuda_launch.cuh"
#include "kv_cache/moves.cuh"
#include "kv_cache/write_kv.cuh"

namespace ttc {

namespace {

bool divides(int64_t unit, std::initializer_list<int64_t> values) {
  return std::all_of(values.begin(), values.end(), [&](int64_t value) { return value % unit == 0; });
}

int64_t address(const void* data) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(data)); }

unsigned blocks(int64_t work, int64_t to_a_block) { return static_cast<unsigned>((work + to_a_block - 1) / to_a_block); }

// `pieces` threads and more to a token, as many tokens as fit into a block.
template <class Kernel>
cudaError_t launch_write(Kernel kernel, const WriteKvParams& p, int64_t pieces, cudaStream_t stream) {
  unsigned columns = 1;
  while (columns < kWriteThreads && columns < p.num_kv_heads * pieces) columns *= 2;
  const dim3 block(columns, kWriteThreads / columns);
  return launch_kernel(kernel, dim3(blocks(p.num_tokens, block.y), 2), block, 0, stream, p);
}

template <class T, bool kToE4m3>
cudaError_t launch_convert(const WriteKvParams& p, bool aligned, cudaStream_t stream) {
  constexpr int kPiece = kToE4m3 ? 16 : 16 / sizeof(T);
  // Rotated or not, a piece lies in one half of the pairs or outside.
  const bool whole = aligned && divides(16, {address(p.rope.cos_sin)}) && divides(kPiece, {p.head_dim, p.rope.dim / 2});
  return whole ? launch_write(write_kv_convert_kernel<T, kToE4m3, kPiece>, p, p.head_dim / kPiece, stream)
               : launch_write(write_kv_convert_kernel<T, kToE4m3, 1>, p, p.head_dim, stream);
}

}  // namespace

cudaError_t write_kv_cuda(const WriteKvParams& p, cudaStream_t stream) {
  const int64_t head_bytes = p.head_dim * dtype_bytes(p.dtype);
  const bool aligned =
      divides(16, {address(p.k.data), address(p.v.data), address(p.k_cache), address(p.v_cache), p.k.token_stride,
                   p.k.head_stride, p.v.token_stride, p.v.head_stride});
  if (!p.to_e4m3 && p.rope.positions == nullptr) {
    return aligned && head_bytes % 16 == 0
               ? launch_write(write_kv_copy_kernel<uint4>, p, head_bytes / 16, stream)
               : launch_write(write_kv_copy_kernel<uint16_t>, p, head_bytes / 2, stream);
  }
  switch (p.dtype) {
    case Dtype::kFloat32:
      return p.to_e4m3 ? launch_convert<float, true>(p, aligned, stream) : launch_convert<float, false>(p, aligned, stream);
    case Dtype::kFloat16:
      return p.to_e4m3 ? launch_convert<__half, true>(p, aligned, stream)
                       : launch_convert<__half, false>(p, aligned, stream);
    case Dtype::kBFloat16:
      return p.to_e4m3 ? launch_convert<__nv_bfloat16, true>(p, aligned, stream)
                       : launch_convert<__nv_bfloat16, false>(p, aligned, stream);
  }
  return cudaErrorInvalidValue;
}

namespace {

// Calls run(Piece(), caches, how many), in groups that fit into a kernel's parameters.
template <class Run>
cudaError_t for_caches(const std::vector<char*>& caches, int64_t token_bytes, const Run& run) {
  int64_t all = token_bytes;
  for (const char* cache : caches) all |= address(cache);
  for (size_t begin = 0; begin < caches.size(); begin += kCachesAtOnce) {
    const size_t count = std::min<size_t>(kCachesAtOnce, caches.size() - begin);
    CacheTable table;
    std::copy_n(caches.begin() + begin, count, table.caches);
    const auto status = all % 16 == 0  ? run(uint4(), table, count)
                        : all % 2 == 0 ? run(uint16_t(), table, count)
                                       : run(uint8_t(), table, count);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t copy_pages_cuda(const CopyPagesParams& p, cudaStream_t stream) {
  if (p.num_copies == 0) return cudaSuccess;
  return for_caches(p.caches, p.token_bytes, [&](auto piece, const CacheTable& table, size_t count) {
    const int64_t token_pieces = p.token_bytes / sizeof(piece);
    const CopyPagesArgs args{table, p.copies, p.num_copies, p.page_size, token_pieces};
    const dim3 grid(blocks(p.page_size * token_pieces, kCopyThreads), count);
    return launch_kernel(copy_pages_kernel<decltype(piece)>, grid, dim3(kCopyThreads), 0, stream, args);
  });
}

cudaError_t commit_kv_cuda(const CommitKvParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0) return cudaSuccess;
  return for_caches(p.caches, p.token_bytes, [&](auto piece, const CacheTable& table, size_t count) {
    const int64_t token_pieces = p.token_bytes / sizeof(piece);
    const CommitKvArgs args{table, p.src_slots, p.dst_slots, p.num_tokens, token_pieces};
    const dim3 grid(blocks(token_pieces, kCommitPieces), count), block(kCommitPieces, kCommitTokens);
    return launch_kernel(commit_kv_kernel<decltype(piece)>, grid, block, 0, stream, args);
  });
}

}  // namespace ttc
