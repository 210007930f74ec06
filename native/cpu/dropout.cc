// Zeros in the place of some elements; which ones is a function of seed, stream, row number and column (backend.h).
#include "elementwise.h"
#include "kernels.h"
#include "philox.h"

namespace longseq::cpu::LS_ISA {

namespace {

constexpr int64_t kBlocks = 16, kColumns = 4 * kBlocks;  // of one call of philox

// factors[0..63] for the columns from `column`, a multiple of 64, on: 0, or what stays is multiplied by.
LS_INLINE void factors_of(int64_t row, int64_t column, uint64_t seed, uint32_t stream, uint32_t threshold, float kept,
                          float (&factors)[kColumns]) {
  alignas(64) int32_t counters[kBlocks], words[4][kBlocks];
  for (int i = 0; i < kBlocks; ++i) counters[i] = static_cast<int32_t>(static_cast<uint32_t>(column / 4 + i));
  const uint64_t number = static_cast<uint64_t>(row);
  i32x16 word[4];
  philox(load_i32(counters), set1_i32(static_cast<int32_t>(stream)),
         set1_i32(static_cast<int32_t>(static_cast<uint32_t>(number))),
         set1_i32(static_cast<int32_t>(static_cast<uint32_t>(number >> 32))), seed, word);
  for (int j = 0; j < 4; ++j) store_i32(words[j], word[j]);
  for (int i = 0; i < kBlocks; ++i)
    for (int j = 0; j < 4; ++j) factors[4 * i + j] = static_cast<uint32_t>(words[j][i]) >= threshold ? kept : 0.0f;
}

}  // namespace

ls_status dropout(const ls_exec *exec, const ls_dropout_args *args) {
  const ls_tensor &x = args->x, &y = args->y;
  const int64_t rows = x.sizes[0], width = x.sizes[1], first = args->first;
  const int64_t *const numbers = static_cast<const int64_t *>(args->rows.data);
  const uint64_t seed = static_cast<uint64_t>(args->seed);
  const uint32_t stream = static_cast<uint32_t>(args->stream);
  const uint32_t threshold = static_cast<uint32_t>(args->rate * 0x1p32);
  const float kept = static_cast<float>(1.0 / (1.0 - args->rate));
  const bool accumulate = args->accumulate != 0;
  parallel_for(exec, rows, max_of(1, 8192 / max_of(1, width)), [&](int64_t begin, int64_t end) {
    alignas(64) float factors[kColumns], from[kColumns], sum[kColumns];
    for (int64_t row = begin; row < end; ++row) {
      void *const xt = offset_by(x.data, row * x.strides[0], x.dtype);
      void *const yt = offset_by(y.data, row * y.strides[0], y.dtype);
      // Groups of columns begin where those of the whole row do.
      for (int64_t i = 0; i < width;) {
        const int64_t column = first + i, skip = column % kColumns;
        const int64_t n = min_of(kColumns - skip, width - i);
        factors_of(numbers[row], column - skip, seed, stream, threshold, kept, factors);
        const float *const in = row_piece(xt, x.dtype, i, n, from);
        float *const out = out_piece(yt, y.dtype, i, sum);
        if (accumulate && out == sum) read_run(sum, static_cast<const bf16 *>(yt) + i, y.dtype, 1, n);
        lanes(n, [&](int64_t c, auto w) {
          const f32x16 value = load(in + c, w) * load(factors + skip + c, w);
          store(out + c, accumulate ? load(out + c, w) + value : value, w);
        });
        finish_piece(yt, y.dtype, i, n, sum);
        i += n;
      }
    }
  });
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
