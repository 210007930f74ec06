// The product by cuBLASLt, with its choice of kernel kept by shape.
//
// cuBLASLt is column-major: it is given c^T = b^T a^T. Sums and scales are float32 and never TF32 (CUBLAS_COMPUTE_32F);
// split sums are added in float32 in a fixed order, so results are the same in every run.
#include <map>
#include <mutex>
#include <tuple>

#include "cublaslt.h"
#include "gemm.h"
#include "launch.h"
#include "state.h"

namespace longseq::cuda {

namespace {

// A stored column-major matrix and whether the product takes its transpose.
struct Operand {
  cudaDataType_t type;
  cublasOperation_t operation;
  uint64_t rows, columns;
  int64_t leading;
};

cudaDataType_t type_of(int32_t dtype) { return dtype == LS_BF16 ? CUDA_R_16BF : CUDA_R_32F; }

// x^T, of which cuBLASLt sees rows x's columns.
Operand operand_of(const Matrix &x) {
  const bool by_rows = (x.columns <= 1 || x.column == 1) && (x.rows <= 1 || x.row >= x.columns);
  Operand operand;
  operand.type = type_of(x.dtype);
  if (by_rows) {
    operand.operation = CUBLAS_OP_N;
    operand.rows = static_cast<uint64_t>(x.columns);
    operand.columns = static_cast<uint64_t>(x.rows);
    operand.leading = x.rows <= 1 ? x.columns : x.row;
  } else {
    operand.operation = CUBLAS_OP_T;
    operand.rows = static_cast<uint64_t>(x.rows);
    operand.columns = static_cast<uint64_t>(x.columns);
    operand.leading = x.columns <= 1 ? x.rows : x.column;
  }
  return operand;
}

// The largest power of two up to 256 that divides the address: what a kernel may assume.
uint32_t alignment_of(const void *p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  uint32_t alignment = 256;
  while (address % alignment) alignment /= 2;
  return alignment;
}

// Descriptors that end with the call.
struct Descriptors {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
  ~Descriptors() {
    const CublasLt &lt = cublaslt();
    if (preference) lt.MatmulPreferenceDestroy(preference);
    for (cublasLtMatrixLayout_t layout : {a, b, c})
      if (layout) lt.MatrixLayoutDestroy(layout);
    if (operation) lt.MatmulDescDestroy(operation);
  }
};

using Key = std::tuple<int, int, int, int, uint64_t, uint64_t, uint64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                       int64_t, int64_t, bool, bool, uint32_t, uint32_t, uint32_t, int64_t>;

std::mutex choices_mutex;
std::map<Key, cublasLtMatmulAlgo_t> &choices() {
  static auto &map = *new std::map<Key, cublasLtMatmulAlgo_t>;
  return map;
}

}  // namespace

ls_status gemm(const ls_exec *exec, const Gemm &g) {
  cudaStream_t stream = stream_of(exec);
  DeviceState *device = device_of(exec);
  const CublasLt &lt = cublaslt();
  const char *what = "";
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  // Keeps the first failure, and passes over what comes after it.
  const auto call = [&](const char *name, auto &&function) {
    if (status != CUBLAS_STATUS_SUCCESS) return;
    what = name;
    status = function();
  };
  cublasLtHandle_t handle = nullptr;
  {
    std::lock_guard<std::mutex> lock(device->library_mutex);
    if (!device->cublaslt)
      call("cublasLtCreate", [&] { return lt.Create(reinterpret_cast<cublasLtHandle_t *>(&device->cublaslt)); });
    handle = static_cast<cublasLtHandle_t>(device->cublaslt);
  }

  // c^T [N, M] = b^T [N, K] . a^T [K, M]
  const Operand first = operand_of(g.b), second = operand_of(g.a);
  Operand target;
  target.type = type_of(g.c.dtype);
  target.operation = CUBLAS_OP_N;
  target.rows = static_cast<uint64_t>(g.c.columns);
  target.columns = static_cast<uint64_t>(g.c.rows);
  target.leading = g.c.rows <= 1 ? g.c.columns : g.c.row;

  Descriptors d;
  call("cublasLtMatmulDescCreate", [&] { return lt.MatmulDescCreate(&d.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F); });
  const auto attribute = [&](cublasLtMatmulDescAttributes_t name, const auto &value) {
    call("cublasLtMatmulDescSetAttribute",
         [&] { return lt.MatmulDescSetAttribute(d.operation, name, &value, sizeof value); });
  };
  attribute(CUBLASLT_MATMUL_DESC_TRANSA, first.operation);
  attribute(CUBLASLT_MATMUL_DESC_TRANSB, second.operation);
  if (g.bias) {
    attribute(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    attribute(CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
    attribute(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(target.type));
  }
  const auto layout = [&](cublasLtMatrixLayout_t *result, const Operand &x, int64_t batch_stride) {
    call("cublasLtMatrixLayoutCreate",
         [&] { return lt.MatrixLayoutCreate(result, x.type, x.rows, x.columns, x.leading); });
    if (g.batch == 1) return;
    const auto batch = static_cast<int32_t>(g.batch);
    call("cublasLtMatrixLayoutSetAttribute", [&] {
      return lt.MatrixLayoutSetAttribute(*result, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch);
    });
    call("cublasLtMatrixLayoutSetAttribute", [&] {
      return lt.MatrixLayoutSetAttribute(*result, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride,
                                         sizeof batch_stride);
    });
  };
  layout(&d.a, first, g.b_batch);
  layout(&d.b, second, g.a_batch);
  layout(&d.c, target, g.c_batch);

  const uint32_t align_a = alignment_of(g.b.data), align_b = alignment_of(g.a.data), align_c = alignment_of(g.c.data);
  const Key key(device->index, first.type, target.type, first.operation * 2 + second.operation, target.rows,
                target.columns, static_cast<uint64_t>(g.a.columns), first.leading, second.leading, target.leading,
                g.batch, g.b_batch, g.a_batch, g.c_batch, g.bias != nullptr, g.accumulate, align_a, align_b, align_c,
                g.workspace_bytes);
  cublasLtMatmulAlgo_t algorithm;
  bool known = false;
  {
    std::lock_guard<std::mutex> lock(choices_mutex);
    if (const auto found = choices().find(key); found != choices().end()) {
      algorithm = found->second;
      known = true;
    }
  }
  if (!known) {
    call("cublasLtMatmulPreferenceCreate", [&] { return lt.MatmulPreferenceCreate(&d.preference); });
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, const auto &value) {
      call("cublasLtMatmulPreferenceSetAttribute",
           [&] { return lt.MatmulPreferenceSetAttribute(d.preference, name, &value, sizeof value); });
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(g.workspace_bytes));
    // Neither added in whatever order blocks finish, nor rounded before it is added.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align_a);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align_b);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align_c);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align_c);
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    call("cublasLtMatmulAlgoGetHeuristic", [&] {
      return lt.MatmulAlgoGetHeuristic(handle, d.operation, d.a, d.b, d.c, d.c, d.preference, 1, &result, &found);
    });
    if (status == CUBLAS_STATUS_SUCCESS) status = found == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : result.state;
    if (status == CUBLAS_STATUS_SUCCESS) {
      algorithm = result.algo;
      std::lock_guard<std::mutex> lock(choices_mutex);
      choices()[key] = algorithm;
    }
  }
  const float beta = g.accumulate ? 1.0f : 0.0f;
  call("cublasLtMatmul", [&] {
    return lt.Matmul(handle, d.operation, &g.alpha, g.b.data, d.a, g.a.data, d.b, &beta, g.c.data, d.c, g.c.data, d.c,
                     &algorithm, g.workspace, static_cast<size_t>(g.workspace_bytes), stream);
  });
  if (status == CUBLAS_STATUS_SUCCESS) return launch_status(exec, cudaGetLastError(), "cublasLtMatmul");
  return library_failure(exec, status == CUBLAS_STATUS_NOT_SUPPORTED ? LS_UNSUPPORTED : LS_DEVICE_FAILURE, what,
                         lt.GetStatusName(status));
}

}  // namespace longseq::cuda
