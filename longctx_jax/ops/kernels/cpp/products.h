// Vectors of this CPU's registers, and products of matrices made of them.

#ifndef LONGCTX_JAX_PRODUCTS_H_
#define LONGCTX_JAX_PRODUCTS_H_

#include <cstdint>

// Registers: 32 of 16 floats, 16 of 8 floats, or 32 of 4.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#else
constexpr int kLanes = 4, kRegisters = 32;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
// A vector anywhere in an array of floats.
typedef float LooseVector
    __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vector Load(const float* from) {
  return *reinterpret_cast<const LooseVector*>(from);
}
inline void Store(float* to, Vector x) {
  *reinterpret_cast<LooseVector*>(to) = x;
}
inline Vector Max(Vector a, Vector b) { return a > b ? a : b; }

// 2^x for x <= 0; exactly 0 below -126, where floats lose their precision.
inline Vector Exp2(Vector x) {
  const Vector shift = Vector{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds
  const Vector low = Vector{} - 126.0f;
  const Vector clipped = Max(x, low);
  const Vector shifted = clipped + shift;
  const Vector rest = clipped - (shifted - shift);  // in [-0.5, 0.5]
  // ours: (2^rest - 1) / rest met at Chebyshev's six points; 2^rest to 5e-9.
  Vector y = Vector{} + 1.5453163e-4f;
  y = y * rest + 1.3390863e-3f;
  y = y * rest + 9.6180830e-3f;
  y = y * rest + 5.5503570e-2f;
  y = y * rest + 0.24022651f;
  y = y * rest + 0.69314718f;
  y = y * rest + 1.0f;
  const Ints exponent = reinterpret_cast<Ints>(shifted) << 23;
  y = reinterpret_cast<Vector>(reinterpret_cast<Ints>(y) + exponent);
  return x < low ? Vector{} : y;
}

// A matrix whose rows and columns lie at any distance from each other.
struct Matrix {
  const float* data;
  int64_t row, column;

  Matrix Transposed() const { return {data, column, row}; }
  Matrix FromRow(int r) const { return {data + r * row, row, column}; }
};

// c = a b, or c += a b, for as many sums as registers hold.
template <int kRows, int kWide, bool kAdd>
inline __attribute__((always_inline)) void MultiplyInRegisters(
    Matrix a, const float* b, int64_t b_row, int depth, float* c,
    int64_t c_row) {
  Vector sums[kRows][kWide];
  for (int r = 0; r < kRows; ++r)
    for (int w = 0; w < kWide; ++w)
      sums[r][w] = kAdd ? Load(c + r * c_row + w * kLanes) : Vector{};
  for (int d = 0; d < depth; ++d) {
    Vector right[kWide];
    for (int w = 0; w < kWide; ++w) right[w] = Load(b + d * b_row + w * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vector left = Vector{} + a.data[r * a.row + d * a.column];
      for (int w = 0; w < kWide; ++w) sums[r][w] += left * right[w];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int w = 0; w < kWide; ++w)
      Store(c + r * c_row + w * kLanes, sums[r][w]);
}

// The last rows, kRows of them at most.
template <int kRows, int kWide, bool kAdd>
inline void MultiplyLastRows(int rows, Matrix a, const float* b, int64_t b_row,
                             int depth, float* c, int64_t c_row) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      MultiplyInRegisters<kRows, kWide, kAdd>(a, b, b_row, depth, c, c_row);
    } else {
      MultiplyLastRows<kRows - 1, kWide, kAdd>(rows, a, b, b_row, depth, c,
                                               c_row);
    }
  }
}

template <int kWide, bool kAdd>
inline void MultiplyColumns(int rows, Matrix a, const float* b, int64_t b_row,
                            int depth, float* c, int64_t c_row) {
  // As many sums as leave registers for `right` and `left`.
  constexpr int kRows = (kRegisters - kWide - 1) / kWide;
  int r = 0;
  for (; r + kRows <= rows; r += kRows)
    MultiplyInRegisters<kRows, kWide, kAdd>(a.FromRow(r), b, b_row, depth,
                                            c + r * c_row, c_row);
  MultiplyLastRows<kRows - 1, kWide, kAdd>(rows - r, a.FromRow(r), b, b_row,
                                           depth, c + r * c_row, c_row);
}

// c [rows, columns] = a [rows, depth] b [depth, columns], or c += a b. Columns
// are a multiple of kLanes, and those of b and of c lie side by side.
template <bool kAdd>
inline void Multiply(int rows, int columns, int depth, Matrix a, const float* b,
                     int64_t b_row, float* c, int64_t c_row) {
  constexpr int kWide = kRegisters / 8;
  int x = 0;
  for (; x + kWide * kLanes <= columns; x += kWide * kLanes)
    MultiplyColumns<kWide, kAdd>(rows, a, b + x, b_row, depth, c + x, c_row);
  if constexpr (kWide > 2)
    for (; x + 2 * kLanes <= columns; x += 2 * kLanes)
      MultiplyColumns<2, kAdd>(rows, a, b + x, b_row, depth, c + x, c_row);
  for (; x < columns; x += kLanes)
    MultiplyColumns<1, kAdd>(rows, a, b + x, b_row, depth, c + x, c_row);
}

#endif  // LONGCTX_JAX_PRODUCTS_H_
