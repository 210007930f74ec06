// What attention's kernels use of tensor cores and asynchronous copies: the PTX
// instructions behind small functions, so that the emulator can stand in for
// them.
#ifndef LONGSEQ_CUDA_TENSOR_CORE_H
#define LONGSEQ_CUDA_TENSOR_CORE_H

#include "common.h"

#ifdef LS_CUDA_EMUL
#include "emul_tensor_core.h"  // defines: the same functions
#else

namespace longseq::cuda {

LS_DEVICE uint32_t shared_address(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Copies 16 bytes to shared memory beside the arithmetic; zeros where not
// `inside` (then nothing is read).
LS_DEVICE void cp_async_16(void *shared, const void *global, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(inside ? 16 : 0));
}
// The same of 4 bytes.
LS_DEVICE void cp_async_4(void *shared, const void *global, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(inside ? 4 : 0));
}
// Ends a group of copies; those that are in no group yet are waited for by
// nothing.
LS_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;"); }
// Waits until at most Remaining groups of this thread are under way.
template <int Remaining>
LS_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Remaining) : "memory");
}

// Four 8x8 matrices of 16-bit values: lanes 8i..8i+7 point at the rows of
// matrix i; fragment[i] is the lane's pair of it.
LS_DEVICE void ldmatrix_x4(uint32_t (&fragment)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same, each matrix transposed.
LS_DEVICE void ldmatrix_x4_transposed(uint32_t (&fragment)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

// c [16, 8] += a [16, 16] . b [16, 8], bfloat16 in, float32 out; fragments as
// in the PTX manual (mma.m16n8k16).
LS_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, "
      "%2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two values rounded to bfloat16, `low` in the low half.
LS_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// 2^x to about 2 ulp.
LS_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace longseq::cuda

#endif

#endif  // LONGSEQ_CUDA_TENSOR_CORE_H
