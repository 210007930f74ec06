// A stable radix sort of token ids with the places they came from, for gradients that are added in a fixed order.
#ifndef LONGSEQ_CUDA_SORT_H
#define LONGSEQ_CUDA_SORT_H

#include "common.h"

namespace longseq::cuda {

// Bytes of workspace for sorting `count` ids; native/runtime/ops/embedding.cc knows the same sum.
// Two lists of ids and two of places (4 bytes each), then a count a digit and tile of 2048.
inline constexpr int64_t kSortTile = 2048, kSortDigits = 256;
LS_HOST_DEVICE int64_t sort_tiles(int64_t count) { return ceil_div(count, kSortTile); }
inline int64_t sort_bytes(int64_t count) { return count * 16 + sort_tiles(count) * kSortDigits * 4; }

// Sorts ids (each below `limit`, or negative, which counts as `limit`) ascending; equal ids keep their order. *ids and
// *places point into the workspace afterwards. count < 2^32.
ls_status sort_ids(const ls_exec *exec, const int32_t *ids, int64_t count, int64_t limit, void *workspace,
                   const uint32_t **sorted, const uint32_t **places);

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_SORT_H
