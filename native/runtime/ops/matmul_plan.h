// How a backend over a vendor's GEMM takes a matmul: in one call, or tile by tile through copies in the workspace.
// Here, so that the runtime (and meta) asks for exactly the bytes that the backend uses.
#ifndef LONGSEQ_RUNTIME_OPS_MATMUL_PLAN_H
#define LONGSEQ_RUNTIME_OPS_MATMUL_PLAN_H

#include <algorithm>
#include <cstdint>

#include "longseq/backend.h"

namespace longseq {

// What cuBLASLt gets for itself: NVIDIA's advice for Hopper, and what PyTorch gives it.
constexpr int64_t kGemmWorkspace = int64_t{32} << 20;
// Sides of a tile where operands must be copied: 64 MiB of float32, and large enough for the full rate.
constexpr int64_t kGemmTile = 4096;

struct MatmulPlan {
  bool direct = false;      // operands as they lie; else tiles
  bool transposed = false;  // c's columns are contiguous, not its rows: c^T = b^T a^T
  // Where tiles: of a and b in the workspace (0: used as it lies), and the float32 sums.
  int64_t m = 0, n = 0, k = 0;
  bool copy_a = false, copy_b = false;
  int32_t dtype = LS_F32;  // of the tiles of a and b
  // Of one float32 operand beside a bfloat16 one: x = sum of so many bfloat16 parts, a product each. Three parts are
  // all of x; two (to 2^-17) do where c is bfloat16.
  int parts = 1;
  int64_t a_bytes = 0, b_bytes = 0, c_bytes = 0, bias_bytes = 0;
  int64_t workspace() const { return kGemmWorkspace + a_bytes + b_bytes + c_bytes + bias_bytes; }
};

// Whether rows of the last two dims are contiguous (or columns, where `along` is the row dim) and do not overlap.
inline bool gemm_lies_along(const ls_tensor &x, bool rows) {
  const int32_t last = x.ndim - 1;
  const int64_t height = x.sizes[last - 1], width = x.sizes[last];
  const int64_t down = x.strides[last - 1], across = x.strides[last];
  return rows ? (width <= 1 || across == 1) && (height <= 1 || down >= std::max<int64_t>(width, 1))
              : (height <= 1 || down == 1) && (width <= 1 || across >= std::max<int64_t>(height, 1));
}

inline MatmulPlan plan_matmul(const ls_matmul_args &args) {
  MatmulPlan plan;
  const ls_tensor &a = args.a, &b = args.b, &c = args.c;
  const int32_t last = c.ndim - 1;
  const int64_t m = c.sizes[last - 1], n = c.sizes[last], k = a.sizes[last];
  const auto round = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
  const bool usable_a = gemm_lies_along(a, true) || gemm_lies_along(a, false);
  const bool usable_b = gemm_lies_along(b, true) || gemm_lies_along(b, false);
  const bool rows = gemm_lies_along(c, true), columns = gemm_lies_along(c, false);
  plan.direct = a.dtype == b.dtype && (c.dtype == LS_F32 || a.dtype == LS_BF16) && usable_a && usable_b &&
                (rows || (columns && !args.bias.present)) && k > 0;
  plan.transposed = !rows;
  if (plan.direct) {
    if (args.bias.present && (args.bias.dtype != c.dtype || (args.bias.strides[0] != 1 && n > 1)))
      plan.bias_bytes = round(n * (c.dtype == LS_BF16 ? 2 : 4));
    return plan;
  }
  const bool mixed = a.dtype != b.dtype;
  plan.dtype = mixed ? LS_BF16 : a.dtype;
  plan.parts = !mixed ? 1 : c.dtype == LS_BF16 ? 2 : 3;
  plan.m = std::min(m, kGemmTile);
  plan.n = std::min(n, kGemmTile);
  plan.k = std::min(k, kGemmTile);
  plan.copy_a = !usable_a || a.dtype != plan.dtype;
  plan.copy_b = !usable_b || b.dtype != plan.dtype;
  const int64_t element = plan.dtype == LS_BF16 ? 2 : 4;
  if (plan.copy_a) plan.a_bytes = round(plan.m * plan.k * element);
  if (plan.copy_b) plan.b_bytes = round(plan.k * plan.n * element);
  plan.c_bytes = round(plan.m * plan.n * 4);
  return plan;
}

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_OPS_MATMUL_PLAN_H
