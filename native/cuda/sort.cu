// The radix sort of sort.h: eight bits a pass, least significant first; a pass counts, scans and scatters.
//
// Bytes a pass and id: 4 read to count, 8 read and 8 written to scatter. Two passes for a vocabulary below 65536, three
// for larger ones.
#include "launch.h"
#include "reduce.h"
#include "sort.h"

namespace longseq::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// The ids as unsigned keys; what is no id becomes `limit`, behind all others.
__global__ void __launch_bounds__(kThreads)
    keys_kernel(const int32_t *ids, int64_t count, int64_t limit, uint32_t *keys, uint32_t *places) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int32_t id = ids[i];
    keys[i] = id >= 0 && id < limit ? static_cast<uint32_t>(id) : static_cast<uint32_t>(limit);
    places[i] = static_cast<uint32_t>(i);
  }
}

// counts[digit][tile]: keys of a tile with that digit.
__global__ void __launch_bounds__(kThreads)
    count_kernel(const uint32_t *keys, int64_t count, int shift, uint32_t *counts, int64_t tiles) {
  __shared__ uint32_t histogram[kSortDigits];
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    histogram[threadIdx.x] = 0;
    __syncthreads();
    const int64_t end = min(count, (tile + 1) * kSortTile);
    for (int64_t i = tile * kSortTile + threadIdx.x; i < end; i += kThreads)
      atomicAdd(&histogram[keys[i] >> shift & (kSortDigits - 1)], 1u);
    __syncthreads();
    counts[threadIdx.x * tiles + tile] = histogram[threadIdx.x];
    __syncthreads();
  }
}

// counts becomes the sum of all before each entry. One block.
__global__ void __launch_bounds__(1024) scan_kernel(uint32_t *counts, int64_t length) {
  __shared__ uint32_t warps[32];
  uint32_t carry = 0;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t first = 0; first < length; first += 1024) {
    const int64_t i = first + threadIdx.x;
    const uint32_t value = i < length ? counts[i] : 0;
    uint32_t sum = value;
#pragma unroll
    for (unsigned distance = 1; distance < 32; distance *= 2) {
      const uint32_t below = __shfl_up_sync(kAllLanes, sum, distance);
      if (lane >= distance) sum += below;
    }
    __syncthreads();
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    uint32_t before = carry, total = 0;
#pragma unroll
    for (unsigned w = 0; w < 32; ++w) {
      if (w < warp) before += warps[w];
      total += warps[w];
    }
    if (i < length) counts[i] = before + sum - value;
    carry += total;
  }
}

// Each key to its place: those of lower digits, of earlier tiles and of earlier rounds first, then by warp and lane.
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const uint32_t *keys, const uint32_t *places, int64_t count, int shift, const uint32_t *offsets,
                   int64_t tiles, uint32_t *to_keys, uint32_t *to_places) {
  __shared__ uint32_t next[kSortDigits];
  __shared__ uint32_t of_warp[kWarps][kSortDigits];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    next[threadIdx.x] = offsets[threadIdx.x * tiles + tile];
    const int64_t end = min(count, (tile + 1) * kSortTile);
    for (int64_t first = tile * kSortTile; first < end; first += kThreads) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) of_warp[w][threadIdx.x] = 0;
      __syncthreads();
      const int64_t i = first + threadIdx.x;
      const bool inside = i < end;
      const uint32_t key = inside ? keys[i] : 0;
      const uint32_t digit = key >> shift & (kSortDigits - 1);
      unsigned peers = __ballot_sync(kAllLanes, inside);
#pragma unroll
      for (int bit = 0; bit < 8; ++bit) {
        const unsigned set = __ballot_sync(kAllLanes, digit >> bit & 1);
        peers &= digit >> bit & 1 ? set : ~set;
      }
      const uint32_t rank = static_cast<uint32_t>(__popc(peers & ((1u << lane) - 1)));
      if (inside && rank == 0) of_warp[warp][digit] = static_cast<uint32_t>(__popc(peers));
      __syncthreads();
      // Thread d turns the warps' counts of digit d into where each warp begins.
      uint32_t at = next[threadIdx.x];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const uint32_t n = of_warp[w][threadIdx.x];
        of_warp[w][threadIdx.x] = at;
        at += n;
      }
      next[threadIdx.x] = at;
      __syncthreads();
      if (inside) {
        const uint32_t to = of_warp[warp][digit] + rank;
        to_keys[to] = key;
        to_places[to] = places[i];
      }
      __syncthreads();
    }
  }
}

}  // namespace

ls_status sort_ids(const ls_exec *exec, const int32_t *ids, int64_t count, int64_t limit, void *workspace,
                   const uint32_t **sorted, const uint32_t **places) {
  uint32_t *keys = static_cast<uint32_t *>(workspace), *from = keys + count;
  uint32_t *other_keys = from + count, *other_from = other_keys + count, *counts = other_from + count;
  const int64_t tiles = sort_tiles(count);
  const unsigned blocks = static_cast<unsigned>(tiles < 65536 ? tiles : 65536);
  LS_TRY(LS_LAUNCH(keys_kernel, blocks, kThreads, 0, exec, ids, count, limit, keys, from));
  for (int shift = 0; shift < 32 && limit >> shift != 0; shift += 8) {
    LS_TRY(LS_LAUNCH(count_kernel, blocks, kThreads, 0, exec, keys, count, shift, counts, tiles));
    LS_TRY(LS_LAUNCH(scan_kernel, 1, 1024, 0, exec, counts, tiles * kSortDigits));
    LS_TRY(LS_LAUNCH(scatter_kernel, blocks, kThreads, 0, exec, keys, from, count, shift, counts, tiles, other_keys,
                     other_from));
    uint32_t *const k = keys, *const f = from;
    keys = other_keys;
    from = other_from;
    other_keys = k;
    other_from = f;
  }
  *sorted = keys;
  *places = from;
  return LS_OK;
}

}  // namespace longseq::cuda
