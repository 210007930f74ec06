// Arguments, checks and cost of all_to_all.
#include "runtime/comm.h"

namespace longseq {

namespace {

void check_all_to_all(const void *pointer) {
  const auto &a = *static_cast<const ls_all_to_all_args *>(pointer);
  const Check c("all_to_all");
  check_parts(c, "all_to_all", a.comm, "x", a.x);
  c.same_shape("y", a.y, "x", a.x);
  c.dtype("y", a.y, a.x.dtype);
  c.contiguous("y", a.y);
}

Cost cost_all_to_all(const void *pointer) {
  const auto &a = *static_cast<const ls_all_to_all_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.y)};
}

ls_status call_all_to_all(const ls_backend *, const ls_exec *exec, const void *pointer) {
  const auto &a = *static_cast<const ls_all_to_all_args *>(pointer);
  const auto comm = find_communicator(a.comm, "all_to_all");
  const ls_status status = comm->announce(exec, "all_to_all", a.x);
  if (status != LS_OK) return status;
  const auto &[table, handle] = comm->end(exec);
  return table->all_to_all(exec, handle, a.x.data, a.y.data, bytes_of(a.x) / comm->size());
}

const RegisterOp register_all_to_all({
    "all_to_all",
    sizeof(ls_all_to_all_args),
    {LS_FIELD(ls_all_to_all_args, input, x), LS_FIELD(ls_all_to_all_args, output, y),
     LS_FIELD(ls_all_to_all_args, integer, comm)},
    check_all_to_all,
    cost_all_to_all,
    nullptr,
    nullptr,
    call_all_to_all,
});

}  // namespace

}  // namespace longseq
