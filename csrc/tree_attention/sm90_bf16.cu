#include "tree_attention/sm90_instances.cuh"

template cudaError_t ttc::sm90::launch<__nv_bfloat16>(const TreeAttentionCudaParams&, EncodeTiled, int, cudaStream_t);
