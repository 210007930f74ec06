// The rows of a token's experts, weighted and added up in the order of its choices.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

ls_status combine(const ls_exec *exec, const ls_combine_args *args) {
  const ls_tensor &x = args->x, &y = args->y;
  const int64_t tokens = args->slots.sizes[0], k = args->slots.sizes[1], width = x.sizes[1];
  const int32_t *const slots = static_cast<const int32_t *>(args->slots.data);
  const float *const weights = args->weights.present ? static_cast<const float *>(args->weights.data) : nullptr;
  const auto add_rows = [&](auto *x_type, auto *y_type) {
    using X = Pointee<decltype(x_type)>;
    using Y = Pointee<decltype(y_type)>;
    parallel_for(exec, tokens, max_of(1, 32768 / max_of(1, width)), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        Y *const to = static_cast<Y *>(y.data) + t * y.strides[0];
        lanes(width, [&](int64_t i, auto w) {
          f32x16 sum = args->accumulate ? load(to + i, w) : zero();
          for (int64_t j = 0; j < k; ++j) {
            const int64_t slot = slots[t * k + j];
            const f32x16 value = load(static_cast<const X *>(x.data) + slot * x.strides[0] + i, w);
            sum = weights ? fma(set1(weights[slot]), value, sum) : sum + value;
          }
          store(to + i, sum, w);
        });
      }
    });
  };
  const auto with_y = [&](auto *x_type) {
    if (y.dtype == LS_BF16) {
      add_rows(x_type, static_cast<bf16 *>(nullptr));
    } else {
      add_rows(x_type, static_cast<float *>(nullptr));
    }
  };
  if (x.dtype == LS_BF16) {
    with_y(static_cast<bf16 *>(nullptr));
  } else {
    with_y(static_cast<float *>(nullptr));
  }
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
