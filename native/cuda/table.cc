// Gives the backend table the ops that this build has.
#include "entries.h"

namespace longseq::cuda {

void fill_table(ls_backend *table) {
#define LS_SET(op) table->op = op;
  LS_CUDA_OPS(LS_SET)
#undef LS_SET
}

}  // namespace longseq::cuda
