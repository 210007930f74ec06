// Tiles that matmul copies, casts and finishes where cuBLASLt cannot take an operand as it lies.
#ifndef LONGSEQ_CUDA_MATMUL_TILE_H
#define LONGSEQ_CUDA_MATMUL_TILE_H

#include <utility>

#include "common.h"

namespace longseq::cuda {

// A strided matrix of float32 or bfloat16 in device memory.
struct Matrix {
  void *data = nullptr;
  int32_t dtype = LS_F32;
  int64_t rows = 0, columns = 0;
  int64_t row = 0, column = 0;  // strides in elements

  Matrix part(int64_t i, int64_t j, int64_t height, int64_t width) const {
    Matrix result = *this;
    result.data = static_cast<char *>(data) + (i * row + j * column) * element_bytes(dtype);
    result.rows = height;
    result.columns = width;
    return result;
  }
  Matrix transposed() const {
    Matrix result = *this;
    std::swap(result.rows, result.columns);
    std::swap(result.row, result.column);
    return result;
  }
};

// to = from, cast; same sizes. Of a float32 `from` and a bfloat16 `to` part 1 and 2 are what rounding to the parts
// before left over: the sum of all three is from, to the last bit.
ls_status tile_part(const ls_exec *exec, const Matrix &from, const Matrix &to, int part);

// c = [sum] + [bias over columns] + [c, if accumulate]; sum float32 of c's sizes, or absent (data NULL), bias one row
// or absent.
ls_status tile_finish(const ls_exec *exec, const Matrix &sum, const Matrix &bias, const Matrix &c, bool accumulate);

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_MATMUL_TILE_H
