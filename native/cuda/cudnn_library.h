// cuDNN as found at run time: opened by full path, its functions by name. Nothing links against it.
#ifndef LONGSEQ_CUDA_CUDNN_LIBRARY_H
#define LONGSEQ_CUDA_CUDNN_LIBRARY_H

#include <string>

#include "cudnn_api.h"

namespace longseq::cuda::cudnn {

// Oldest library whose attention graphs we build: the diagonal band mask operation in a forward sub-graph.
constexpr size_t kOldestVersion = 92100;
// CUDA's major version that it has to be built for.
constexpr size_t kCuda = 13;

struct Library {
  size_t (*get_version)();
  const char *(*get_error_string)(Status);
  void (*get_last_error_string)(char *text, size_t size);
  Status (*create)(Handle *handle);
  Status (*destroy)(Handle handle);
  Status (*set_stream)(Handle handle, void *stream);
  Status (*create_descriptor)(int32_t type, Descriptor *descriptor);
  Status (*destroy_descriptor)(Descriptor descriptor);
  Status (*finalize)(Descriptor descriptor);
  Status (*set_attribute)(Descriptor, int32_t name, int32_t type, int64_t count, const void *values);
  Status (*get_attribute)(Descriptor, int32_t name, int32_t type, int64_t capacity, int64_t *count, void *values);
  Status (*execute)(Handle handle, Descriptor plan, Descriptor variant_pack);

  size_t version;    // e.g. 92400 for 9.24.0
  std::string path;  // as opened
};

// What is wrong with the library behind a handle of dlopen, in a few words, or "". Wheels for CUDA 12 hold a
// libcudnn.so.9 too, which wants CUDA 12's cuBLAS and NVRTC.
std::string unfit(void *file);

// Opens libcudnn.so.9 at `path` (its sub-libraries lie beside it). Stays open for the life of the process.
// Null where it cannot be used, with one line in `error`: path, and what is missing or too old.
const Library *open_library(const std::string &path, std::string *error);

}  // namespace longseq::cuda::cudnn

#endif  // LONGSEQ_CUDA_CUDNN_LIBRARY_H
