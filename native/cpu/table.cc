// Gives the backend table the entries of one instruction set.
#include "kernels.h"

namespace longseq::cpu::LS_ISA {

void fill_table(ls_backend *table) {
#define LS_SET(op) table->op = op;
  LS_CPU_OPS(LS_SET)
#undef LS_SET
}

}  // namespace longseq::cpu::LS_ISA
