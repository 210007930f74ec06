// Sets every element of a tensor to one value.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

namespace {

// Storage of a size, which the compiler fills with whole vectors.
template <int kBytes>
struct StorageOf;
template <>
struct StorageOf<1> {
  using type = uint8_t;
};
template <>
struct StorageOf<2> {
  using type = uint16_t;
};
template <>
struct StorageOf<4> {
  using type = uint32_t;
};
template <>
struct StorageOf<8> {
  using type = uint64_t;
};

}  // namespace

ls_status fill(const ls_exec *exec, const ls_fill_args *args) {
  with_dtype(args->y.dtype, [&](auto *type) {
    using Value = Pointee<decltype(type)>;
    using T = typename StorageOf<sizeof(Value)>::type;
    const Value exact = convert<Value>(args->value);
    T value;
    memcpy(&value, &exact, sizeof(T));
    const Plan<1> plan({&args->y});
    const int64_t stride = plan.inner_strides[0];
    parallel_for(exec, plan.items(), plan.grain(), [&](int64_t begin, int64_t end) {
      const int64_t chunks = plan.chunks();
      for (int64_t item = begin; item < end; ++item) {
        const int64_t index = item / chunks, first = (item - index * chunks) * Plan<1>::kChunk;
        const int64_t n = min_of(Plan<1>::kChunk, plan.inner - first);
        T *y = reinterpret_cast<T *>(plan.base[0]) + plan.offset(0, index) + first * stride;
        if (stride == 1) {
          for (int64_t i = 0; i < n; ++i) y[i] = value;
        } else {
          for (int64_t i = 0; i < n; ++i) y[i * stride] = value;
        }
      }
    });
  });
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
