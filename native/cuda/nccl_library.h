// NCCL, opened at run time: its entry points under their names without the prefix.
#ifndef LONGSEQ_CUDA_NCCL_LIBRARY_H
#define LONGSEQ_CUDA_NCCL_LIBRARY_H

#include <nccl.h>
#include <stddef.h>

#include <string>

namespace longseq::cuda {

#define LS_NCCL_FUNCTIONS(X) \
  X(GetVersion)              \
  X(GetUniqueId)             \
  X(GetErrorString)          \
  X(GetLastError)            \
  X(CommInitRankConfig)      \
  X(CommSplit)               \
  X(CommGetAsyncError)       \
  X(CommFinalize)            \
  X(CommDestroy)             \
  X(CommAbort)               \
  X(GroupStart)              \
  X(GroupEnd)                \
  X(Send)                    \
  X(Recv)                    \
  X(AllGather)               \
  X(ReduceScatter)           \
  X(AllReduce)               \
  X(Broadcast)

struct Nccl {
#define LS_MEMBER(name) decltype(&::nccl##name) name;
  LS_NCCL_FUNCTIONS(LS_MEMBER)
#undef LS_MEMBER
  std::string path;  // full, of what was opened
  int version;       // e.g. 23004 for 2.30.4
};

// Opens the library, once a process. NULL with one line in `error`: missing, or too old.
const Nccl *open_nccl(char *error, size_t error_size);

// "2.30.4" of 23004.
std::string version_text(int version);

// What open_nccl gave.
const Nccl &nccl();

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_NCCL_LIBRARY_H
