// Arguments, checks and cost of reduce_scatter.
#include "runtime/comm.h"

namespace longseq {

namespace {

void check_reduce_scatter(const void *pointer) {
  const auto &a = *static_cast<const ls_reduce_scatter_args *>(pointer);
  const Check c("reduce_scatter");
  check_parts(c, "reduce_scatter", a.comm, "x", a.x);
  check_part_of(c, "y", a.y, "x", a.x);
  check_reduction(c, a.x, a.kind);
}

Cost cost_reduce_scatter(const void *pointer) {
  const auto &a = *static_cast<const ls_reduce_scatter_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.y)};
}

// The parts of all ranks, before they are added.
int64_t workspace_reduce_scatter(const void *pointer, const Profile &profile) {
  const auto &a = *static_cast<const ls_reduce_scatter_args *>(pointer);
  const auto comm = find_communicator(a.comm, "reduce_scatter");
  return comm->sums_itself(profile, a.x.dtype, a.kind) ? 0 : bytes_of(a.x);
}

ls_status call_reduce_scatter(const ls_backend *, const ls_exec *exec, const void *pointer) {
  const auto &a = *static_cast<const ls_reduce_scatter_args *>(pointer);
  const auto comm = find_communicator(a.comm, "reduce_scatter");
  const ls_status status = comm->announce(exec, "reduce_scatter", a.x, a.kind);
  if (status != LS_OK) return status;
  const auto &[table, handle] = comm->end(exec);
  return table->reduce_scatter(exec, handle, a.x.data, a.y.data, elements(a.y), a.x.dtype,
                               static_cast<int32_t>(a.kind));
}

const RegisterOp register_reduce_scatter({
    "reduce_scatter",
    sizeof(ls_reduce_scatter_args),
    {LS_FIELD(ls_reduce_scatter_args, input, x), LS_FIELD(ls_reduce_scatter_args, output, y),
     LS_FIELD(ls_reduce_scatter_args, integer, comm), LS_FIELD(ls_reduce_scatter_args, integer, kind)},
    check_reduce_scatter,
    cost_reduce_scatter,
    workspace_reduce_scatter,
    nullptr,
    call_reduce_scatter,
});

}  // namespace

}  // namespace longseq
