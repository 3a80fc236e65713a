// The planner for Python: numpy arrays in; the buffer comes from a callback, statistics go out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>

#include "host/check.h"
#include "host/cut.h"
#include "host/planner.h"
#include "host/queries.h"

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
  d["rectangles"] = s.rectangles;
  d["kv_bytes"] = s.kv_bytes;
  d["kv_bytes_read"] = s.kv_bytes_read;
  d["partial_bytes"] = s.partial_bytes;
  d["flops"] = s.flops;
  d["modelled_us"] = s.modelled_us;
  d["floor_us"] = s.floor_us;
  d["decision"] = s.decision;
  return d;
}

bool is_int32_vector(const py::handle& x) {
  if (!py::isinstance<py::array>(x)) return false;
  const auto a = py::reinterpret_borrow<py::array>(x);
  return a.ndim() == 1 && IntArray::check_(a);
}

// The tables' pointers stay valid as long as `block_tables` does.
std::vector<ttc::PlanRow> make_rows(const py::object& block_tables, const IntArray& kv_lens, const IntArray& q_lens,
                                    const std::optional<IntArray>& reserved_lens,
                                    const std::vector<std::optional<IntArray>>& draft_parents) {
  const int64_t n = kv_lens.shape(0);
  std::vector<ttc::PlanRow> rows(n);
  if (py::isinstance<py::array>(block_tables)) {
    const auto matrix = py::reinterpret_borrow<IntArray>(block_tables);
    for (int64_t i = 0; i < n; ++i) {
      rows[i].num_table_pages = matrix.shape(1);
      rows[i].pages = matrix.data() + i * matrix.shape(1);
    }
  } else {
    const auto list = py::reinterpret_borrow<py::sequence>(block_tables);
    for (int64_t i = 0; i < n; ++i) {
      const auto table = py::reinterpret_borrow<IntArray>(list[i]);
      rows[i].num_table_pages = table.shape(0);
      rows[i].pages = table.data();
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    rows[i].kv_len = kv_lens.data()[i];
    rows[i].q_len = q_lens.data()[i];
    rows[i].reserved_len = reserved_lens ? reserved_lens->data()[i] : ttc::kDefaultReserve;
    rows[i].draft_parents = draft_parents.empty() || !draft_parents[i] ? nullptr : draft_parents[i]->data();
  }
  return rows;
}

py::tuple plan(const ttc::PlanOptions& options, const py::object& block_tables, const IntArray& kv_lens,
               const IntArray& q_lens, const std::optional<IntArray>& reserved_lens,
               const std::vector<std::optional<IntArray>>& draft_parents, const py::function& allocate) {
  std::vector<ttc::PlanRow> rows = make_rows(block_tables, kv_lens, q_lens, reserved_lens, draft_parents);
  ttc::PlanStats stats;
  IntArray buffer;  // keeps what the planner writes to
  {
    const py::gil_scoped_release unlocked;
    stats = ttc::make_plan(rows, options, [&](const ttc::PlanSize& s) {
      const py::gil_scoped_acquire locked;
      buffer = allocate(s.rows, s.queries, s.ints, s.partials).cast<IntArray>();
      if (buffer.size() < s.ints) throw std::length_error("plan: allocate returned too short an array");
      return buffer.mutable_data();
    });
  }
  IntArray reserved(py::ssize_t(rows.size()));
  for (size_t i = 0; i < rows.size(); ++i) reserved.mutable_data()[i] = int32_t(rows[i].reserved_len);
  return py::make_tuple(reserved, stats_dict(stats));
}

// The cut alone, for tests: (rectangles int32 [n, 4] over `order`, order, nodes int32 [m, 6], costs).
py::tuple cut(const ttc::PlanOptions& options, const py::object& block_tables, const IntArray& kv_lens,
              const IntArray& q_lens) {
  std::vector<ttc::PlanRow> rows = make_rows(block_tables, kv_lens, q_lens, std::nullopt, {});
  for (size_t i = 0; i < rows.size(); ++i) ttc::prepare_row(rows[i], int64_t(i), options);
  ttc::Scratch scratch;
  const ttc::Trie trie = ttc::build_trie(rows, scratch.memory());
  const ttc::Queries queries(trie, rows, scratch.memory());
  ttc::CutCosts costs{};
  const auto cut = options.fold ? ttc::cut_folded : ttc::cut_by_cost;
  const auto rectangles = cut(trie, queries.row_ptr, options, costs, scratch.memory());
  const auto matrix = [](const auto& rows_of_ints, int64_t columns) {
    IntArray out({py::ssize_t(rows_of_ints.size()), py::ssize_t(columns)});
    if (!rows_of_ints.empty()) std::memcpy(out.mutable_data(), rows_of_ints.data(), size_t(out.nbytes()));
    return out;
  };
  return py::make_tuple(matrix(rectangles, 4), IntArray(py::ssize_t(trie.order.size()), trie.order.data()),
                        matrix(trie.nodes, 6), py::make_tuple(costs.best, costs.per_node, costs.unshared));
}

ttc::PlanOptions make_options(int64_t page_size, int64_t num_q_heads, int64_t num_kv_heads, int64_t head_dim,
                              int64_t element_bytes, int64_t window_left, int64_t chunk, bool fold, int64_t num_workers,
                              int64_t max_tile_rows, int64_t fixed_tile_rows, const py::dict& cost) {
  const auto number = [&](const char* name) { return cost[name].cast<double>(); };
  ttc::PlanOptions o{page_size, num_q_heads, num_kv_heads, head_dim, element_bytes, window_left, chunk,
                     fold,      num_workers, {},           {}};
  ttc::check_options(o);
  const int64_t group = num_q_heads / num_kv_heads;
  const int64_t tile_rows = fixed_tile_rows ? fixed_tile_rows : max_tile_rows;
  o.tiling = {int32_t(group), int32_t(std::max<int64_t>(1, tile_rows / group)), int32_t(fixed_tile_rows)};
  o.cost = {number("launch"),
            number("item"),
            number("row"),
            number("token"),
            number("token_again"),
            number("row_token"),
            number("partial"),
            number("bytes_per_ns"),
            number("flops_per_ns"),
            cost["row_quantum"].cast<int32_t>(),
            cost["key_quantum"].cast<int32_t>()};
  return o;
}

}  // namespace

void bind_planner(py::module_& m) {
  m.def(
      "is_int32_vectors",
      [](const py::sequence& items) {
        for (const py::handle x : items)
          if (!is_int32_vector(x)) return false;
        return true;
      },
      "Whether all items are contiguous int32 vectors.", py::arg("items"));
  py::class_<ttc::PlanOptions>(m, "PlanOptions", "What all plans of one TreeAttentionPlan have in common.")
      .def(py::init(&make_options), py::kw_only(), py::arg("page_size"), py::arg("num_q_heads"),
           py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("element_bytes"), py::arg("window_left"),
           py::arg("chunk"), py::arg("fold"), py::arg("num_workers"), py::arg("max_tile_rows"),
           py::arg("fixed_tile_rows"), py::arg("cost"))
      .def(
          "item_cost",
          [](const ttc::PlanOptions& o, int32_t queries, int64_t tokens, bool is_partial) {
            return ttc::ItemCost(o.cost, o.tiling, queries)(tokens, is_partial);
          },
          "Modelled nanoseconds of a rectangle, one worker, one KV head.", py::arg("queries"), py::arg("tokens"),
          py::arg("is_partial"));
  m.def("plan", &plan,
        "Plans tree attention into allocate(rows, queries, ints, partials), an int32 array; returns (reserved "
        "lengths, stats). Arrays are checked for type and shape by ttc_kernels.plan_tree_attention.",
        py::arg("options"), py::arg("block_tables"), py::arg("kv_lens"), py::arg("q_lens"), py::arg("reserved_lens"),
        py::arg("draft_parents"), py::arg("allocate"));
  m.def("cut", &cut,
        "The cheapest cut alone, before long rectangles are split: (rectangles, order, trie nodes, costs).",
        py::arg("options"), py::arg("block_tables"), py::arg("kv_lens"), py::arg("q_lens"));
}
