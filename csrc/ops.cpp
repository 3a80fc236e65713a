// Every op's schema, in one place. Each folder's op.cpp registers its CPU implementation.
#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ttc_kernels, m) {
  m.def(
      "write_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots, "
      "float k_scale=1.0, float v_scale=1.0, Tensor? k_scales=None, Tensor? v_scales=None, "
      "Tensor? positions=None, Tensor? cos_sin=None, bool interleaved=False) -> ()");
  m.def("copy_pages(Tensor(a!)[] k_caches, Tensor(b!)[] v_caches, Tensor copies) -> ()");
  m.def(
      "commit_kv(Tensor(a!)[] k_caches, Tensor(b!)[] v_caches, Tensor src_slots, Tensor dst_slots) "
      "-> ()");
  m.def(
      "tree_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor plan, Tensor(a!)? workspace, "
      "Tensor(b!)? counters, float sm_scale, float logits_soft_cap, float v_scale, Tensor? k_scales, "
      "Tensor? v_scales, Tensor(c!) out, Tensor(d!) lse) -> ()");
  m.def("tree_attention_cpu_isa(ScalarType dtype) -> str");
  m.def("merge_states(Tensor outs, Tensor lses) -> (Tensor, Tensor)");
  m.def(
      "score_steps(Tensor hidden, Tensor rows, str kind, Tensor[] weights, Tensor? norm_weight, "
      "float norm_eps) -> Tensor");
  m.def(
      "aggregate_steps(Tensor scores, Tensor parent, Tensor? carry_stats, Tensor? carry_state) "
      "-> (Tensor, Tensor)");
  m.def("select_topk(Tensor scores, Tensor group_indptr, int k) -> Tensor");
  m.def(
      "score_round(Tensor hidden, Tensor rows, str kind, Tensor[] weights, Tensor? norm_weight, "
      "float norm_eps, Tensor parent, Tensor? carry_stats, Tensor? carry_state, "
      "Tensor group_indptr, int k, int by) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "row_descriptor(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, "
      "Tensor? bitmask=None) -> Tensor");
  m.def(
      "sample_tokens(Tensor logits, Tensor desc, Tensor seeds, Tensor positions, "
      "Tensor? bitmask=None) -> Tensor");
  m.def(
      "sample_children(Tensor logits, Tensor desc, int k, str mode, bool target_noise, Tensor seeds, "
      "Tensor positions, Tensor streams, Tensor? bitmask=None) -> (Tensor, Tensor, Tensor)");
  // The rules of verification share one op: they differ in the walk alone. `op` is the caller's name
  // for messages; desc is written where temperature is given.
  m.def(
      "verify(str op, str rule, Tensor logits, Tensor(a!) desc, Tensor? temperature, Tensor? top_k, "
      "Tensor? top_p, Tensor? min_p, Tensor? bitmask, Tensor tokens, Tensor? parent, "
      "Tensor cu_nodes, Tensor seeds, Tensor positions, Tensor? coins, Tensor? draft_logits, "
      "Tensor? draft_desc, Tensor? draft_ids, Tensor? draft_logprobs, Tensor? draft_rows, "
      "Tensor? proposals, float epsilon, float delta, Tensor(b!) num_accepted, "
      "Tensor(c!) out_tokens, Tensor(d!) path, Tensor(e!)? logprobs, Tensor(f!) status) -> ()");
  m.def(
      "token_logprobs(Tensor logits, Tensor desc, Tensor rows, Tensor tokens, bool raw, "
      "Tensor? bitmask=None) -> (Tensor, Tensor)");
}

// An empty Python module: importing it loads the library, whose static initialisers register the ops.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr,
                               nullptr,               nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
