// Problem: half of what comes out of a ReLU is zero, and half of the cotangents that go back through it; of the products
//   with them, half of the multiplications are by zero.
// Solution: one bit for each element of A that is not zero; a row of C is made of those rows of B that its bits name, in
//   order, so that its bits are those of gemm.h's product. A register of B is loaded for one multiply-add instead of six, and
//   processors load as many registers in a cycle as they multiply.
// Not where it does not pay (few zeros, few rows or columns), nor where B holds an infinity or NaN: 0 * inf is NaN.
// Usage: multiply_skipping_zeros(...) for multiply(...), with a.has_zeros.
#pragma once

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "cpu/kernels/pack.h"
#include "cpu/kernels/transpose.h"

namespace metafast {
namespace METAFAST_ISA {

// Bit i: whether element i of x is not zero, NaN being none.
template <class T>
inline uint64_t nonzero_lanes(Vector<T> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), __m512{}, _CMP_NEQ_UQ);
  else
    return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(x), __m512d{}, _CMP_NEQ_UQ);
#elif defined(__AVX__)
  const auto nonzero = x != Vector<T>{};
  if constexpr (sizeof(T) == 4)
    return uint64_t(_mm256_movemask_ps(reinterpret_cast<__m256>(nonzero)));
  else
    return uint64_t(_mm256_movemask_pd(reinterpret_cast<__m256d>(nonzero)));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kLanes<T>; ++i) bits |= uint64_t(x[i] != T(0)) << i;
  return bits;
#endif
}

// The same of an array of n <= 64, padded to whole vectors.
template <class T>
inline uint64_t nonzero_bits(const T* x, int64_t n) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < n; i += kLanes<T>) bits |= nonzero_lanes<T>(load(x + i)) << i;
  return n < 64 ? bits & ((uint64_t(1) << n) - 1) : bits;
}

// Is every element a number?
template <class T>
inline bool all_finite(const T* x, int64_t ld, int64_t rows, int64_t columns) {
  constexpr int64_t L = kLanes<T>;
  Vector<T> nothing[4] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = x + r * ld;
    int64_t c = 0;
    for (; c + 4 * L <= columns; c += 4 * L)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) nothing[i] += T(0) * load(row + c + i * L);
    for (; c < columns; c += L) nothing[0] += T(0) * load(row + c);
  }
  nothing[0] += nothing[1] + (nothing[2] + nothing[3]);
  return nonzero_lanes<T>(nothing[0]) == 0;
}

// Of `rows` rows of n elements, padded to whole vectors.
template <class T>
inline int64_t count_nonzero(const T* x, int64_t ld, int64_t rows, int64_t n) {
  int64_t count = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < n; c += 64)
      count += __builtin_popcountll(nonzero_bits(x + r * ld + c, n - c < 64 ? n - c : 64));
  return count;
}

// Of sixteen registers fourteen hold sums, so that a factor and a loop serve as many.
constexpr int kStrip = 14;

// Deeper products leave no room in the first-level cache for rows of B.
constexpr int64_t kDeepestSkip = 128, kSkipPanel = 64, kSkipWords = kDeepestSkip / 64;

// Where the elements of some rows of A are that are not zero.
struct NonzeroRows {
  int64_t words, count;
  uint64_t bits[kSkipPanel][kSkipWords];

  // Are there few enough of `rows` rows of k, or would loads set the pace?
  bool few(int64_t rows, int64_t k) const { return 4 * count <= 3 * rows * k; }
  void add(const NonzeroRows& other, int64_t rows) {
    count = 0;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(bits[r][w] |= other.bits[r][w]);
  }
};

// Whether products of this size gain from it, if there are zeros.
template <class T>
inline bool may_skip(const Gather<T>& a, int64_t m, int64_t n, int64_t k) {
  return a.has_zeros && m >= 8 && n / kLanes<T> >= 4 && k <= kDeepestSkip;
}

// Rows 0 .. m <= kSkipPanel of A, whose elements stand side by side, padded to whole vectors.
template <class T>
static void find_nonzero(const Gather<T>& a, int64_t m, int64_t k, NonzeroRows& found) {
  found.words = (k + 63) / 64, found.count = 0;
  for (int64_t r = 0; r < m; ++r)
    for (int64_t w = 0; w < found.words; ++w) {
      found.bits[r][w] = nonzero_bits(a.data + r * a.row_stride + 64 * w, k - 64 * w < 64 ? k - 64 * w : 64);
      found.count += __builtin_popcountll(found.bits[r][w]);
    }
}

// All rows of one strip of NR vectors.
template <class T, int NR>
static void skipping_strip(const Gemm<T>& p, const NonzeroRows& nonzero, int64_t m, int64_t n0, Start start) {
  for (int64_t r = 0; r < m; ++r) {
    T* c = p.c + r * p.ldc + n0;
    const T* a = p.a.data + r * p.a.row_stride;
    if (r + 2 < m)
      for (int64_t j = 0; j < NR * kLanes<T>; j += 64 / sizeof(T)) __builtin_prefetch(c + 2 * p.ldc + j, 1);
    Vector<T> acc[1][NR] = {};
    if (start == Start::kBias || start == Start::kContinue) begin<T, 1, NR>(acc, start, p.bias + n0, c, p.ldc);
    for (int64_t w = 0; w < nonzero.words; ++w)
      for (uint64_t left = nonzero.bits[r][w]; left; left &= left - 1) {
        const int64_t k = 64 * w + __builtin_ctzll(left);
        const T factor = a[k];
        const T* b = p.b + k * p.ldb + n0;
#pragma GCC unroll 16
        for (int j = 0; j < NR; ++j) acc[0][j] += factor * load(b + j * kLanes<T>);
      }
    if (start == Start::kAccumulate) with<T, 1, NR>(acc, c, p.ldc, [](Vector<T> sum, Vector<T> x) { return sum + x; });
    put<T, 1, NR>(acc, c, p.ldc);
  }
}

// Rows 0 .. m <= kSkipPanel of C, in strips of up to `widest` vectors; false, and nothing done, where there are too few zeros.
// Either the rows or the columns of A stand side by side.
template <class T>
METAFAST_OUTLINED static bool skipping_panel(Gemm<T> p, int64_t m, int64_t n, int64_t k, Start start, int64_t widest) {
  constexpr int64_t L = kLanes<T>;
  T transposed[kSkipPanel * kDeepestSkip];  // or each factor would take a line, many of them in the same sets
  if (p.a.col_stride != 1) {
    const int64_t ld = (k + L - 1) / L * L;
    transpose(p.a.data, p.a.col_stride, k, m, transposed, ld);
    p.a.data = transposed, p.a.row_stride = int32_t(ld), p.a.col_stride = 1;
  }
  NonzeroRows nonzero;
  find_nonzero(p.a, m, k, nonzero);
  if (!nonzero.few(m, k)) return false;
  const int64_t vectors = n / L, strips = (vectors + widest - 1) / widest;
  for (int64_t strip = 0; strip < strips; ++strip) {
    const int64_t first = vectors * strip / strips, width = vectors * (strip + 1) / strips - first;
    const auto run = [&](auto of_strip) { of_strip(p, nonzero, m, first * L, start); };
    switch (width) {
      case 2: run(skipping_strip<T, 2>); break;
      case 3: run(skipping_strip<T, 3>); break;
      case 4: run(skipping_strip<T, 4>); break;
      case 5: run(skipping_strip<T, 5>); break;
      case 6: run(skipping_strip<T, 6>); break;
      case 7: run(skipping_strip<T, 7>); break;
      case 8: run(skipping_strip<T, 8>); break;
      case 9: run(skipping_strip<T, 9>); break;
      case 10: run(skipping_strip<T, 10>); break;
      case 11: run(skipping_strip<T, 11>); break;
      case 12: run(skipping_strip<T, 12>); break;
      case 13: run(skipping_strip<T, 13>); break;
      default: run(skipping_strip<T, kStrip>); break;
    }
  }
  return true;
}

template <class T>
static void multiply_skipping_zeros(const Gather<T>& a, const T* b, int64_t ldb, T* c, int64_t ldc, int64_t m,
                                    int64_t n, int64_t k, Start start, const T* bias = nullptr) {
  if constexpr (kIsPack<T>) {
    multiply<T>(a, b, ldb, c, ldc, m, n, k, start, bias);
  } else {
    constexpr int64_t kCacheVectors = 28 * 1024 / METAFAST_VECTOR_BYTES;
    if (!may_skip(a, m, n, k) || !(a.b_is_finite || all_finite(b, ldb, k, n)))
      return multiply<T>(a, b, ldb, c, ldc, m, n, k, start, bias);
    const int64_t fit = kCacheVectors / (k > 0 ? k : 1), widest = fit > kStrip ? kStrip : fit < 4 ? 4 : fit;
    for (int64_t m0 = 0; m0 < m; m0 += kSkipPanel) {
      const int64_t rows = m - m0 < kSkipPanel ? m - m0 : kSkipPanel;
      Gemm<T> p{a, b, c + m0 * ldc, ldb, ldc, bias};
      p.a.data += m0 * a.row_stride;
      if (!skipping_panel(p, rows, n, k, start, widest)) multiply<T>(p.a, b, ldb, p.c, ldc, rows, n, k, start, bias);
    }
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
