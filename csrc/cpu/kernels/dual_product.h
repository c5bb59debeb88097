// Problem: a Hessian-vector product wants y = x W + b and its tangent y' = x' W + b' + x W'. Behind a ReLU half of x and x' is
//   zero, and each of the three products loads a register for every multiply-add (zeros.h).
// Solution: one walk over what is not zero in either. A register of W is loaded once for two multiply-adds; every sum is added
//   up in the order of three products one after the other.
// Usage: multiply_dual(share, DualProduct<T>{...});
#pragma once

#include "cpu/threads/share.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct DualProduct {
  Gather<T> x, x_dot;  // col_stride 1, padded to whole vectors
  const T *w, *w_dot;
  T *y, *y_dot;
  int64_t ld, m, n, k;       // ld: of W, W', y and y'
  const T *bias, *bias_dot;  // or null

  DualProduct rows(int64_t from, int64_t count) const {
    DualProduct part = *this;
    part.x.data += from * x.row_stride, part.x_dot.data += from * x_dot.row_stride;
    part.y += from * ld, part.y_dot += from * ld, part.m = count;
    return part;
  }
};

template <class T>
static void multiply_three(const Sharing<T>& share, const DualProduct<T>& p) {
  const auto begin = [](const T* bias) { return bias ? Start::kBias : Start::kZero; };
  multiply(share, p.x, p.w, p.ld, p.y, p.ld, p.m, p.n, p.k, begin(p.bias), p.bias);
  multiply(share, p.x_dot, p.w, p.ld, p.y_dot, p.ld, p.m, p.n, p.k, begin(p.bias_dot), p.bias_dot);
  multiply(share, p.x, p.w_dot, p.ld, p.y_dot, p.ld, p.m, p.n, p.k, Start::kAccumulate);
}

// NR vectors of each row.
template <class T, int NR>
static void dual_strip(const DualProduct<T>& p, const NonzeroRows& nonzero, int64_t n0) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t r = 0; r < p.m; ++r) {
    const T *x = p.x.data + r * p.x.row_stride, *x_dot = p.x_dot.data + r * p.x_dot.row_stride;
    Vector<T> y[NR], of_x_dot[NR], of_w_dot[NR];
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) {
      y[j] = p.bias ? load(p.bias + n0 + j * L) : Vector<T>{};
      of_x_dot[j] = p.bias_dot ? load(p.bias_dot + n0 + j * L) : Vector<T>{};
      of_w_dot[j] = Vector<T>{};
    }
    for (int64_t word = 0; word < nonzero.words; ++word)
      for (uint64_t left = nonzero.bits[r][word]; left; left &= left - 1) {
        const int64_t at = 64 * word + __builtin_ctzll(left);
        const T factor = x[at], factor_dot = x_dot[at];
        const T *w = p.w + at * p.ld + n0, *w_dot = p.w_dot + at * p.ld + n0;
#pragma GCC unroll 4
        for (int j = 0; j < NR; ++j) {
          Vector<T> of_w = load(w + j * L);
#if defined(__x86_64__)  // in a register, or GCC loads it twice
          __asm__("" : "+v"(of_w));
#endif
          y[j] += factor * of_w;
          of_x_dot[j] += factor_dot * of_w;
          of_w_dot[j] += factor * load(w_dot + j * L);
        }
      }
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) {
      store(p.y + r * p.ld + n0 + j * L, y[j]);
      store(p.y_dot + r * p.ld + n0 + j * L, of_w_dot[j] + of_x_dot[j]);
    }
  }
}

template <class T>
static void multiply_dual(const Sharing<T>& share, const DualProduct<T>& p) {
  constexpr int64_t L = kLanes<T>, kWidest = 4;  // with which sixteen registers are full
  const int64_t vectors = p.n / L, strips = (vectors + kWidest - 1) / kWidest;
  if (share.members() > 1 || !may_skip(p.x, p.m, p.n, p.k) || !all_finite(p.w, p.ld, p.k, p.n) ||
      !all_finite(p.w_dot, p.ld, p.k, p.n))
    return multiply_three(share, p);
  for (int64_t m0 = 0; m0 < p.m; m0 += kSkipPanel) {
    const DualProduct<T> part = p.rows(m0, p.m - m0 < kSkipPanel ? p.m - m0 : kSkipPanel);
    NonzeroRows nonzero, of_dot;
    find_nonzero(part.x, part.m, p.k, nonzero);
    find_nonzero(part.x_dot, part.m, p.k, of_dot);
    nonzero.add(of_dot, part.m);
    if (!nonzero.few(part.m, p.k)) {
      multiply_three(share, part);
      continue;
    }
    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t first = vectors * strip / strips, width = vectors * (strip + 1) / strips - first;
      switch (width) {
        case 2: dual_strip<T, 2>(part, nonzero, first * L); break;
        case 3: dual_strip<T, 3>(part, nonzero, first * L); break;
        default: dual_strip<T, 4>(part, nonzero, first * L); break;
      }
    }
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
