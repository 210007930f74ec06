// Arguments, checks and cost of broadcast.
#include "runtime/comm.h"

namespace longseq {

namespace {

void check_broadcast(const void *pointer) {
  const auto &a = *static_cast<const ls_broadcast_args *>(pointer);
  const Check c("broadcast");
  const auto comm = find_communicator(a.comm, "broadcast");
  c.contiguous("x", a.x);
  if (a.root < 0 || a.root >= comm->size())
    c.fail(format("root is %lld, expected a rank below %d", static_cast<long long>(a.root), comm->size()));
}

Cost cost_broadcast(const void *pointer) {
  return {0, tensor_bytes(static_cast<const ls_broadcast_args *>(pointer)->x)};
}

ls_status call_broadcast(const ls_backend *, const ls_exec *exec, const void *pointer) {
  const auto &a = *static_cast<const ls_broadcast_args *>(pointer);
  const auto comm = find_communicator(a.comm, "broadcast");
  const ls_status status = comm->announce(exec, "broadcast", a.x, a.root);
  if (status != LS_OK) return status;
  const auto &[table, handle] = comm->end(exec);
  return table->broadcast(exec, handle, a.x.data, bytes_of(a.x), static_cast<int32_t>(a.root));
}

const RegisterOp register_broadcast({
    "broadcast",
    sizeof(ls_broadcast_args),
    {LS_FIELD(ls_broadcast_args, inout, x), LS_FIELD(ls_broadcast_args, integer, comm),
     LS_FIELD(ls_broadcast_args, integer, root)},
    check_broadcast,
    cost_broadcast,
    nullptr,
    nullptr,
    call_broadcast,
});

}  // namespace

}  // namespace longseq
