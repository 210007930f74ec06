// An addon that computes y += alpha * x on two longseq tensors with longseq's own kernel, without a copy.
#include <longseq/backend.h>
#include <node_api.h>

static const napi_type_tag tensor_tag = {LS_TENSOR_TAG_LOWER, LS_TENSOR_TAG_UPPER};
static const napi_type_tag backend_tag = {LS_BACKEND_TAG_LOWER, LS_BACKEND_TAG_UPPER};

// What longseq put into a value with this tag; NULL for any other value.
static void *unpack(napi_env env, napi_value value, const napi_type_tag *tag) {
  bool tagged = false;
  void *data = NULL;
  if (napi_check_object_type_tag(env, value, tag, &tagged) != napi_ok || !tagged) return NULL;
  if (napi_get_value_external(env, value, &data) != napi_ok) return NULL;
  return data;
}

// scaleAdd(native.backendTable(device), y.native(), x.native(), alpha)
static napi_value scale_add(napi_env env, napi_callback_info info) {
  size_t count = 4;
  napi_value argument[4];
  napi_get_cb_info(env, info, &count, argument, NULL, NULL);
  const ls_native_backend *backend = unpack(env, argument[0], &backend_tag);
  const ls_native_tensor *y = unpack(env, argument[1], &tensor_tag);
  const ls_native_tensor *x = unpack(env, argument[2], &tensor_tag);
  ls_axpby_args args = {.alpha = 1, .beta = 1};
  const char *error = NULL;
  char text[256] = "the operation failed";
  if (!backend || !x || !y || napi_get_value_double(env, argument[3], &args.alpha) != napi_ok) {
    error = "expected (backendTable, y.native(), x.native(), alpha)";
  } else if (backend->api_version != LS_BACKEND_API_VERSION) {
    error = "built for another version of longseq/backend.h";
  } else {
    ls_exec exec = backend->exec;
    exec.error = text;
    exec.error_size = sizeof text;
    args.x = x->tensor;
    args.y = y->tensor;
    if (backend->table->axpby(&exec, &args) != LS_OK) error = text;
  }
  if (error) napi_throw_error(env, NULL, error);
  return NULL;
}

NAPI_MODULE_INIT() {
  napi_value function;
  napi_create_function(env, "scaleAdd", NAPI_AUTO_LENGTH, scale_add, NULL, &function);
  napi_set_named_property(env, exports, "scaleAdd", function);
  return exports;
}
