// plan_tree_attention for Python: numpy in, one int32 buffer and a dict of statistics out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "host/planner.h"

namespace py = pybind11;
using IntArray = py::array_t<int32_t, py::array::c_style>;

namespace {

py::dict stats_dict(const ttc::PlanStats& s) {
  py::dict d;
  d["unique_kv_tokens"] = s.unique_kv_tokens;
  d["path_kv_tokens"] = s.path_kv_tokens;
  d["work_items"] = s.work_items;
  d["partials"] = s.partials;
  d["trie_nodes"] = s.trie_nodes;
  d["rectangles"] = s.cut_nodes;
  d["kv_bytes"] = s.kv_bytes;
  d["kv_bytes_read"] = s.kv_bytes_read;
  d["partial_bytes"] = s.partial_bytes;
  d["flops"] = s.flops;
  d["decision"] = s.decision;
  return d;
}

// One row's table, kept alive by the caller's array.
void set_table(ttc::PlanRow& row, const IntArray& table, int64_t index, bool is_matrix) {
  row.num_table_pages = is_matrix ? table.shape(1) : table.shape(0);
  row.pages = table.data() + (is_matrix ? index * row.num_table_pages : 0);
}

py::tuple plan(const py::object& block_tables, const IntArray& kv_lens, const IntArray& q_lens,
               const std::optional<IntArray>& reserved_lens,
               const std::vector<std::optional<IntArray>>& draft_parents, const ttc::PlanOptions& options) {
  const int64_t n = kv_lens.shape(0);
  std::vector<ttc::PlanRow> rows(n);
  const bool is_matrix = py::isinstance<py::array>(block_tables);
  std::vector<IntArray> tables;
  if (is_matrix)
    tables.push_back(block_tables.cast<IntArray>());
  else
    for (const py::handle t : block_tables) tables.push_back(t.cast<IntArray>());
  for (int64_t i = 0; i < n; ++i) {
    set_table(rows[i], tables[is_matrix ? 0 : i], i, is_matrix);
    rows[i].kv_len = kv_lens.data()[i];
    rows[i].q_len = q_lens.data()[i];
    rows[i].reserved_len = reserved_lens ? reserved_lens->data()[i] : -1;
    rows[i].draft_parents = nullptr;
    if (!draft_parents.empty() && draft_parents[i]) rows[i].draft_parents = draft_parents[i]->data();
  }
  ttc::Plan result;
  {
    const py::gil_scoped_release unlocked;
    result = ttc::make_plan(std::move(rows), options);
  }
  IntArray buffer(py::ssize_t(result.buffer.size()), result.buffer.data());
  IntArray reserved(py::ssize_t(result.reserved_lens.size()), result.reserved_lens.data());
  return py::make_tuple(buffer, reserved, stats_dict(result.stats));
}

}  // namespace

void bind_planner(py::module_& m) {
  m.attr("DETERMINISTIC_CHUNK") = ttc::kDeterministicChunk;
  m.def(
      "plan",
      [](const py::object& block_tables, const IntArray& kv_lens, const IntArray& q_lens,
         const std::optional<IntArray>& reserved_lens, const std::vector<std::optional<IntArray>>& draft_parents, int64_t page_size, int64_t num_q_heads,
         int64_t num_kv_heads, int64_t head_dim, int64_t element_bytes, int64_t window_left,
         bool deterministic, int64_t num_workers) {
        return plan(block_tables, kv_lens, q_lens, reserved_lens, draft_parents,
                    {page_size, num_q_heads, num_kv_heads, head_dim, element_bytes, window_left,
                     deterministic, num_workers});
      },
      "Plans tree attention; returns (buffer int32, reserved lengths int32, stats). "
      "Arguments are checked for shape by ttc_kernels.plan_tree_attention.",
      py::arg("block_tables"), py::arg("kv_lens"), py::arg("q_lens"), py::arg("reserved_lens"),
      py::arg("draft_parents"), py::kw_only(),
      py::arg("page_size"), py::arg("num_q_heads"), py::arg("num_kv_heads"), py::arg("head_dim"),
      py::arg("element_bytes"), py::arg("window_left"), py::arg("deterministic"), py::arg("num_workers"));
}
