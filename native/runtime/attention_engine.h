// Which kernels a CUDA device's attention runs on, and how a backend is told.
#ifndef LONGSEQ_RUNTIME_ATTENTION_ENGINE_H
#define LONGSEQ_RUNTIME_ATTENTION_ENGINE_H

#include <cstddef>
#include <cstring>

#include "longseq/backend.h"

namespace longseq {

// automatic: cuDNN where it takes the case, else our own kernels.
enum class AttentionEngine { automatic, cudnn, native };

inline constexpr const char *kAttentionEngineNames[] = {"auto", "cudnn", "native"};

// False where no engine has this name.
inline bool parse_attention_engine(const char *name, AttentionEngine *engine) {
  for (int i = 0; i < 3; ++i)
    if (std::strcmp(name, kAttentionEngineNames[i]) == 0) {
      *engine = static_cast<AttentionEngine>(i);
      return true;
    }
  return false;
}

// A backend that has a choice of attention kernels exports this symbol; it is called behind device_open.
// LS_UNSUPPORTED, with one line in error: the engine cannot be had here.
typedef ls_status (*AttentionOption)(void *device, const char *engine, char *error, size_t error_size);
#define LS_ATTENTION_OPTION_SYMBOL "ls_backend_attention"

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_ATTENTION_ENGINE_H
