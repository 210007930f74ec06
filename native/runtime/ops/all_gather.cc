// Arguments, checks and cost of all_gather.
#include "runtime/comm.h"

namespace longseq {

namespace {

void check_all_gather(const void *pointer) {
  const auto &a = *static_cast<const ls_all_gather_args *>(pointer);
  const Check c("all_gather");
  check_parts(c, "all_gather", a.comm, "y", a.y);
  check_part_of(c, "x", a.x, "y", a.y);
}

Cost cost_all_gather(const void *pointer) {
  const auto &a = *static_cast<const ls_all_gather_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.y)};
}

ls_status call_all_gather(const ls_backend *, const ls_exec *exec, const void *pointer) {
  const auto &a = *static_cast<const ls_all_gather_args *>(pointer);
  const auto comm = find_communicator(a.comm, "all_gather");
  const ls_status status = comm->announce(exec, "all_gather", a.x);
  if (status != LS_OK) return status;
  const auto &[table, handle] = comm->end(exec);
  return table->all_gather(exec, handle, a.x.data, a.y.data, bytes_of(a.x));
}

const RegisterOp register_all_gather({
    "all_gather",
    sizeof(ls_all_gather_args),
    {LS_FIELD(ls_all_gather_args, input, x), LS_FIELD(ls_all_gather_args, output, y),
     LS_FIELD(ls_all_gather_args, integer, comm)},
    check_all_gather,
    cost_all_gather,
    nullptr,
    nullptr,
    call_all_gather,
});

}  // namespace

}  // namespace longseq
