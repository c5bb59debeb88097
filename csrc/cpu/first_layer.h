// The first layer without its weight matrix (docs/maths.md, section 7).
//
// Problem: on images the first linear layer holds most of the arithmetic: X W forward, X' D for its gradient and the
//   same again for tangents, at every inner step, though X never changes.
// Solution: with a fixed support set and one rate a_k per step, W_k = W_0 - X' sum_{j<k} a_j D_j, so that the products
//       Z_k = X W_k = Z_0 - G sum_{j<k} a_j D_j,   G = X X'
//   follow without touching W again, and likewise for M_k = X lambda_k in the reverse sweep, M_k = M_K - G sum_{j>=k} D'_j,
//   where D' is the tangent of D. The query needs X_q W_K = X_q W_0 - C sum_k a_k D_k with C = X_q X', and the
//   meta-gradient is X_q' D_q - X' sum_k D'_k. The same function by other sums: N * N products per step in place of
//   N * inputs.
// Usage: the planner replaces the layer by kFirstLinear, whose passes read Z and its tangent from the frame; the engine
//   calls begin, step, query, ... in place of what it does for other parameters. Chosen by cost (cpu/choices.cpp).
#pragma once

#include "cpu/frame.h"
#include "cpu/kernels/dot.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct FirstLayer {
  const FirstLayerPlan& n;
  T* const base;  // its place in the workspace
  const T *x, *x_query;
  const Sharing<T>& share;

  // X W_k.
  FirstProduct<T> z(int32_t k) const { return {base + n.start, change(k), T(1)}; }
  FirstProduct<T> z_query() const { return {base + n.query_start, base + n.query_change, T(1)}; }
  // X lambda, as far back as the reverse sweep has come.
  FirstProduct<T> mu(T rate) const { return {base + n.mu_start, base + n.mu_change, rate}; }

  void begin(const T* w) const {
    negative_gram();
    product(x, n.support_rows, w, base + n.start);
    T* const zeros[] = {change(0), moved(), swept(), base + n.mu_change};
    for (T* array : zeros) memset(array, 0, size_t(size()) * sizeof(T));
  }

  // Step k, of the given rate, against the gradient X' D.
  void step(int32_t k, T rate, const T* d) const {
    add(rate, d, moved());
    if (k + 1 < n.steps) by_gram(base + n.gram, n.support_rows, moved(), change(k + 1));
  }

  void query(const T* w) const {
    share(n.query_rows, n.support_rows * n.inputs, [&](int64_t begin, int64_t end, T*) {
      negative_products(x_query, begin, end, n.support_rows, base + n.cross);
    });
    product(x_query, n.query_rows, w, base + n.query_start);
    by_gram(base + n.cross, n.query_rows, moved(), base + n.query_change);
  }

  // From the cotangent of the query's first layer: the gradient of W, and M_K.
  void query_adjoint(const T* d, T* gradient) const {
    weight_gradient(x_query, n.query_rows, d, gradient, Start::kZero);
    T* mu = base + n.mu_start;
    multiply<T>(share, {base + n.cross, nullptr, nullptr, 1, int32_t(n.support_rows)}, d, n.ld, mu, n.ld,
                n.support_rows, n.ld, n.query_rows, Start::kZero);
    for (int64_t i = 0; i < size(); ++i) mu[i] = -mu[i];
  }

  // Step k backwards, its tangent being `factor` times that of D.
  void reverse(int32_t k, T factor, const T* d_dot) const {
    add(factor, d_dot, swept());
    if (k > 0) by_gram(base + n.gram, n.support_rows, swept(), base + n.mu_change);
  }

  void finish(T* gradient) const {
    for (int64_t i = 0; i < size(); ++i) swept()[i] = -swept()[i];
    weight_gradient(x, n.support_rows, swept(), gradient, Start::kAccumulate);
  }

  // - lambda . g for this layer: <X lambda, D>.
  T rate_gradient(const T* d) const {
    const FirstProduct<T> m = mu(T(1));
    Vector<T> sum{};
    for (int64_t i = 0; i < size(); i += kLanes<T>) sum += (load(m.start + i) + load(m.change + i)) * load(d + i);
    return -sum_of<T>(sum);
  }

 private:
  int64_t size() const { return n.support_rows * n.ld; }
  T* change(int32_t k) const { return base + n.change + k % n.changes * size(); }
  T* moved() const { return base + n.moved; }  // sum_k a_k D_k
  T* swept() const { return base + n.swept; }  // sum_k D'_k

  void add(T factor, const T* __restrict d, T* __restrict sum) const {
    for (int64_t i = 0; i < size(); ++i) sum[i] += factor * d[i];
  }
  void product(const T* rows, int64_t count, const T* w, T* out) const {
    multiply<T>(share, {rows, nullptr, nullptr, n.inputs, 1}, w, n.ld, out, n.ld, count, n.ld, n.inputs, Start::kZero);
  }
  void weight_gradient(const T* rows, int64_t count, const T* d, T* gradient, Start start) const {
    multiply<T>(share, {rows, nullptr, nullptr, 1, n.inputs}, d, n.ld, gradient, n.ld, n.inputs, n.ld, count, start);
  }
  // out[i, j] = - rows_i . x_j for begin <= i < end and j < columns; negative, so that changes are sums.
  void negative_products(const T* rows, int64_t begin, int64_t end, int64_t columns, T* out) const {
    multiply_rows<T>(rows + begin * n.inputs, n.inputs, x, n.inputs, out + begin * n.support_rows, n.support_rows,
                     end - begin, columns, n.inputs, Start::kZero, nullptr);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < columns; ++j) out[i * n.support_rows + j] = -out[i * n.support_rows + j];
  }
  // Half of a symmetric matrix by rows of tiles, the rest from it.
  void negative_gram() const {
    constexpr int64_t kRows = 2 * kDotRows;
    const int64_t rows = n.support_rows;
    T* const gram = base + n.gram;
    share((rows + kRows - 1) / kRows, kRows * rows / 2 * n.inputs, [&](int64_t begin, int64_t end, T*) {
      for (int64_t i = begin * kRows; i < end * kRows && i < rows; i += kRows) {
        const int64_t last = i + kRows < rows ? i + kRows : rows;
        negative_products(x, i, last, last, gram);
      }
    });
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = i + 1; j < rows; ++j) gram[i * n.support_rows + j] = gram[j * n.support_rows + i];
  }
  void by_gram(const T* gram, int64_t count, const T* d, T* out) const {
    multiply<T>(share, {gram, nullptr, nullptr, int32_t(n.support_rows), 1}, d, n.ld, out, n.ld, count, n.ld,
                n.support_rows, Start::kZero);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
