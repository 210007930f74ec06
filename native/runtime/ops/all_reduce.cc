// Arguments, checks and cost of all_reduce.
#include "runtime/comm.h"

namespace longseq {

namespace {

void check_all_reduce(const void *pointer) {
  const auto &a = *static_cast<const ls_all_reduce_args *>(pointer);
  const Check c("all_reduce");
  find_communicator(a.comm, "all_reduce");
  c.contiguous("x", a.x);
  check_reduction(c, a.x, a.kind);
}

Cost cost_all_reduce(const void *pointer) {
  const auto &a = *static_cast<const ls_all_reduce_args *>(pointer);
  return {0, 2 * tensor_bytes(a.x)};
}

// This rank's part of the sum as every rank has it.
int64_t workspace_all_reduce(const void *pointer, const Profile &profile) {
  const auto &a = *static_cast<const ls_all_reduce_args *>(pointer);
  const auto comm = find_communicator(a.comm, "all_reduce");
  if (comm->sums_itself(profile, a.x.dtype, a.kind)) return 0;
  const int64_t ranks = comm->size();
  return ranks * ((elements(a.x) + ranks - 1) / ranks) * dtype_bytes(a.x.dtype);
}

ls_status call_all_reduce(const ls_backend *, const ls_exec *exec, const void *pointer) {
  const auto &a = *static_cast<const ls_all_reduce_args *>(pointer);
  const auto comm = find_communicator(a.comm, "all_reduce");
  const ls_status status = comm->announce(exec, "all_reduce", a.x, a.kind);
  if (status != LS_OK) return status;
  const auto &[table, handle] = comm->end(exec);
  return table->all_reduce(exec, handle, a.x.data, elements(a.x), a.x.dtype, static_cast<int32_t>(a.kind));
}

const RegisterOp register_all_reduce({
    "all_reduce",
    sizeof(ls_all_reduce_args),
    {LS_FIELD(ls_all_reduce_args, inout, x), LS_FIELD(ls_all_reduce_args, integer, comm),
     LS_FIELD(ls_all_reduce_args, integer, kind)},
    check_all_reduce,
    cost_all_reduce,
    workspace_all_reduce,
    nullptr,
    call_all_reduce,
});

}  // namespace

}  // namespace longseq
