// Arguments, checks and cost of embedding and its backward.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_embedding(const void *pointer) {
  const auto &a = *static_cast<const ls_embedding_args *>(pointer);
  const Check c("embedding");
  c.ndim("ids", a.ids, 1);
  c.dtype("ids", a.ids, LS_I32);
  c.contiguous("ids", a.ids);
  c.ndim("table", a.table, 2);
  c.floating("table", a.table);
  c.ndim("y", a.y, 2);
  c.floating("y", a.y);
  c.size("y", a.y, 0, a.ids.sizes[0], "ids");
  c.size("y", a.y, 1, a.table.sizes[1], "width of table");
  c.contiguous_last("table", a.table);
  c.contiguous_last("y", a.y);
}

Cost cost_embedding(const void *pointer) {
  const auto &a = *static_cast<const ls_embedding_args *>(pointer);
  return {0, tensor_bytes(a.ids) + 2 * tensor_bytes(a.y)};
}

const RegisterOp register_embedding({
    "embedding",
    sizeof(ls_embedding_args),
    {LS_FIELD(ls_embedding_args, input, ids), LS_FIELD(ls_embedding_args, input, table),
     LS_FIELD(ls_embedding_args, output, y)},
    check_embedding,
    cost_embedding,
    nullptr,
    nullptr,
    call_entry<ls_embedding_args, &ls_backend::embedding>,
});

}  // namespace

namespace {

void check_embedding_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_embedding_backward_args *>(pointer);
  const Check c("embedding_backward");
  c.ndim("ids", a.ids, 1);
  c.dtype("ids", a.ids, LS_I32);
  c.contiguous("ids", a.ids);
  c.ndim("dtable", a.dtable, 2);
  c.dtype("dtable", a.dtable, LS_F32);
  c.ndim("dy", a.dy, 2);
  c.floating("dy", a.dy);
  c.size("dy", a.dy, 0, a.ids.sizes[0], "ids");
  c.size("dy", a.dy, 1, a.dtable.sizes[1], "width of dtable");
  c.contiguous_last("dtable", a.dtable);
  c.contiguous_last("dy", a.dy);
}

Cost cost_embedding_backward(const void *pointer) {
  const auto &a = *static_cast<const ls_embedding_backward_args *>(pointer);
  return {0, tensor_bytes(a.ids) + 3 * tensor_bytes(a.dy)};
}

// On a GPU the tokens are sorted by id: two lists of ids and of places, and a count for each of 256 digits and 2048
// ids.
int64_t workspace_embedding_backward(const void *pointer, const Profile &profile) {
  if (!profile.cuda) return 0;
  const auto &a = *static_cast<const ls_embedding_backward_args *>(pointer);
  const int64_t tokens = a.ids.sizes[0];
  return tokens * 16 + (tokens + 2047) / 2048 * 256 * 4;
}

const RegisterOp register_embedding_backward({
    "embedding_backward",
    sizeof(ls_embedding_backward_args),
    {LS_FIELD(ls_embedding_backward_args, input, ids), LS_FIELD(ls_embedding_backward_args, input, dy),
     LS_FIELD(ls_embedding_backward_args, inout, dtable)},
    check_embedding_backward,
    cost_embedding_backward,
    workspace_embedding_backward,
    nullptr,
    call_entry<ls_embedding_backward_args, &ls_backend::embedding_backward>,
});

}  // namespace

}  // namespace longseq
