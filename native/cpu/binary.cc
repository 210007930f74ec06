// Elementwise functions of two tensors, broadcast by zero strides.
#include "elementwise.h"
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

namespace {

template <typename C, typename Scalar, typename Vector>
void run(const ls_exec *exec, const ls_binary_args *args, const Scalar &scalar, const Vector &vector) {
  elementwise<C>(exec, {&args->a, &args->b, &args->y}, {kReads, kReads, kWrites}, [&](C *const *p, int64_t n) {
    if constexpr (kDtypeOf<C> == LS_F32) {
      lanes(n, [&](int64_t i, auto w) { store(p[2] + i, vector(load(p[0] + i, w), load(p[1] + i, w)), w); });
    } else {
      for (int64_t i = 0; i < n; ++i) p[2][i] = scalar(p[0][i], p[1][i]);
    }
  });
}

template <typename C>
LS_INLINE C divide(C a, C b) {
  if constexpr (kIsFloating<C>) {
    return a / b;
  } else {
    // Integers truncate; 0 and overflow give a defined value instead of a signal that kills the process.
    if (b == 0) return 0;
    if (b == -1) return static_cast<C>(0u - static_cast<uint64_t>(a));
    return a / b;
  }
}

template <typename C>
void by_kind(const ls_exec *exec, const ls_binary_args *args) {
  switch (args->kind) {
    case LS_BINARY_ADD:
      return run<C>(
          exec, args, [](C a, C b) { return static_cast<C>(a + b); }, [](f32x16 a, f32x16 b) { return a + b; });
    case LS_BINARY_SUB:
      return run<C>(
          exec, args, [](C a, C b) { return static_cast<C>(a - b); }, [](f32x16 a, f32x16 b) { return a - b; });
    case LS_BINARY_MUL:
      return run<C>(
          exec, args, [](C a, C b) { return static_cast<C>(a * b); }, [](f32x16 a, f32x16 b) { return a * b; });
    case LS_BINARY_DIV:
      return run<C>(
          exec, args, [](C a, C b) { return divide(a, b); }, [](f32x16 a, f32x16 b) { return a / b; });
    default:
      // A NaN on either side gives NaN.
      return run<C>(
          exec, args, [](C a, C b) { return a != a || a > b ? a : b; },
          [](f32x16 a, f32x16 b) { return select(is_nan(a), a, max(a, b)); });
  }
}

}  // namespace

ls_status binary(const ls_exec *exec, const ls_binary_args *args) {
  switch (args->a.dtype) {
    case LS_F64:
      by_kind<double>(exec, args);
      break;
    case LS_I64:
      by_kind<int64_t>(exec, args);
      break;
    default:
      by_kind<float>(exec, args);
  }
  return LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
