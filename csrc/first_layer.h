// The first layer without its weight matrix (docs/maths.md, section 7).
//
// Problem: on images the first linear layer holds most of the arithmetic: X W forward, X' D for its gradient and the
//   same again for tangents, at every inner step, though X never changes.
// Solution: with a fixed support set and one rate a_k per step, W_{k+1} = W_k - a_k X' D_k, so that the products
//       Z_k = X W_k,   Z_{k+1} = Z_k - a_k G D_k,   G = X X'
//   follow without touching W again, and likewise for M_k = X lambda_k in the reverse sweep, M_k = M_{k+1} - G D'_k,
//   where D' is the tangent of D. The query needs X_q W_K = X_q W_0 - C sum_k a_k D_k with C = X_q X', and the
//   meta-gradient is X_q' D_q - X' sum_k D'_k. The same function by other sums: N * N products per step in place of
//   N * inputs.
// Usage: the planner replaces the layer by kFirstLinear, whose passes read Z and its tangent from the frame; the engine
//   calls begin, step, query, ... in place of what it does for other parameters. Chosen by cost (choices.cpp).
#pragma once

#include "cpu/frame.h"
#include "cpu/transpose.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct FirstLayer {
  const FirstLayerPlan& n;
  T* const base;  // this thread's part of the workspace
  const T *x, *x_query;

  int64_t size() const { return n.support_rows * n.ld; }
  T* z(int32_t k) const { return base + n.trajectory + k % n.products * size(); }
  T* z_query() const { return base + n.z_query; }
  T* moved() const { return base + n.moved; }  // sum_k a_k D_k
  T* mu() const { return base + n.mu; }        // X lambda
  T* tangent() const { return base + n.tangent; }
  T* swept() const { return base + n.swept; }  // sum_k D'_k
  T* scaled() const { return base + n.scaled; }

  void begin(const T* w) const {
    transpose(x, n.inputs, n.support_rows, n.inputs, base + n.x_transposed, n.ld_rows);
    negative_gram(x, n.support_rows, base + n.gram);
    product(x, n.support_rows, w, z(0));
    for (int64_t i = 0; i < size(); ++i) moved()[i] = swept()[i] = T(0);
  }

  // Z after a step of the given rate against the gradient X' D.
  void step(int32_t k, T rate, const T* __restrict d) const {
    T* __restrict s = scaled(), * __restrict sum = moved(), * __restrict next = z(k + 1);
    const T* __restrict now = z(k);
    for (int64_t i = 0; i < size(); ++i) {
      s[i] = rate * d[i];
      sum[i] += s[i];
      next[i] = now[i];
    }
    by_gram(base + n.gram, n.support_rows, s, next);
  }

  void query(const T* w) const {
    negative_gram(x_query, n.query_rows, base + n.cross);
    product(x_query, n.query_rows, w, z_query());
    by_gram(base + n.cross, n.query_rows, moved(), z_query());
  }

  // From the cotangent of the query's first layer: the gradient of W, and M_K.
  void query_adjoint(const T* d, T* gradient) const {
    weight_gradient(x_query, n.query_rows, d, gradient, Start::kZero);
    multiply<T>({base + n.cross, nullptr, nullptr, 1, n.ld_rows}, d, n.ld, mu(), n.ld, n.support_rows, n.ld,
                n.query_rows, Start::kZero);
    for (int64_t i = 0; i < size(); ++i) mu()[i] = -mu()[i];
  }

  void make_tangent(T rate) const {
    for (int64_t i = 0; i < size(); ++i) tangent()[i] = rate * mu()[i];
  }

  void reverse(const T* __restrict d_dot) const {
    T* __restrict sum = swept();
    for (int64_t i = 0; i < size(); ++i) sum[i] += d_dot[i];
    by_gram(base + n.gram, n.support_rows, d_dot, mu());
  }

  void finish(T* gradient) const {
    for (int64_t i = 0; i < size(); ++i) swept()[i] = -swept()[i];
    weight_gradient(x, n.support_rows, swept(), gradient, Start::kAccumulate);
  }

  // - lambda . g for this layer: <X lambda, D>.
  T rate_gradient(const T* d) const {
    Vector<T> sum{};
    for (int64_t i = 0; i < size(); i += kLanes<T>) sum += load(mu() + i) * load(d + i);
    return -sum_of<T>(sum);
  }

 private:
  void product(const T* rows, int64_t count, const T* w, T* out) const {
    multiply<T>({rows, nullptr, nullptr, n.inputs, 1}, w, n.ld, out, n.ld, count, n.ld, n.inputs, Start::kZero);
  }
  void weight_gradient(const T* rows, int64_t count, const T* d, T* gradient, Start start) const {
    multiply<T>({rows, nullptr, nullptr, 1, n.inputs}, d, n.ld, gradient, n.ld, n.inputs, n.ld, count, start);
  }
  // out = - rows X', so that updates are sums.
  void negative_gram(const T* rows, int64_t count, T* out) const {
    multiply<T>({rows, nullptr, nullptr, n.inputs, 1}, base + n.x_transposed, n.ld_rows, out, n.ld_rows, count,
                n.ld_rows, n.inputs, Start::kZero);
    for (int64_t i = 0; i < count * n.ld_rows; ++i) out[i] = -out[i];
  }
  void by_gram(const T* gram, int64_t count, const T* d, T* out) const {
    multiply<T>({gram, nullptr, nullptr, n.ld_rows, 1}, d, n.ld, out, n.ld, count, n.ld, n.support_rows,
                Start::kAccumulate);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
