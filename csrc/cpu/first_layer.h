// The first layer without its weight matrix: a parameter kept in coordinates (docs/maths.md, section 7).
//
// Problem: on images the first linear layer holds most of the arithmetic: X W forward, X' D for its gradient and the
//   same again for tangents, at every inner step, though X never changes.
// Solution: the gradient of W is X' D, so a rule that is affine and treats all elements of W alike leaves it, and whatever
//   state it has, where coordinates say:
//       W_k = c_k W_0 + X' S_k,   b_k = e_k W_0 + X' E_k
//   The rule's own step, done on the numbers (c, e; gradient 0) and on the arrays (S, E; gradient D), moves the coordinates. The
//   products X W_k = c_k Z_0 + G S_k with G = X X' follow without touching W, and X_q W_K with C = X_q X' likewise. The bars
//   have coordinates as well: with B = X_q' D_q,
//       lambda = p B + X' R,   sigma = q B + X' Q
//   on which the rule's own adjoint works, and H v adds D' to R, where D' is the tangent of D. The same function by other
//   sums: N * N products per step in place of N * inputs.
// Usage: the planner replaces the layer by kFirstLinear, whose passes read Z and its tangent from the frame; the machine
//   calls begin, step, query, ... in place of what it does for other parameters. Chosen by cost (cpu/choices.cpp).
#pragma once

#include "cpu/frame.h"
#include "cpu/kernels/dot.h"
#include "cpu/rule_walk.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct FirstLayer {
  using Walk = CpuWalk<T>;
  using S = typename Walk::Scalar;

  const Job<Element<T>>& job;
  const FirstLayerPlan& n;
  T* const base;  // its place in the workspace
  const T *x, *x_query;
  const Sharing<T>& share;

  // X W_k.
  FirstProduct<T> z(int32_t k) const { return {base + n.start, change(k), *coordinates(k), T(1)}; }
  FirstProduct<T> z_query() const { return {base + n.query_start, base + n.query_change, *coordinates(n.steps), T(1)}; }
  // X lambda times a factor, as far back as the reverse sweep of gradient descent has come.
  FirstProduct<T> mu(T factor) const { return {base + n.mu_start, base + n.mu_change, T(1), factor}; }

  void begin(const T* w) const {
    gram();
    product(x, n.support_rows, w, base + n.start);
    T* const zeros[] = {change(0), coordinates(), coordinate_bars(), base + n.mu_change};
    for (T* array : zeros) clear(array, size());
    clear(base + n.states, 2 * job.state_count * size());
    coordinates(0)[0] = T(1);
    clear(coordinates(0) + 1, job.state_count);
    bars()[0] = T(1);
    clear(bars() + 1, job.state_count);
  }

  // Step k, whose gradient is X' D.
  void step(int32_t k, const T* d) const {
    with_link(job.links[0].kind, [&](auto is) {
      using Link = typename decltype(is)::Type;
      if constexpr (Link::kAffine) {
        const T *from = coordinates(k), *const none = nullptr;
        T* to = coordinates(k + 1);
        run<Link, T>(k, from, none, from + 1, to, to + 1, 1);
        run<Link, S>(k, coordinates(), d, states(), coordinates(), states(), size());
      }
    });
    const int32_t every = job.kept.every;
    if (every && (k + 1) % every == 0) copy(coordinates(), states(), checkpoint(k + 1), checkpoint(k + 1) + size());
    if (k + 1 < n.steps) by_gram(base + n.gram, n.support_rows, coordinates(), change(k + 1));
  }

  // Coordinates as step k, which follows a checkpoint or is the first, found them.
  void restore(int32_t k) const {
    if (k == 0) {
      clear(coordinates(), size()), clear(states(), job.state_count * size()), clear(change(0), size());
      return;
    }
    copy(checkpoint(k), checkpoint(k) + size(), coordinates(), states());
    by_gram(base + n.gram, n.support_rows, coordinates(), change(k));
  }

  void query(const T* w) const {
    share(n.query_rows, n.support_rows * n.inputs,
          [&](int64_t begin, int64_t end, T*) { products(x_query, begin, end, n.support_rows, base + n.cross); });
    product(x_query, n.query_rows, w, base + n.query_start);
    by_gram(base + n.cross, n.query_rows, coordinates(), base + n.query_change);
  }

  // From the cotangent of the query's first layer: B, and X B.
  void query_adjoint(const T* d, T* gradient) const {
    weight_gradient(x_query, n.query_rows, d, gradient, Start::kZero);
    multiply<T>(share, {base + n.cross, nullptr, nullptr, 1, int32_t(n.support_rows)}, d, n.ld, base + n.mu_start, n.ld,
                n.support_rows, n.ld, n.query_rows, Start::kZero);
  }

  // The adjoint of step k, and X v.
  FirstProduct<T> adjoint(int32_t k) const {
    T v0 = T(0);
    with_link(job.links[0].kind, [&](auto is) {
      using Link = typename decltype(is)::Type;
      if constexpr (Link::kAffine) {
        run_back<Link, T>(k, bars(), bars() + 1, &v0, 1);
        run_back<Link, S>(k, coordinate_bars(), states() + job.state_count * size(), base + n.direction, size());
      }
    });
    if (k + 1 < n.steps) by_gram(base + n.gram, n.support_rows, base + n.direction, base + n.mu_change);
    return {base + n.mu_start, base + n.mu_change, v0, T(1)};
  }

  // H v of step k, its tangent being `factor` times that of D.
  void reverse(int32_t k, T factor, const T* d_dot) const {
    T* __restrict r = coordinate_bars();
    for (int64_t i = 0; i < size(); ++i) r[i] += factor * d_dot[i];
    if (job.descent && k > 0) by_gram(base + n.gram, n.support_rows, coordinate_bars(), base + n.mu_change);
  }

  // From B to lambda.
  void finish(T* gradient) const {
    const T p = bars()[0];
    if (!job.descent)
      for (int64_t i = 0; i < int64_t(n.inputs) * n.ld; ++i) gradient[i] = p * gradient[i];
    weight_gradient(x, n.support_rows, coordinate_bars(), gradient, Start::kAccumulate);
  }

  // - lambda . g of gradient descent: - <X lambda, D>.
  T rate_gradient(const T* d) const {
    const FirstProduct<T> m = mu(T(1));
    Vector<T> sum{};
    for (int64_t i = 0; i < size(); i += kLanes<T>) sum += (load(m.start + i) + load(m.change + i)) * load(d + i);
    return -sum_of<T>(sum);
  }

 private:
  int64_t size() const { return n.support_rows * n.ld; }
  T* change(int32_t k) const { return base + n.change + k % n.changes * size(); }
  T* coordinates() const { return base + n.coordinates; }                                   // S
  T* coordinate_bars() const { return base + n.coordinate_bars; }                           // R
  T* states() const { return base + n.states; }                                             // E, then Q
  T* coordinates(int32_t k) const { return base + n.numbers + k * (1 + job.state_count); }  // c and e of step k
  T* bars() const { return coordinates(n.steps + 1); }                                      // p and q
  T* checkpoint(int32_t k) const {
    return base + n.checkpoints + (k / job.kept.every - 1) * (1 + job.state_count) * size();
  }
  void copy(const T* theta, const T* state, T* theta_to, T* state_to) const {
    memcpy(theta_to, theta, size_t(size()) * sizeof(T));
    memcpy(state_to, state, size_t(job.state_count * size()) * sizeof(T));
  }
  static void clear(T* array, int64_t count) { memset(array, 0, size_t(count) * sizeof(T)); }

  // One number, or a register of elements.
  template <class R>
  static R get(const T* p) {
    if constexpr (std::is_same<R, T>::value)
      return *p;
    else
      return Walk::get(p);
  }
  template <class R>
  static void put(T* p, R value) {
    if constexpr (std::is_same<R, T>::value)
      *p = value;
    else
      Walk::put(p, value);
  }

  template <class Link, class R>
  LinkSettings<R, Link> settings(int32_t k) const {
    LinkSettings<R, Link> s{};
    s.flags = job.links[0].flags, s.k = k;
    for (int h = 0; h < Link::kHypers; ++h) s.hyper[h] = R(job.hypers[h].table[k * job.adapted_count + n.parameter]);
    Link::derive(s);
    return s;
  }

  // The rule's step on `count` coordinates; states stand `count` apart. Without g it is zero.
  template <class Link, class R>
  void run(int32_t k, const T* theta, const T* g, const T* state, T* theta_after, T* state_after, int64_t count) const {
    const LinkSettings<R, Link> s = settings<Link, R>(k);
    for (int64_t i = 0; i < count; i += std::is_same<R, T>::value ? 1 : Walk::kStep) {
      LinkElement<R, Link> e{};
      e.theta = get<R>(theta + i), e.g = g ? get<R>(g + i) : R(0);
      for (int j = 0; j < Link::kStates; ++j) e.state[j] = get<R>(state + j * count + i);
      Link::step(s, e);
      put(theta_after + i, e.theta);
      for (int j = 0; j < Link::kStates; ++j) put(state_after + j * count + i, e.state[j]);
    }
  }
  template <class Link, class R>
  void run_back(int32_t k, T* theta_bar, T* state_bar, T* g_bar, int64_t count) const {
    const LinkSettings<R, Link> s = settings<Link, R>(k);
    for (int64_t i = 0; i < count; i += std::is_same<R, T>::value ? 1 : Walk::kStep) {
      const LinkElement<R, Link> before{};  // an affine rule's adjoint does not ask for it
      LinkElement<R, Link> bar{};
      bar.theta = get<R>(theta_bar + i);
      for (int j = 0; j < Link::kStates; ++j) bar.state[j] = get<R>(state_bar + j * count + i);
      link_adjoint<Link>(s, before, before.state, bar, static_cast<R*>(nullptr));
      put(theta_bar + i, bar.theta), put(g_bar + i, bar.g);
      for (int j = 0; j < Link::kStates; ++j) put(state_bar + j * count + i, bar.state[j]);
    }
  }

  void product(const T* rows, int64_t count, const T* w, T* out) const {
    multiply<T>(share, {rows, nullptr, nullptr, n.inputs, 1}, w, n.ld, out, n.ld, count, n.ld, n.inputs, Start::kZero);
  }
  void weight_gradient(const T* rows, int64_t count, const T* d, T* gradient, Start start) const {
    multiply<T>(share, {rows, nullptr, nullptr, 1, n.inputs}, d, n.ld, gradient, n.ld, n.inputs, n.ld, count, start);
  }
  // out[i, j] = rows_i . x_j for begin <= i < end and j < columns.
  void products(const T* rows, int64_t begin, int64_t end, int64_t columns, T* out) const {
    multiply_rows<T>(rows + begin * n.inputs, n.inputs, x, n.inputs, out + begin * n.support_rows, n.support_rows,
                     end - begin, columns, n.inputs, Start::kZero, nullptr);
  }
  // Half of a symmetric matrix by rows of tiles, the rest from it.
  void gram() const {
    constexpr int64_t kRows = 2 * kDotRows;
    const int64_t rows = n.support_rows;
    T* const gram = base + n.gram;
    share((rows + kRows - 1) / kRows, kRows * rows / 2 * n.inputs, [&](int64_t begin, int64_t end, T*) {
      for (int64_t i = begin * kRows; i < end * kRows && i < rows; i += kRows) {
        const int64_t last = i + kRows < rows ? i + kRows : rows;
        products(x, i, last, last, gram);
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
