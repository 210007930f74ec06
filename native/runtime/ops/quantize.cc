// Arguments, checks and cost of quantize and dequantize.
#include "runtime/op.h"

namespace longseq {

namespace {

void check_pair(const Check &c, const char *name, const ls_tensor &values, const ls_tensor &packed, int64_t format) {
  c.floating(name, values);
  c.contiguous_last(name, values);
  c.that(values.ndim >= 1, std::string(name) + " has no dims, expected one or more");
  c.dtype("packed", packed, LS_U8);
  c.contiguous("packed", packed);
  c.ndim("packed", packed, values.ndim);
  for (int32_t i = 0; i + 1 < values.ndim; ++i) c.size("packed", packed, i, values.sizes[i], name);
  const int64_t width = values.sizes[values.ndim - 1];
  c.size("packed", packed, values.ndim - 1, width + 2 * ((width + LS_BLOCK_VALUES - 1) / LS_BLOCK_VALUES),
         "a byte a value and two a block of 64");
  c.that(format >= 0 && format < LS_BLOCK_FORMAT_COUNT,
         longseq::format("format is %lld, expected 0 (int8) or 1 (float8)", static_cast<long long>(format)));
}

void check_quantize(const void *pointer) {
  const auto &a = *static_cast<const ls_quantize_args *>(pointer);
  check_pair(Check("quantize"), "x", a.x, a.packed, a.format);
}

Cost cost_quantize(const void *pointer) {
  const auto &a = *static_cast<const ls_quantize_args *>(pointer);
  return {0, tensor_bytes(a.x) + tensor_bytes(a.packed)};
}

void check_dequantize(const void *pointer) {
  const auto &a = *static_cast<const ls_dequantize_args *>(pointer);
  check_pair(Check("dequantize"), "y", a.y, a.packed, a.format);
}

Cost cost_dequantize(const void *pointer) {
  const auto &a = *static_cast<const ls_dequantize_args *>(pointer);
  return {0, tensor_bytes(a.packed) + tensor_bytes(a.y)};
}

const RegisterOp register_quantize({
    "quantize",
    sizeof(ls_quantize_args),
    {LS_FIELD(ls_quantize_args, input, x), LS_FIELD(ls_quantize_args, output, packed),
     LS_FIELD(ls_quantize_args, integer, format)},
    check_quantize,
    cost_quantize,
    nullptr,
    nullptr,
    call_entry<ls_quantize_args, &ls_backend::quantize>,
});

const RegisterOp register_dequantize({
    "dequantize",
    sizeof(ls_dequantize_args),
    {LS_FIELD(ls_dequantize_args, input, packed), LS_FIELD(ls_dequantize_args, output, y),
     LS_FIELD(ls_dequantize_args, integer, format)},
    check_dequantize,
    cost_dequantize,
    nullptr,
    nullptr,
    call_entry<ls_dequantize_args, &ls_backend::dequantize>,
});

}  // namespace

}  // namespace longseq
