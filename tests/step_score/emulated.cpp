// The CUDA kernels of csrc/step_score in the emulator, launched as on a GPU.
#include "cuda_emulator.h"
#include "step_score/launch.cu"

namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error("the launch failed");
}

// sizes: hidden dtype, bytes between tokens, tokens, steps, width, kind, dtype and rows of the layers.
ttc::ScoreStepsParams score_params(const char* hidden, const int32_t* rows, const void* w1, const float* b1,
                                   const void* w2, const float* b2, const float* good, const float* gain, double eps,
                                   float* scores, const int64_t* sizes) {
  ttc::ScoreStepsParams p{};
  p.hidden = hidden;
  p.hidden_dtype = static_cast<ttc::Dtype>(sizes[0]);
  p.hidden_stride = sizes[1];
  p.num_tokens = sizes[2];
  p.rows = rows;
  p.num_steps = sizes[3];
  p.width = sizes[4];
  p.kind = static_cast<ttc::HeadKind>(sizes[5]);
  p.layers[0] = {w1, static_cast<ttc::Dtype>(sizes[6]), sizes[7], p.width};
  p.layers[1] = {w2, static_cast<ttc::Dtype>(sizes[8]), 2, sizes[7]};
  p.biases[0] = b1;
  p.biases[1] = b2;
  p.good = good;
  p.norm_weight = gain;
  p.norm_eps = static_cast<float>(eps);
  p.scores = scores;
  return p;
}

}  // namespace

extern "C" {

const char* workspace(int64_t* floats_and_ints, int64_t num_steps, int64_t outputs) {
  return emu::guarded([&] {
    ttc::ScoreStepsParams p{};
    p.num_steps = num_steps;
    p.layers[0].rows = outputs;
    const ttc::ScoreWorkspace room = ttc::score_workspace(p);
    floats_and_ints[0] = room.floats;
    floats_and_ints[1] = room.ints;
  });
}

const char* score_steps(const char* hidden, const int32_t* rows, const void* w1, const float* b1, const void* w2,
                        const float* b2, const float* good, const float* gain, double eps, float* scores,
                        const int64_t* sizes, float* floats, int32_t* ints) {
  return emu::guarded([&] {
    const auto p = score_params(hidden, rows, w1, b1, w2, b2, good, gain, eps, scores, sizes);
    check(ttc::score_steps_cuda(p, floats, ints, nullptr));
  });
}

const char* aggregate_steps(const float* scores, const int32_t* parent, const float* carry_stats,
                            const int64_t* carry_state, int64_t carried, float* stats, int64_t* state, int64_t count) {
  return emu::guarded([&] {
    check(ttc::aggregate_steps_cuda({scores, parent, carry_stats, carry_state, carried, {stats, state, count}}, nullptr));
  });
}

const char* select_topk(const float* scores, int64_t num_scores, const int32_t* groups, int64_t num_groups, int64_t k,
                        int32_t* selected) {
  return emu::guarded(
      [&] { check(ttc::select_topk_cuda({scores, num_scores, groups, num_groups, k, selected}, nullptr)); });
}

const char* score_round(const char* hidden, const int32_t* rows, const void* w1, const float* b1, const void* w2,
                        const float* b2, const float* good, const float* gain, double eps, float* scores,
                        const int64_t* sizes, float* floats, int32_t* ints, const int32_t* parent,
                        const float* carry_stats, const int64_t* carry_state, int64_t carried, float* stats,
                        int64_t* state, const int32_t* groups, int64_t num_groups, int64_t k, int64_t by,
                        int32_t* selected) {
  return emu::guarded([&] {
    const auto p = score_params(hidden, rows, w1, b1, w2, b2, good, gain, eps, scores, sizes);
    check(ttc::score_round_cuda(
        p, {scores, parent, carry_stats, carry_state, carried, {stats, state, p.num_steps}},
        {stats + by * p.num_steps, p.num_steps, groups, num_groups, k, selected}, floats, ints, nullptr));
  });
}
}
