// cuBLASLt, opened at run time: its entry points under their names without the prefix.
#ifndef LONGSEQ_CUDA_CUBLASLT_H
#define LONGSEQ_CUDA_CUBLASLT_H

#include <cublasLt.h>
#include <stddef.h>

namespace longseq::cuda {

#define LS_CUBLASLT_FUNCTIONS(X)  \
  X(GetVersion)                   \
  X(Create)                       \
  X(Destroy)                      \
  X(MatmulDescCreate)             \
  X(MatmulDescDestroy)            \
  X(MatmulDescSetAttribute)       \
  X(MatrixLayoutCreate)           \
  X(MatrixLayoutDestroy)          \
  X(MatrixLayoutSetAttribute)     \
  X(MatmulPreferenceCreate)       \
  X(MatmulPreferenceDestroy)      \
  X(MatmulPreferenceSetAttribute) \
  X(MatmulAlgoGetHeuristic)       \
  X(Matmul)                       \
  X(GetStatusName)

struct CublasLt {
#define LS_MEMBER(name) decltype(&::cublasLt##name) name;
  LS_CUBLASLT_FUNCTIONS(LS_MEMBER)
#undef LS_MEMBER
};

// Opens the library, once a process. NULL with one line in `error`: missing, or of another version than the headers'.
const CublasLt *open_cublaslt(char *error, size_t error_size);

// What open_cublaslt gave.
const CublasLt &cublaslt();

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_CUBLASLT_H
