// The float types of tensors.
#pragma once

#include <cstdint>

namespace ttc {

enum class Dtype { kFloat32, kFloat16, kBFloat16 };

inline constexpr int64_t dtype_bytes(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

}  // namespace ttc
