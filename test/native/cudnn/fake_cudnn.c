// A libcudnn.so.9 that only says which version it is and what it was built for: LONGSEQ_FAKE_CUDNN,
// LONGSEQ_FAKE_CUDART.
#include <stddef.h>
#include <stdlib.h>

static size_t number(const char *name, size_t otherwise) {
  const char *value = getenv(name);
  return value ? strtoul(value, NULL, 10) : otherwise;
}

size_t cudnnGetVersion(void) { return number("LONGSEQ_FAKE_CUDNN", 92400); }
size_t cudnnGetCudartVersion(void) { return number("LONGSEQ_FAKE_CUDART", 13000); }
