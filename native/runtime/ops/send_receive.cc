// Arguments, checks and cost of send_receive.
#include "runtime/comm.h"

namespace longseq {

namespace {

void check_send_receive(const void *pointer) {
  const auto &a = *static_cast<const ls_send_receive_args *>(pointer);
  const Check c("send_receive");
  const auto comm = find_communicator(a.comm, "send_receive");
  const auto end = [&](const char *name, const ls_tensor &t, const char *rank_name, int64_t rank) {
    c.contiguous(name, t);
    if (rank < 0 || rank >= comm->size() || rank == comm->rank())
      c.fail(
          format("%s is %lld, expected another rank below %d", rank_name, static_cast<long long>(rank), comm->size()));
  };
  end("x", a.x, "to", a.to);
  end("y", a.y, "from", a.from);
}

Cost cost_send_receive(const void *pointer) {
  const auto &a = *static_cast<const ls_send_receive_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.y)};
}

ls_status call_send_receive(const ls_backend *, const ls_exec *exec, const void *pointer) {
  const auto &a = *static_cast<const ls_send_receive_args *>(pointer);
  const auto comm = find_communicator(a.comm, "send_receive");
  // What neighbours send each other need not be equal: it is noted, and not compared.
  comm->note("send_receive", a.x, a.to);
  const auto &[table, handle] = comm->end(exec);
  return table->send_receive(exec, handle, a.x.data, bytes_of(a.x), static_cast<int32_t>(a.to), a.y.data, bytes_of(a.y),
                             static_cast<int32_t>(a.from));
}

const RegisterOp register_send_receive({
    "send_receive",
    sizeof(ls_send_receive_args),
    {LS_FIELD(ls_send_receive_args, input, x), LS_FIELD(ls_send_receive_args, output, y),
     LS_FIELD(ls_send_receive_args, integer, comm), LS_FIELD(ls_send_receive_args, integer, to),
     LS_FIELD(ls_send_receive_args, integer, from)},
    check_send_receive,
    cost_send_receive,
    nullptr,
    nullptr,
    call_send_receive,
});

}  // namespace

}  // namespace longseq
