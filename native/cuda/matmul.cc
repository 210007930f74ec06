// Matrix product of the CUDA backend: one call of the library where it takes the operands as they lie, else tiles that
// are copied, cast or split into bfloat16 parts in the workspace (native/runtime/ops/matmul_plan.h decides).
//
// float32 is never rounded to TF32: a float32 product has the digits of the CPU's. A float32 operand beside a bfloat16
// one is split into bfloat16 parts, each of which the tensor cores multiply exactly.
#include <algorithm>

#include "entries.h"
#include "gemm.h"
#include "launch.h"
#include "runtime/ops/matmul_plan.h"

namespace longseq::cuda {

namespace {

Matrix matrix_of(const ls_tensor &x) {
  const int32_t last = x.ndim - 1;
  return {x.data, x.dtype, x.sizes[last - 1], x.sizes[last], x.strides[last - 1], x.strides[last]};
}

// The leading dims as two: outer and inner, sizes and strides.
struct Batch {
  int64_t outer = 1, inner = 1;
  int64_t a_outer = 0, a_inner = 0, b_outer = 0, b_inner = 0, c_outer = 0, c_inner = 0;
};

Batch batch_of(const ls_matmul_args &args) {
  Batch batch;
  const int32_t dims = args.c.ndim - 2;
  if (dims >= 1) {
    const int32_t d = dims - 1;
    batch.inner = args.c.sizes[d];
    batch.a_inner = args.a.strides[d];
    batch.b_inner = args.b.strides[d];
    batch.c_inner = args.c.strides[d];
  }
  if (dims == 2) {
    batch.outer = args.c.sizes[0];
    batch.a_outer = args.a.strides[0];
    batch.b_outer = args.b.strides[0];
    batch.c_outer = args.c.strides[0];
    // One dim of both, where each outer step is as long as all inner ones.
    if (batch.inner == 1 ||
        (batch.a_outer == batch.inner * batch.a_inner && batch.b_outer == batch.inner * batch.b_inner &&
         batch.c_outer == batch.inner * batch.c_inner)) {
      if (batch.inner == 1) {
        batch.a_inner = batch.a_outer;
        batch.b_inner = batch.b_outer;
        batch.c_inner = batch.c_outer;
      }
      batch.inner *= batch.outer;
      batch.outer = 1;
    }
  }
  return batch;
}

Matrix shifted(Matrix x, int64_t elements) {
  x.data = static_cast<char *>(x.data) + elements * element_bytes(x.dtype);
  return x;
}

// A row-major tile of the workspace.
Matrix tile_at(void *data, int32_t dtype, int64_t rows, int64_t columns) {
  return {data, dtype, rows, columns, columns, 1};
}

// c of one batch entry, tile by tile.
ls_status by_tiles(const ls_exec *exec, const MatmulPlan &plan, const Matrix &a, const Matrix &b, const Matrix &c,
                   const Matrix &bias, float alpha, bool accumulate, char *workspace) {
  char *const a_tile = workspace + kGemmWorkspace, *const b_tile = a_tile + plan.a_bytes,
              *const c_tile = b_tile + plan.b_bytes;
  const int64_t depth = a.columns;
  for (int64_t i = 0; i < c.rows; i += plan.m) {
    for (int64_t j = 0; j < c.columns; j += plan.n) {
      const int64_t m = std::min(plan.m, c.rows - i), n = std::min(plan.n, c.columns - j);
      Matrix sum = tile_at(c_tile, LS_F32, m, n);
      bool first = true;
      for (int64_t l = 0; l < depth; l += plan.k) {
        const int64_t k = std::min(plan.k, depth - l);
        const Matrix a_part = a.part(i, l, m, k), b_part = b.part(l, j, k, n);
        for (int part = 0; part < plan.parts; ++part) {
          Gemm g;
          g.a = plan.copy_a ? tile_at(a_tile, plan.dtype, m, k) : a_part;
          g.b = plan.copy_b ? tile_at(b_tile, plan.dtype, k, n) : b_part;
          // Only the float32 operand has parts; a copy of the other is made once.
          if (plan.copy_a && (part == 0 || a.dtype != plan.dtype)) LS_TRY(tile_part(exec, a_part, g.a, part));
          if (plan.copy_b && (part == 0 || b.dtype != plan.dtype)) LS_TRY(tile_part(exec, b_part, g.b, part));
          g.c = sum;
          g.alpha = alpha;
          g.accumulate = !first;
          g.workspace = workspace;
          g.workspace_bytes = kGemmWorkspace;
          LS_TRY(gemm(exec, g));
          first = false;
        }
      }
      if (first) sum.data = nullptr;
      Matrix bias_part = bias;
      if (bias.data) bias_part = bias.part(0, j, 1, n);
      LS_TRY(tile_finish(exec, sum, bias_part, c.part(i, j, m, n), accumulate));
    }
  }
  return LS_OK;
}

}  // namespace

ls_status matmul(const ls_exec *exec, const ls_matmul_args *args) {
  if (element_count(args->c) == 0) return LS_OK;
  const MatmulPlan plan = plan_matmul(*args);
  if (exec->workspace_bytes < plan.workspace())
    return fail(exec, LS_DEVICE_FAILURE, "%lld bytes of workspace, %lld are needed",
                static_cast<long long>(exec->workspace_bytes), static_cast<long long>(plan.workspace()));
  char *const workspace = static_cast<char *>(exec->workspace);
  const Matrix a = matrix_of(args->a), b = matrix_of(args->b), c = matrix_of(args->c);
  const Batch batch = batch_of(*args);
  Matrix bias;
  if (args->bias.present) bias = {args->bias.data, args->bias.dtype, 1, c.columns, 0, args->bias.strides[0]};
  const auto alpha = static_cast<float>(args->alpha);
  const bool accumulate = args->accumulate != 0;

  if (!plan.direct) {
    for (int64_t o = 0; o < batch.outer; ++o)
      for (int64_t i = 0; i < batch.inner; ++i)
        LS_TRY(by_tiles(exec, plan, shifted(a, o * batch.a_outer + i * batch.a_inner),
                        shifted(b, o * batch.b_outer + i * batch.b_inner),
                        shifted(c, o * batch.c_outer + i * batch.c_inner), bias, alpha, accumulate, workspace));
    return LS_OK;
  }

  Gemm g;
  g.batch = batch.inner;
  g.alpha = alpha;
  g.accumulate = accumulate;
  g.workspace = workspace;
  g.workspace_bytes = kGemmWorkspace;
  if (bias.data) {
    g.bias = bias.data;
    if (plan.bias_bytes > 0) {
      const Matrix cast = tile_at(workspace + kGemmWorkspace, c.dtype, 1, c.columns);
      LS_TRY(tile_part(exec, bias, cast, 0));
      g.bias = cast.data;
    }
  }
  for (int64_t o = 0; o < batch.outer; ++o) {
    const Matrix a_o = shifted(a, o * batch.a_outer), b_o = shifted(b, o * batch.b_outer),
                 c_o = shifted(c, o * batch.c_outer);
    g.a = plan.transposed ? b_o.transposed() : a_o;
    g.b = plan.transposed ? a_o.transposed() : b_o;
    g.c = plan.transposed ? c_o.transposed() : c_o;
    g.a_batch = plan.transposed ? batch.b_inner : batch.a_inner;
    g.b_batch = plan.transposed ? batch.a_inner : batch.b_inner;
    g.c_batch = batch.c_inner;
    LS_TRY(gemm(exec, g));
  }
  return LS_OK;
}

}  // namespace longseq::cuda
