// Sets every element of a tensor to one value. Writes its bytes once.
#include "elementwise.h"
#include "entries.h"

namespace longseq::cuda {

namespace {

template <typename T>
struct Store {
  static constexpr unsigned kReads = 0, kWrites = 1;
  T value;
  LS_DEVICE void operator()(T (&element)[1]) const { element[0] = value; }
};

template <typename T>
ls_status run(const ls_exec *exec, const ls_fill_args *args) {
  const Plan<1> plan({&args->y});
  if (plan.groups == 0) return LS_OK;
  const Store<T> store{convert<T>(args->value)};
  return LS_LAUNCH((elementwise_kernel<T, T, 1, Store<T>>), blocks_for(plan.groups, 256), 256, 0, exec, plan, store);
}

}  // namespace

ls_status fill(const ls_exec *exec, const ls_fill_args *args) {
  switch (args->y.dtype) {
    case LS_F32:
      return run<float>(exec, args);
    case LS_BF16:
      return run<bf16>(exec, args);
    case LS_F64:
      return run<double>(exec, args);
    case LS_I32:
      return run<int32_t>(exec, args);
    case LS_I64:
      return run<int64_t>(exec, args);
    default:
      return run<uint8_t>(exec, args);
  }
}

}  // namespace longseq::cuda
