// Problem: every linear layer and convolution, forward, input gradient and weight gradient, of matrices too small for a
//   BLAS call to pay.
// Solution: one indirect product
//       C[m, n]  (=, = bias +, +=)  sum_k  a[row(m) + col(k)] * b[k * ldb + n]
//   in which the broadcast operand A may be gathered through tables: a convolution is a product whose rows are pixels
//   and whose columns are (tap, channel), without an im2col buffer, for any stride and dilation; a transposed A costs
//   nothing. Only B and C need unit stride along n, and n is padded to whole vectors, so there are no edges.
// Registers: MR rows by NR vectors of accumulators, NR vectors of B, one broadcast. Per k that is MR * NR fused
//   multiply-adds for MR + NR loads.
// Usage: multiply(a_view, b, ldb, c, ldc, m, n_vectors * kLanes, k, start, bias).
#pragma once

#include <stdint.h>

#include "core/isa.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
constexpr int kLanes = METAFAST_VECTOR_BYTES / int(sizeof(T));

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(METAFAST_VECTOR_BYTES)));
  typedef T unaligned __attribute__((vector_size(METAFAST_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};

template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
inline __attribute__((always_inline)) Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p);
}
// Asks for what stands n elements behind p, which may be outside the array.
template <class T>
inline __attribute__((always_inline)) void prefetch(const T* p, int64_t n) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + uintptr_t(n) * sizeof(T)));
}
template <class T>
inline __attribute__((always_inline)) void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = v;
}

// The broadcast operand. Either index is a table, or a stride where the table is null.
template <class T>
struct Gather {
  const T* data;
  const int32_t *row, *col;
  int32_t row_stride, col_stride;
  bool has_zeros = false;    // so many, perhaps, that it pays to skip them (zeros.h)
  bool b_is_finite = false;  // it is known that B holds neither infinities nor NaN
};

// What a product begins with: nothing; a bias; nothing, and what C holds is added last, so that long sums are folded from
// short ones; what C holds.
enum class Start { kZero, kBias, kAccumulate, kContinue };

template <class T>
struct Gemm {
  Gather<T> a;
  const T* b;
  T* c;
  int64_t ldb, ldc;
  const T* bias;
};

// acc += the products of depths k0 to k1. Rows of A begin at m0, columns of B at b, `stepb` apart.
template <class T, int MR, int NR, bool TABLE>
static inline __attribute__((always_inline)) void add_products(Vector<T> (&acc)[MR][NR], const Gather<T>& a, int64_t m0,
                                                               const T* b, int64_t ldb, int64_t stepb, int64_t k0,
                                                               int64_t k1) {
  const int64_t row = a.row_stride, col = a.col_stride;
  const T *rows[MR], *walk = a.data + m0 * row + k0 * col;
  if (TABLE)
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) rows[i] = a.data + a.row[m0 + i];
  b += k0 * ldb;
  // Otherwise four instructions a cycle, not the multipliers, set the pace: the loop's own three cost a fifth.
#pragma GCC unroll 4
  for (int64_t k = k0; k < k1; ++k, b += ldb, walk += col) {
    const int64_t offset = TABLE ? a.col[k] : 0;
    Vector<T> bv[NR];
#pragma GCC unroll 16
    for (int j = 0; j < NR; ++j) bv[j] = load(b + j * stepb);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const T ai = TABLE ? rows[i][offset] : walk[i * row];
#pragma GCC unroll 16
      for (int j = 0; j < NR; ++j) acc[i][j] += ai * bv[j];
    }
  }
}

// Walks from row to row. Without the barrier GCC computes the address of every vector beforehand, has no registers to
// hold them, and a tile's stores wait for as many loads.
template <class P>
static inline __attribute__((always_inline)) void next_row(P*& row, int64_t step) {
  row += step;
  asm("" : "+r"(row));
}

// Accumulators before the first product.
template <class T, int MR, int NR>
static inline __attribute__((always_inline)) void begin(Vector<T> (&acc)[MR][NR], Start start, const T* bias,
                                                        const T* c, int64_t ldc) {
  static const Vector<T> zeros[NR] = {};
  const T* row = start == Start::kBias ? bias : start == Start::kContinue ? c : reinterpret_cast<const T*>(zeros);
  const int64_t step = start == Start::kContinue ? ldc : 0;
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < NR; ++j) acc[i][j] = load(row + j * kLanes<T>);
    next_row(row, step);
  }
}

// acc[i][j] = change(acc[i][j], vector j of row i at `at`)
template <class T, int MR, int NR, class Change>
static inline __attribute__((always_inline)) void with(Vector<T> (&acc)[MR][NR], const T* at, int64_t ld,
                                                       Change change) {
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < NR; ++j) acc[i][j] = change(acc[i][j], load(at + j * kLanes<T>));
    next_row(at, ld);
  }
}

template <class T, int MR, int NR>
static inline __attribute__((always_inline)) void put(const Vector<T> (&acc)[MR][NR], T* c, int64_t ldc) {
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < NR; ++j) store(c + j * kLanes<T>, acc[i][j]);
    next_row(c, ldc);
  }
}

template <class T, int MR, int NR, bool TABLE>
static inline __attribute__((always_inline)) void tile(const Gemm<T>& p, int64_t m0, int64_t n0, int64_t k0, int64_t k1,
                                                       Start start) {
  T* c = p.c + m0 * p.ldc + n0;
  Vector<T> acc[MR][NR];
  begin<T, MR, NR>(acc, start, p.bias + n0, c, p.ldc);
  add_products<T, MR, NR, TABLE>(acc, p.a, m0, p.b + n0, p.ldb, kLanes<T>, k0, k1);
  if (start == Start::kAccumulate) with<T, MR, NR>(acc, c, p.ldc, [](Vector<T> sum, Vector<T> x) { return sum + x; });
  put<T, MR, NR>(acc, c, p.ldc);
}

// a / b; a division of 64 bits takes as long as a small tile.
inline int64_t quotient(int64_t a, int64_t b) {
  if (b == 1) return a;
  return uint64_t(a | b) >> 32 ? a / b : int64_t(uint32_t(a) / uint32_t(b));
}

// `count` tiles of the same height, one below the other.
template <class T, int MR, int NR>
static void tiles(const Gemm<T>& p, int64_t m, int64_t count, int64_t n, int64_t k0, int64_t k1, Start start) {
  if (p.a.col) {
    for (; count > 0; --count, m += MR) tile<T, MR, NR, true>(p, m, n, k0, k1, start);
    return;
  }
  for (; count > 0; --count, m += MR) tile<T, MR, NR, false>(p, m, n, k0, k1, start);
}

// All rows of one strip of NR vectors, in tiles of nearly equal height: 10 rows are 5 + 5, not 6 + 4.
template <class T, int NR, int MAX>
static void strip(const Gemm<T>& p, int64_t rows, int64_t n, int64_t k0, int64_t k1, Start start) {
  const int64_t count = (rows + MAX - 1) / MAX, low = quotient(rows, count);
  constexpr int kFifth = MAX < 5 ? MAX : 5, kSixth = MAX < 6 ? MAX : 6, kSeventh = MAX < 7 ? MAX : 7;
  const auto run = [&](int64_t height, int64_t m, int64_t tiles_of_it) {
    switch (height) {
      case 1: return tiles<T, 1, NR>(p, m, tiles_of_it, n, k0, k1, start);
      case 2: return tiles<T, 2, NR>(p, m, tiles_of_it, n, k0, k1, start);
      case 3: return tiles<T, 3, NR>(p, m, tiles_of_it, n, k0, k1, start);
      case 4: return tiles<T, 4, NR>(p, m, tiles_of_it, n, k0, k1, start);
      case 5: return tiles<T, kFifth, NR>(p, m, tiles_of_it, n, k0, k1, start);
      case 6: return tiles<T, kSixth, NR>(p, m, tiles_of_it, n, k0, k1, start);
      case 7: return tiles<T, kSeventh, NR>(p, m, tiles_of_it, n, k0, k1, start);
      default: return tiles<T, MAX, NR>(p, m, tiles_of_it, n, k0, k1, start);
    }
  };
  const int64_t tall = rows - low * count;  // so many tiles have one row more
  if (tall > 0) run(low + 1, 0, tall);
  run(low, tall * (low + 1), count - tall);
}

// Depth of a block: B's strip of this many rows stays in the first-level cache while all rows of A pass by. It also
// keeps sums short: a long float32 sum is folded from partial sums.
constexpr int64_t kDepth = 256;

// Registers for tiles of 6 rows by 4 vectors; fewer vectors then leave room for more rows.
template <class T>
constexpr bool kWide = METAFAST_VECTOR_BYTES == 64;
template <class T>
constexpr int kTall = kWide<T> ? 8 : 6;

template <class T>
static void multiply(const Gather<T>& a, const T* b, int64_t ldb, T* c, int64_t ldc, int64_t m, int64_t n, int64_t k,
                     Start start, const T* bias = nullptr) {
  constexpr int L = kLanes<T>;
  const Gemm<T> p{a, b, c, ldb, ldc, bias};
  const int64_t blocks = k > 0 ? (k + kDepth - 1) / kDepth : 1;
  int64_t k0 = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t k1 = k0 + quotient(k - k0, blocks - block);
    int64_t vectors = n / L;
    for (int64_t j = 0; vectors > 0;) {
      // Strips of 2 vectors by up to 6 or 8 rows; 5 vectors are 3 + 2 and 3 are 3, by up to 4 rows. With registers for
      // it and a strip that stays in the first-level cache, 4 vectors, whose multiplications outnumber their loads by more.
      if (kWide<T> && k1 - k0 <= kDepth / 2 && vectors >= 4 && vectors != 5) {
        if constexpr (kWide<T>) strip<T, 4, 6>(p, m, j, k0, k1, start);
        j += 4 * L, vectors -= 4;
      } else if (vectors == 3 || vectors == 5) {
        strip<T, 3, kWide<T> ? 8 : 4>(p, m, j, k0, k1, start);
        j += 3 * L, vectors -= 3;
      } else if (vectors >= 2) {
        strip<T, 2, kTall<T>>(p, m, j, k0, k1, start);
        j += 2 * L, vectors -= 2;
      } else {
        strip<T, 1, kTall<T>>(p, m, j, k0, k1, start);
        j += L, vectors -= 1;
      }
    }
    start = Start::kAccumulate;
    k0 = k1;
  }
}

// sum over rows of x, added to or written over out[0 .. n).
template <class T>
static void column_sums(const T* x, int64_t ldx, int64_t rows, int64_t n, T* out, bool accumulate) {
  constexpr int L = kLanes<T>;
  for (int64_t j = 0; j < n; j += L) {
    Vector<T> total = accumulate ? load(out + j) : Vector<T>{};
    for (int64_t r0 = 0; r0 < rows; r0 += kDepth) {
      const int64_t r1 = r0 + kDepth < rows ? r0 + kDepth : rows;
      Vector<T> part{};
      for (int64_t r = r0; r < r1; ++r) part += load(x + r * ldx + j);
      total += part;
    }
    store(out + j, total);
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
