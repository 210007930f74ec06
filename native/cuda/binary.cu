// Elementwise functions of two tensors, broadcast by zero strides. Bytes: every operand once; FLOPs: one an element.
#include <type_traits>

#include "elementwise.h"
#include "entries.h"

namespace longseq::cuda {

namespace {

template <typename C>
LS_DEVICE C divide(C a, C b) {
  if constexpr (kIsFloating<C>) {
    return a / b;
  } else {
    // Integers truncate; 0 and overflow give a defined value.
    if (b == 0) return 0;
    if (b == -1) return static_cast<C>(0u - static_cast<uint64_t>(a));
    return a / b;
  }
}

template <typename C>
struct Binary {
  static constexpr unsigned kReads = 0b011, kWrites = 0b100;
  int kind;
  LS_DEVICE void operator()(C (&v)[3]) const {
    const C a = v[0], b = v[1];
    using U = std::conditional_t<kIsFloating<C>, C, uint64_t>;  // integers wrap
    const U x = static_cast<U>(a), y = static_cast<U>(b);
    switch (kind) {
      case LS_BINARY_ADD:
        v[2] = static_cast<C>(x + y);
        break;
      case LS_BINARY_SUB:
        v[2] = static_cast<C>(x - y);
        break;
      case LS_BINARY_MUL:
        v[2] = static_cast<C>(x * y);
        break;
      case LS_BINARY_DIV:
        v[2] = divide(a, b);
        break;
      default:
        // A NaN on either side gives NaN.
        v[2] = a != a || a > b ? a : b;
    }
  }
};

template <typename C>
ls_status run(const ls_exec *exec, const ls_binary_args *args) {
  return elementwise<C>(exec, {&args->a, &args->b, &args->y}, Binary<C>{static_cast<int>(args->kind)});
}

}  // namespace

ls_status binary(const ls_exec *exec, const ls_binary_args *args) {
  switch (args->a.dtype) {
    case LS_F64:
      return run<double>(exec, args);
    case LS_I64:
      return run<int64_t>(exec, args);
    default:
      return run<float>(exec, args);
  }
}

}  // namespace longseq::cuda
