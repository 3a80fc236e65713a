#include "tree_attention/sm90_instances.cuh"

template cudaError_t ttc::sm90::launch<__half>(const TreeAttentionCudaParams&, EncodeTiled, int, cudaStream_t);
