// Problem: a product with a weight as the user has it, [outputs][inputs], needs it transposed for gemm.h, and where the
//   weight is used once, turning it takes as long as the product.
// Solution: C[m, n] = bias[n] + sum_k A[m, k] B[n, k] as inner products along k, which is contiguous in both: a tile of
//   kDotRows of A by kDotColumns of B, each sum in a register of its own until the end.
//   Where most of C will be multiplied by zero, by a ReLU's slope, for instance, only the rest is computed: a row of B with
//   those rows of A, at most kChosenRows at a time, that it is wanted for.
// Usage: multiply_rows(a, lda, b, ldb, c, ldc, m, n, k, start, bias);
//   multiply_chosen_rows(wanted, ldw, ...), start being kZero or kBias and k a multiple of kLanes<T>.
#pragma once

#include "transpose.h"
#include "zeros.h"

namespace metafast {
namespace METAFAST_ISA {

// 24 sums in AVX-512's 32 registers, 12 in 16.
constexpr int kDotRows = METAFAST_VECTOR_BYTES == 64 ? 6 : 3, kDotColumns = 4;

// Depth of a block: its rows of B stay in the first-level cache while all rows of A pass by. Deep, because at its end each
// sum is added up over a register.
template <class T>
constexpr int64_t kDotDepth = 4096 / sizeof(T);

// sums[j] = the sum over the elements of rows[j]: pairs of rows are added half to half until one is left, by half of the
// shuffles that turning them would take.
template <class T>
inline __attribute__((always_inline)) void sum_tree(const Vector<T>* rows, T* sums) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    Vector<T> pair[4], quad[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vector<T> a = rows[2 * i], b = rows[2 * i + 1];
      pair[i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
                __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const Vector<T> a = pair[2 * i], b = pair[2 * i + 1];
      quad[i] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
    const Vector<T> all =
        __builtin_shufflevector(quad[0], quad[1], 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23) +
        __builtin_shufflevector(quad[0], quad[1], 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    typename Block<T>::Row half[2];
    memcpy(half, &all, sizeof all);
    half[0] += half[1];
    memcpy(sums, &half[0], sizeof half[0]);
    return;
  }
#endif
  sum_rows<T>(rows, sums);
}

// `ahead`, if not null, is a row that will be wanted next: weights of many tasks come from memory.
template <class T, int MR>
static void dot_tile(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t columns, T* c, int64_t ldc, int64_t k,
                     Start start, const T* bias, const T* ahead) {
  constexpr int L = kLanes<T>, NC = kDotColumns, S = Block<T>::kSize, kSums = (MR * NC + S - 1) / S * S;
  const T* row[NC];  // where B ends, its last row stands for those that are not there
#pragma GCC unroll 4
  for (int j = 0; j < NC; ++j) row[j] = b + (j < columns ? j : columns - 1) * ldb;
  Vector<T> sum[kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) sum[i] = Vector<T>{};
  const auto add = [&](const T* first, int64_t step, auto of_b) __attribute__((always_inline)) {
    Vector<T> x[MR];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) x[i] = load(first + i * step);
#pragma GCC unroll 4
    for (int j = 0; j < NC; ++j) {
      Vector<T> y = load(of_b(j));
#if defined(__x86_64__)  // in a register: GCC loads it anew for each multiplication, and loads then set the pace
      __asm__("" : "+v"(y));
#endif
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) sum[i * NC + j] += x[i] * y;
    }
  };
  const int64_t whole = k / L * L;
  for (int64_t p = 0; p < whole; p += L) {
    if (ahead) __builtin_prefetch(ahead + p);
    add(a + p, lda, [&](int j) { return row[j] + p; });
  }
  if (whole < k) {
    T rest[MR + NC][L] = {};
    for (int i = 0; i < MR; ++i) memcpy(rest[i], a + i * lda + whole, size_t(k - whole) * sizeof(T));
    for (int j = 0; j < NC; ++j) memcpy(rest[MR + j], row[j] + whole, size_t(k - whole) * sizeof(T));
    add(rest[0], L, [&](int j) { return rest[MR + j]; });
  }
  T sums[kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kSums; i += S) sum_tree<T>(sum + i, sums + i);
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
    T *of_row = sums + i * NC, *out = c + i * ldc;
    const T* before = start == Start::kBias ? bias : out;
    const auto finish = [&](int64_t count) {
      if (start != Start::kZero)
        for (int64_t j = 0; j < count; ++j) of_row[j] += before[j];
      for (int64_t j = 0; j < count; ++j) out[j] = of_row[j];
    };
    columns == NC ? finish(NC) : finish(columns);  // a constant number becomes a vector
  }
}

// `later`, if not null, is a matrix like B that will be wanted soon, and comes from memory too.
template <class T>
static void multiply_rows(const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc, int64_t m, int64_t n,
                          int64_t k, Start start, const T* bias, const T* later = nullptr) {
  constexpr int NC = kDotColumns, L = kLanes<T>;
  const int64_t blocks = (k + kDotDepth<T> - 1) / kDotDepth<T>;
  for (int64_t j = 0; j < n; j += NC) {
    const int64_t columns = n - j < NC ? n - j : NC;
    for (int64_t block = 0; block < blocks; ++block) {
      const bool last = block + 1 == blocks;
      const int64_t k0 = k / L * block / blocks * L, depth = (last ? k : k / L * (block + 1) / blocks * L) - k0;
      const int64_t next_columns = n - j - NC < NC ? n - j - NC : NC;
      const T* ahead = last ? b + (j + NC) * ldb : b + j * ldb + k0 + depth;
      int64_t rows_ahead = last ? next_columns : columns, rows_later = later ? columns : 0;
      const T* of_later = later ? later + j * ldb + k0 : nullptr;
      int64_t i = 0;
      const auto run = [&](auto tile, int64_t height) {
        for (; i + height <= m; i += height) {
          const T* fetched = nullptr;
          if (rows_ahead > 0)
            fetched = ahead, ahead += ldb, --rows_ahead;
          else if (rows_later > 0)
            fetched = of_later, of_later += ldb, --rows_later;
          tile(a + i * lda + k0, lda, b + j * ldb + k0, ldb, columns, c + i * ldc + j, ldc, depth,
               block == 0 ? start : Start::kAccumulate, bias ? bias + j : nullptr, fetched);
        }
      };
      if constexpr (kDotRows > 3) run(dot_tile<T, kDotRows>, kDotRows);
      run(dot_tile<T, 3>, 3);
      run(dot_tile<T, 2>, 2);
      run(dot_tile<T, 1>, 1);
    }
  }
}

// Rows of A that are tried with a row of B, each sum in a register, and the depth at which all of them stay in the
// first-level cache.
constexpr int64_t kChosenRows = METAFAST_VECTOR_BYTES == 64 ? 17 : 12;
template <class T>
constexpr int64_t kChosenDepth = 27 * 1024 / int64_t(kChosenRows * sizeof(T));

// A row of B is loaded for fewer multiply-adds than in tiles, and every sum is added up over a register: measured.
inline bool chosen_rows_pay(int64_t chosen, int64_t m, int64_t n, int64_t k) {
  return 8 * chosen <= 5 * m * n && m >= 16 && k >= 256;
}

// Which of up to kChosenRows rows of A each of up to 64 rows of B is wanted with; those wanted with as many stand together
// in `order`, because a loop whose length changes from time to time is guessed wrongly.
struct Chosen {
  uint64_t rows[64];
  int32_t order[64];
};

template <class T>
static void choose(const T* wanted, int64_t ldw, int64_t m, int64_t n, Chosen& chosen) {
  int32_t at[kChosenRows + 2] = {};
  for (int64_t j = 0; j < n; j += kLanes<T>) nonzero_columns(wanted + j, ldw, 0, m, chosen.rows + j);
  for (int64_t j = 0; j < n; ++j) ++at[__builtin_popcountll(chosen.rows[j]) + 1];
  for (int64_t r = 0; r < kChosenRows; ++r) at[r + 1] += at[r];
  for (int64_t j = 0; j < n; ++j) chosen.order[at[__builtin_popcountll(chosen.rows[j])]++] = int32_t(j);
}

// Rows of B that are wanted with R rows of A: c[i, j] += the products of depths 0 .. k. `fetch`: B comes from memory.
template <class T, int R>
METAFAST_OUTLINED static void chosen_tile(const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                                          int64_t k, const Chosen* chosen, const int32_t* order, int64_t count,
                                          bool fetch) {
  constexpr int L = kLanes<T>, S = Block<T>::kSize, kSums = (R + S - 1) / S * S;
  for (int64_t e = 0; e < count; ++e) {
    const T *row[R], *y = b + order[e] * ldb;
    uint64_t left = chosen->rows[order[e]];
#pragma GCC unroll 32
    for (int i = 0; i < R; ++i, left &= left - 1) row[i] = a + __builtin_ctzll(left) * lda;
    const T* ahead = fetch && e + 2 < count ? b + order[e + 2] * ldb : nullptr;
    Vector<T> sum[kSums];
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) sum[i] = Vector<T>{};
    for (int64_t p = 0; p < k; p += L) {
      Vector<T> factor = load(y + p);
      if (ahead) __builtin_prefetch(ahead + p);
#if defined(__x86_64__)  // in a register, as in dot_tile
      __asm__("" : "+v"(factor));
#endif
#pragma GCC unroll 32
      for (int i = 0; i < R; ++i) sum[i] += factor * load(row[i] + p);
    }
    T sums[kSums];
    left = chosen->rows[order[e]];
#pragma GCC unroll 32
    for (int i = 0; i < kSums; i += S) sum_tree<T>(sum + i, sums + i);
#pragma GCC unroll 32
    for (int i = 0; i < R; ++i, left &= left - 1) c[__builtin_ctzll(left) * ldc + order[e]] += sums[i];
  }
}

// chosen_tile<T, rows>(of_tile...)
template <class T, int R = kChosenRows, class... Arguments>
static void chosen_tiles(int64_t rows, Arguments... of_tile) {
  if (rows == R)
    chosen_tile<T, R>(of_tile...);
  else if constexpr (R > 1)
    chosen_tiles<T, R - 1>(rows, of_tile...);
}

// C = multiply_rows(...) where `wanted`, [m][ldw], is not zero, zero elsewhere. ldw and ldc are whole vectors, pads of both zero.
template <class T>
static void multiply_chosen_rows(const T* wanted, int64_t ldw, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                                 int64_t ldc, int64_t m, int64_t n, int64_t k, const T* bias) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < ldc; j += L) {
      Vector<T> start{};
      if (bias) start = load(wanted + i * ldw + j) != start ? load(bias + j) : start;
      store(c + i * ldc + j, start);
    }
  const int64_t blocks = (k + kChosenDepth<T> - 1) / kChosenDepth<T>, parts = (m + kChosenRows - 1) / kChosenRows;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t i = m * part / parts, height = m * (part + 1) / parts - i;
    for (int64_t j = 0; j < n; j += 64) {
      const int64_t width = n - j < 64 ? n - j : 64;
      Chosen chosen;
      choose(wanted + i * ldw + j, ldw, height, width, chosen);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t k0 = k / L * block / blocks * L, depth = k / L * (block + 1) / blocks * L - k0;
        const auto rows_of = [&](int64_t e) { return __builtin_popcountll(chosen.rows[chosen.order[e]]); };
        for (int64_t e = 0, next; e < width; e = next) {
          for (next = e + 1; next < width && rows_of(next) == rows_of(e);) ++next;
          chosen_tiles<T>(rows_of(e), a + i * lda + k0, lda, b + j * ldb + k0, ldb, c + i * ldc + j, ldc, depth,
                          &chosen, &chosen.order[e], next - e, part == 0);
        }
      }
    }
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
