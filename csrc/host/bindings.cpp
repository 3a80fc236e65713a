// The pybind11 module ttc_kernels._host: page pool and planner. It knows no torch.
#include <pybind11/pybind11.h>

void bind_pool(pybind11::module_& m);
void bind_planner(pybind11::module_& m);

PYBIND11_MODULE(_host, m) {
  m.doc() = "Page pool, branches and the tree planner.";
  bind_pool(m);
  bind_planner(m);
}
