// Python classes of the page pool.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "host/page_pool.h"

namespace py = pybind11;
using ttc::Branch;
using ttc::OutOfPages;
using ttc::PageCopy;
using ttc::PagePool;

namespace {

using Int32Array = py::array_t<int32_t>;

Int32Array to_array(const std::vector<int32_t>& values) {
  return Int32Array(static_cast<py::ssize_t>(values.size()), values.data());
}

// pybind11 turns None into a null pointer.
void check_branches(const std::vector<Branch*>& branches, const char* op) {
  for (const Branch* branch : branches) {
    if (branch == nullptr) {
      throw py::type_error(std::string(op) + ": branches must hold Branch objects, got None");
    }
  }
}

Int32Array take_copies(PagePool& pool) {
  static_assert(sizeof(PageCopy) == 3 * sizeof(int32_t));
  const std::vector<PageCopy> copies = pool.take_copies();
  Int32Array out({static_cast<py::ssize_t>(copies.size()), py::ssize_t{3}});
  if (!copies.empty()) std::memcpy(out.mutable_data(), copies.data(), out.nbytes());
  return out;
}

Int32Array block_tables(const PagePool& pool, const std::vector<Branch*>& branches) {
  check_branches(branches, "PagePool.block_tables");
  int64_t max_pages = 0;
  const std::vector<int32_t> tables = pool.block_tables(branches, &max_pages);
  Int32Array out({static_cast<py::ssize_t>(branches.size()), static_cast<py::ssize_t>(max_pages)});
  if (!tables.empty()) std::memcpy(out.mutable_data(), tables.data(), out.nbytes());
  return out;
}

}  // namespace

void bind_pool(py::module_& m) {
  py::register_exception<OutOfPages>(m, "OutOfPages", PyExc_RuntimeError).doc() =
      "The pool has fewer free pages than were asked for; pool and branches are unchanged.";

  py::class_<Branch>(m, "Branch", R"(A sequence of tokens in a PagePool, as a list of pages.

Made by PagePool.new_branch() and Branch.fork(). A branch keeps its pool alive and frees itself when
it is garbage collected. Any use of a freed branch raises ValueError.)")
      .def_property_readonly("length", &Branch::length, "Number of tokens.")
      .def_property_readonly(
          "pages", [](const Branch& branch) { return to_array(branch.pages()); },
          "int32[ceil(length / page_size)]: page i holds tokens [i*page_size, (i+1)*page_size).")
      .def("fork", &Branch::fork, py::arg("n"), R"(n new branches with the same tokens and pages.

No token is copied now: the first append into a shared, partly filled page queues a copy of it.

Raises ValueError if n is negative or the branch was freed.)")
      .def(
          "append",
          [](Branch& branch, int64_t n_tokens) { return to_array(branch.append(n_tokens)); },
          py::arg("n_tokens"), R"(Makes room for n_tokens more tokens.

Returns int32[n_tokens], the slots (page * page_size + offset) of their K and V. Run the copies of
PagePool.take_copies() before writing to them.

Raises OutOfPages, and changes nothing, if the pool has too few free pages; ValueError if n_tokens
is negative or the branch was freed.

>>> branch = PagePool(num_pages=4, page_size=2).new_branch()
>>> branch.append(3).tolist(), branch.pages.tolist()
([0, 1, 2], [0, 1]))")
      .def("truncate", &Branch::truncate, py::arg("length"),
           R"(Forgets the tokens from `length` on and gives their pages back.

Raises ValueError unless 0 <= length <= Branch.length.)")
      .def("free", &Branch::free, "Gives all pages back; any later use raises ValueError.")
      .def("__repr__", &Branch::describe);

  py::class_<PagePool, std::shared_ptr<PagePool>>(m, "PagePool",
                                                  R"(Reference-counted KV pages, shared by branches.

num_pages: pages in the caches. page_size: tokens in a page. Their product must be below 2^31.

Forks share all pages, the half-full last one too; the first append into a shared last page copies
it. Raises ValueError on sizes below 1 or too large. Not thread-safe.

>>> pool = PagePool(num_pages=8, page_size=4)
>>> prompt = pool.new_branch(); slots = prompt.append(6)
>>> left, right = prompt.fork(2); slots = left.append(1)
>>> pool.take_copies().tolist()
[[1, 2, 2]])")
      .def(py::init(&PagePool::create), py::arg("num_pages"), py::arg("page_size") = 16)
      .def_property_readonly("num_pages", &PagePool::num_pages, "Pages in the pool.")
      .def_property_readonly("page_size", &PagePool::page_size, "Tokens in a page.")
      .def_property_readonly("num_free", &PagePool::num_free, "Pages that can be handed out now.")
      .def("new_branch", &PagePool::new_branch, "A branch without tokens.")
      .def(
          "append_all",
          [](PagePool& pool, const std::vector<Branch*>& branches, int64_t n_tokens) {
            check_branches(branches, "PagePool.append_all");
            return to_array(pool.append_all(branches, n_tokens));
          },
          py::arg("branches"), py::arg("n_tokens") = 1,
          R"(Branch.append(n_tokens) for each of `branches`, or for none of them.

Returns int32[len(branches) * n_tokens], the slots, branch by branch.

Raises OutOfPages, and changes nothing, if there are too few pages for all; ValueError if a branch
is given twice, was freed, or belongs to another pool.)")
      .def("block_tables", &block_tables, py::arg("branches"),
           R"(int32[len(branches), max_pages]: the pages of each branch, then -1.

Raises ValueError if a branch was freed or belongs to another pool.)")
      .def("take_copies", &take_copies, R"(Hands out the page copies queued since the last call.

Returns int32[C, 3] of (src_page, dst_page, num_tokens), to be run in this order (copy_pages does)
before anything else is written to the caches. Copies into pages freed meanwhile are left out.)")
      .def("check_integrity", &PagePool::check_integrity,
           "Recounts all references; raises RuntimeError with the values if one is wrong.")
      .def("__repr__", [](const PagePool& pool) {
        return "PagePool(num_pages=" + std::to_string(pool.num_pages()) +
               ", page_size=" + std::to_string(pool.page_size()) +
               ", num_free=" + std::to_string(pool.num_free()) + ")";
      });
}
