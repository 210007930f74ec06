// Copies between any layouts, dtypes and memories; a permuting copy is a copy of a permuted view. Bytes: each element
// read once and written once.
#include "elementwise.h"
#include "entries.h"

namespace longseq::cuda {

namespace {

template <typename C>
struct Assign {
  static constexpr unsigned kReads = 0b01, kWrites = 0b10;
  LS_DEVICE void operator()(C (&v)[2]) const { v[1] = v[0]; }
};

constexpr int kTile = 32, kTileRows = 8;

// Square tiles over dim `across` (contiguous in the source) and the inner dim (contiguous in the destination), turned
// in shared memory so that both sides are read and written in whole lines.
template <typename U>
__global__ void __launch_bounds__(kTile *kTileRows, 4)
    transpose_kernel(Plan<2> plan, int across, int64_t width, int64_t to_stride, int64_t others) {
  __shared__ U tile[kTile][kTile + 1];
  const int64_t down = ceil_div(plan.inner, kTile), right = ceil_div(width, kTile), tiles = others * down * right;
  const int64_t from_stride = plan.operands[0].inner_stride;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  for (int64_t item = blockIdx.x; item < tiles; item += gridDim.x) {
    int64_t other = item / (down * right);
    const int64_t block = item - other * (down * right), i0 = block / right * kTile, j0 = block % right * kTile;
    int64_t from_offset = 0, to_offset = 0;
#pragma unroll
    for (int d = LS_MAX_DIMS - 2; d >= 0; --d) {
      if (d >= plan.ndim || d == across) continue;
      const int64_t next = other / plan.sizes[d], rest = other - next * plan.sizes[d];
      from_offset += rest * plan.operands[0].strides[d];
      to_offset += rest * plan.operands[1].strides[d];
      other = next;
    }
    const U *const from = reinterpret_cast<const U *>(plan.operands[0].data) + from_offset;
    U *const to = reinterpret_cast<U *>(plan.operands[1].data) + to_offset;
    for (int k = y; k < kTile; k += kTileRows)
      if (i0 + k < plan.inner && j0 + x < width) tile[k][x] = from[(i0 + k) * from_stride + j0 + x];
    __syncthreads();
    for (int k = y; k < kTile; k += kTileRows)
      if (i0 + x < plan.inner && j0 + k < width) to[(j0 + k) * to_stride + i0 + x] = tile[x][k];
    __syncthreads();
  }
}

// The outer dim in which the source is contiguous, where its inner dim is not but the destination's is; else -1.
int transposed_dim(const Plan<2> &plan) {
  if (plan.operands[0].inner_stride == 1 || plan.operands[1].inner_stride != 1 || plan.inner < 4) return -1;
  for (int32_t d = 0; d < plan.ndim; ++d)
    if (plan.operands[0].strides[d] == 1 && plan.sizes[d] >= 4) return d;
  return -1;
}

template <typename U>
ls_status copy_same(const ls_exec *exec, const Plan<2> &plan) {
  if (const int across = transposed_dim(plan); across >= 0) {
    const int64_t width = plan.sizes[across], others = plan.groups / plan.inner_groups / width;
    const int64_t tiles = others * ceil_div(plan.inner, kTile) * ceil_div(width, kTile);
    return LS_LAUNCH(transpose_kernel<U>, blocks_for(tiles, 1), dim3(kTile, kTileRows), 0, exec, plan, across, width,
                     plan.operands[1].strides[across], others);
  }
  return LS_LAUNCH((elementwise_kernel<U, U, 2, Assign<U>>), blocks_for(plan.groups, 256), 256, 0, exec, plan,
                   Assign<U>{});
}

bool integral(int32_t dtype) { return dtype == LS_I32 || dtype == LS_I64 || dtype == LS_U8; }
bool single(int32_t dtype) { return dtype == LS_F32 || dtype == LS_BF16; }

}  // namespace

ls_status copy(const ls_exec *exec, const ls_copy_args *args) {
  const ls_tensor *const operands[] = {&args->src, &args->dst};
  const int32_t from = args->src.dtype, to = args->dst.dtype;
  if (from == to) {
    const Plan<2> plan(operands);
    if (plan.groups == 0) return LS_OK;
    const int64_t bytes = element_bytes(from);
    // Runs that lie alike: the copy engines, which also reach the host.
    if (plan.ndim == 0 &&
        (plan.inner == 1 || (plan.operands[0].inner_stride == 1 && plan.operands[1].inner_stride == 1)))
      return copy_bytes(exec, plan.operands[1].data, plan.operands[0].data, plan.inner * bytes);
    switch (bytes) {
      case 8:
        return copy_same<int64_t>(exec, plan);
      case 4:
        return copy_same<float>(exec, plan);  // moves only: whatever the bits are, they stay
      case 2:
        return copy_same<bf16>(exec, plan);
      default:
        return copy_same<uint8_t>(exec, plan);
    }
  }
  // Through a type that holds both exactly.
  if (single(from) && single(to)) return elementwise<float>(exec, operands, Assign<float>{});
  if (integral(from) && integral(to)) return elementwise<int64_t>(exec, operands, Assign<int64_t>{});
  return elementwise<double>(exec, operands, Assign<double>{});
}

}  // namespace longseq::cuda
