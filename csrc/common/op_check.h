// What the op.cpp files share: argument checks with values in them, and torch's threads.
//
// A failed check throws std::invalid_argument, which reaches Python as ValueError.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include "common/convert.h"
#include "common/parallel.h"

namespace ttc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void torch_parallel_for(int64_t begin, int64_t end, int64_t grain, const RangeFn& fn) {
  torch::stable::parallel_for(begin, end, grain, fn);
}

template <typename... Parts>
void require(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// What messages say of a tensor; put into words where one is written, not at every check.
struct DeviceName {
  const Tensor* tensor;  // null: the CPU's

  // "cpu" or "cuda:0"
  friend std::ostream& operator<<(std::ostream& out, const DeviceName& name) {
    if (name.tensor == nullptr || name.tensor->is_cpu()) return out << "cpu";
    return out << (name.tensor->is_cuda() ? "cuda:" : "device ") << name.tensor->get_device_index();
  }
};

inline DeviceName device_name(const Tensor& tensor) { return {&tensor}; }

struct Description {
  const Tensor& tensor;

  // "[3, 4] int32 on cpu"
  friend std::ostream& operator<<(std::ostream& out, const Description& description) {
    const Tensor& tensor = description.tensor;
    out << "[";
    for (int64_t i = 0; i < tensor.dim(); ++i) out << (i > 0 ? ", " : "") << tensor.size(i);
    return out << "] " << torch::headeronly::toString(tensor.scalar_type()) << " on " << device_name(tensor);
  }
};

inline Description describe(const Tensor& tensor) { return {tensor}; }

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() ? b.is_cpu() : a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline constexpr int64_t kAnySize = -1;

// "merge_states: lses must be a contiguous [2, 5, 8] Float tensor on cpu, got ...". On a GPU `like`
// gives the device.
inline void require_tensor(const char* op, const char* name, const Tensor& tensor, ScalarType dtype,
                           std::initializer_list<int64_t> shape, const Tensor* like = nullptr) {
  bool ok = (like ? same_device(tensor, *like) : tensor.is_cpu()) && tensor.scalar_type() == dtype && tensor.is_contiguous() &&
            tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t dim = 0;
  for (const int64_t size : shape) {
    ok = ok && (size == kAnySize || tensor.size(dim) == size);
    ++dim;
  }
  if (ok) return;
  std::string expected;
  for (const int64_t size : shape) {
    expected += expected.empty() ? "" : ", ";
    expected += size == kAnySize ? "any" : std::to_string(size);
  }
  require(false, op, ": ", name, " must be a contiguous [", expected, "] ", torch::headeronly::toString(dtype),
          " tensor on ", DeviceName{like}, ", got ", describe(tensor));
}

inline Dtype float_dtype(const char* op, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Half: return Dtype::kFloat16;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    default:
      require(false, op, ": ", name, " must be float32, float16 or bfloat16, got ",
              describe(tensor));
      return Dtype::kFloat32;
  }
}

}  // namespace ttc
