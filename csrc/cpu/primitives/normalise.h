// y = gamma xhat + beta, xhat = (x - mean) / sqrt(var + eps), by the statistics of sets of elements of one example
// (docs/maths.md, section 5). Without a mean, var is the mean of squares. A part of the work is a span: rows that have sets
// of their own. Sums go over its rows first and over the channels of a group afterwards, so that registers are full whatever
// the groups.
#pragma once

#include <type_traits>

#include "cpu/primitives/batch_norm.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Normalise {
  using V = Vector<T>;

  // Arrays of one element for each channel, of a thread. Those of numbers have their tangents' behind them, those of a
  // set the same for all its channels. Pads are zero.
  enum {
    kMean = 0,
    kInverse = 2,
    kMeanDy = 4,
    kMeanDyXhat = 6,
    kGamma = 8,
    kBeta = 10,
    kZeros = 12,
    kSums = 13,
    kPart = 17
  };
  static_assert(kPart + 4 <= kSetArrays);

  static void forward(const Frame<T>& f, const Node& node) { forwards<T>(f, node, f.activation_out(node.output)); }
  static void tangent_forward(const Frame<T>& f, const Node& node) {
    if (T* y_dot = f.activation_dot(node.output)) forwards<Dual<T>>(f, node, y_dot);
  }
  static void backward(const Frame<T>& f, const Node& node) { backwards<T>(f, node, f.gradient); }
  static void tangent_backward(const Frame<T>& f, const Node& node) { backwards<Dual<T>>(f, node, f.gradient_dot); }

 private:
  template <class S>
  static constexpr bool kTangent = !std::is_same<S, T>::value;

  static T made(T x) { return x; }
  static T made(Dual<T> x) { return x.d; }
  template <class S>
  static S number(const T* value, const T* dot, int64_t i) {
    if constexpr (kTangent<S>)
      return S(value[i], dot[i]);
    else
      return value[i];
  }

  // One span in the arrays of one thread.
  template <class S>
  struct Span {
    const Frame<T>& f;
    const Node& node;
    const NormSets sets;
    const int64_t ld, span;
    T* const own;
    const T *const x, *const x_dot;
    T *const mean, *const inverse;  // of each set, with tangents in the tangent tape

    Span(const Frame<T>& f, const Node& node, int64_t span, T* own)
        : f(f),
          node(node),
          sets(node, f.value(node.output), f.examples()),
          ld(f.value(node.output).ld),
          span(span),
          own(own),
          x(f.activation(node.input[0]) + begin()),
          x_dot(f.activation_dot(node.input[0]) ? f.activation_dot(node.input[0]) + begin() : nullptr),
          mean(f.tape + node.saved + span * sets.groups),
          inverse(mean + sets.count()) {}

    int64_t begin() const { return span * sets.positions * ld; }
    T* mean_dot() const { return f.tangent_tape + node.saved_dot + span * sets.groups; }
    T* inverse_dot() const { return mean_dot() + sets.count(); }
    T* array(int a) const { return own + a * ld; }
    S at(int a, int64_t c) const { return number<S>(array(a), array(a + 1), c); }

    // kSums and behind = the sums over rows of term(element, channel, sums).
    template <int SUMS, class Term>
    void sum_rows(const Term& term) const {
      for (int64_t r = 0; r < sets.positions; r += kDepth) {
        const int64_t end = r + kDepth < sets.positions ? r + kDepth : sets.positions;
        T* const to = array(r == 0 ? kSums : kPart);
        int64_t j = block_sums<T, SUMS, 4>(0, ld, r, end, to, term);
        j = block_sums<T, SUMS, 2>(j, ld, r, end, to, term);
        block_sums<T, SUMS, 1>(j, ld, r, end, to, term);
        for (int64_t i = 0; r > 0 && i < SUMS * ld; ++i) array(kSums)[i] += to[i];
      }
    }

    // The average over group g of what has such sums over rows. What stands in pads is not read.
    T average(const T* sums, int64_t g) const {
      return sum_range(sums, g * sets.width, (g + 1) * sets.width) / T(sets.size());
    }

    // array[a] = of each channel, the number of its group.
    template <class Number>
    void spread(int a, const Number& of_group) const {
      T* to = array(a);
      for (int64_t g = 0; g < sets.groups; ++g) {
        const T number = of_group(g);
        for (int64_t c = 0; c < sets.width; ++c) *to++ = number;
      }
      while (to < array(a + 1)) *to++ = T(0);
    }
    void spread_statistics() const {
      spread(kMean, [&](int64_t g) { return mean[g]; });
      spread(kInverse, [&](int64_t g) { return inverse[g]; });
      if constexpr (kTangent<S>) {
        spread(kMean + 1, [&](int64_t g) { return x_dot ? mean_dot()[g] : T(0); });
        spread(kInverse + 1, [&](int64_t g) { return x_dot ? inverse_dot()[g] : T(0); });
      }
    }

    void take_statistics() const {
      const T *from = x, *const means = array(kMean);
      if (node.centred) sum_rows<1>([=](int64_t i, int64_t, V* sum) { sum[0] += load(from + i); });
      spread(kMean, [&](int64_t g) { return mean[g] = node.centred ? average(array(kSums), g) : T(0); });
      sum_rows<1>([=](int64_t i, int64_t c, V* sum) {
        const V centred = load(from + i) - load(means + c);
        sum[0] += centred * centred;
      });
      for (int64_t g = 0; g < sets.groups; ++g) inverse[g] = inverse_deviation(node, average(array(kSums), g));
    }

    // mean' = average of x'; var' = 2 average of (x - mean) x'.
    void take_statistics_tangent() const {
      if (!x_dot) return;
      spread(kMean, [&](int64_t g) { return mean[g]; });
      const T *from = x, *dots = x_dot, *const means = array(kMean);
      sum_rows<2>([=](int64_t i, int64_t c, V* sum) {
        const V d = load(dots + i);
        sum[0] += d;
        sum[1] += d * (load(from + i) - load(means + c));
      });
      for (int64_t g = 0; g < sets.groups; ++g) {
        mean_dot()[g] = node.centred ? average(array(kSums), g) : T(0);
        inverse_dot()[g] = inverse_deviation_tangent(inverse[g], average(array(kSums + 1), g));
      }
    }

    // Calls body(first element, row of x, of its tangents) for all rows.
    template <class Body>
    void each_row(const Body& body) const {
      for (int64_t i = 0; i < sets.positions * ld; i += ld) body(i, x + i, x_dot ? x_dot + i : array(kZeros));
    }

    // kSums: of dy and dy xhat over rows; behind them, of their tangents.
    void sum_cotangents(const T* dy, const T* dy_dot) const {
      const T *from = x, *dots = x_dot, *const means = array(kMean), *const inverses = array(kInverse);
      const int64_t width = ld;
      sum_rows<kTangent<S> ? 4 : 2>([=](int64_t i, int64_t c, V* sum) {
        const V g = load(dy + i), m = load(means + c), s = load(inverses + c);
        const V xhat = normalised(load(from + i), m, s);
        sum[0] += g;
        sum[1] += g * xhat;
        if constexpr (kTangent<S>) {
          const V moved = dots ? load(dots + i) : V{};
          const Dual<V> all = Dual<V>(g, load(dy_dot + i)) * normalised(Dual<V>(load(from + i), moved),
                                                                        Dual<V>(m, load(means + width + c)),
                                                                        Dual<V>(s, load(inverses + width + c)));
          sum[2] += load(dy_dot + i);
          sum[3] += all.d;
        }
      });
    }

    // Averages over a set of gamma dy and gamma dy xhat.
    void average_cotangents() const {
      for (int s = 0; s < 2; ++s) {
        const T *sums = array(kSums + s), *sums_dot = array(kSums + 2 + s);
        T *to = array(kPart), *to_dot = array(kPart + 1);
        for (int64_t c = 0; c < ld; ++c) {
          const S product = at(kGamma, c) * number<S>(sums, sums_dot, c);
          to[c] = value_of(product);
          if constexpr (kTangent<S>) to_dot[c] = product.d;
        }
        const int a = s == 0 ? kMeanDy : kMeanDyXhat;
        const bool none = s == 0 && !node.centred;
        spread(a, [&](int64_t g) { return none ? T(0) : average(to, g); });
        if constexpr (kTangent<S>) spread(a + 1, [&](int64_t g) { return none ? T(0) : average(to_dot, g); });
      }
    }

    void input_gradient(const T* dy, const T* dy_dot, T* dx, bool accumulate) const {
      each_row([&](int64_t i, const T* row, const T* row_dot) {
        const Span k = *this;
#pragma GCC ivdep
        for (int64_t c = 0; c < k.ld; ++c) {
          const S xhat = normalised(number<S>(row, row_dot, c), k.at(kMean, c), k.at(kInverse, c));
          const S g = k.at(kGamma, c) * number<S>(dy + i, dy_dot + i, c);
          const S d = normalised_input_gradient(g, xhat, k.at(kInverse, c), k.at(kMeanDy, c), k.at(kMeanDyXhat, c));
          dx[i + c] = (accumulate ? dx[i + c] : T(0)) + made(d);
        }
      });
    }
  };

  // Parameters into the arrays of a thread, and zeros.
  template <class S>
  static void take_parameters(const Frame<T>& f, const Node& node, int64_t ld, T* own) {
    const auto copy = [&](int a, const T* from, T otherwise) {
      for (int64_t c = 0; c < ld; ++c) own[a * ld + c] = from ? from[c] : otherwise;
    };
    const int gamma = node.parameter[0], beta = node.parameter[1];
    copy(kGamma, f.parameter(gamma), T(1)), copy(kBeta, f.parameter(beta), T(0)), copy(kZeros, nullptr, T(0));
    if constexpr (kTangent<S>)
      copy(kGamma + 1, f.parameter_dot(gamma), T(0)), copy(kBeta + 1, f.parameter_dot(beta), T(0));
  }

  template <class S>
  static void forwards(const Frame<T>& f, const Node& node, T* y) {
    const NormSets sets(node, f.value(node.output), f.examples());
    const int64_t ld = f.value(node.output).ld;
    f.share(sets.spans, 8 * sets.positions * ld, [&](int64_t begin, int64_t end, T* own) {
      take_parameters<S>(f, node, ld, own);
      for (int64_t s = begin; s < end; ++s) {
        const Span<S> span(f, node, s, own);
        if constexpr (kTangent<S>)
          span.take_statistics_tangent();
        else
          span.take_statistics();
        span.spread_statistics();
        T* const to = y + span.begin();
        span.each_row([&](int64_t i, const T* row, const T* row_dot) {
          const Span<S> k = span;
#pragma GCC ivdep
          for (int64_t c = 0; c < k.ld; ++c)
            to[i + c] = made(normalised(number<S>(row, row_dot, c), k.at(kMean, c), k.at(kGamma, c) * k.at(kInverse, c),
                                        k.at(kBeta, c)));
        });
      }
    });
  }

  // In blocks of spans, whose sums for the gradients of parameters are added up in their order.
  template <class S>
  static void backwards(const Frame<T>& f, const Node& node, T* gradient) {
    const NormSets sets(node, f.value(node.output), f.examples());
    const int64_t ld = f.value(node.output).ld, each = spans_of_block(sets.positions);
    const int64_t blocks = (sets.spans + each - 1) / each;
    const T *dy = f.cotangent(node.output), *dy_dot = kTangent<S> ? f.cotangent_dot(node.output) : dy;
    const bool into_input = wanted(node.input_mode[0]), accumulate = node.input_mode[0] == GradientMode::kAccumulate;
    T* const dx = !into_input ? nullptr : kTangent<S> ? f.cotangent_dot(node.input[0]) : f.cotangent(node.input[0]);
    T* const sums = f.scratch + kSetArrays * ld;
    f.share(blocks, 16 * each * sets.positions * ld, [&](int64_t begin, int64_t end, T* own) {
      take_parameters<S>(f, node, ld, own);
      for (int64_t b = begin; b < end; ++b) {
        T* const of_block = sums + 2 * b * ld;
        for (int64_t i = 0; i < 2 * ld; ++i) of_block[i] = T(0);
        for (int64_t s = b * each; s < (b + 1) * each && s < sets.spans; ++s) {
          const Span<S> span(f, node, s, own);
          const int64_t at = span.begin();
          span.spread_statistics();
          span.sum_cotangents(dy + at, dy_dot + at);
          const T* const made_sums = span.array(kTangent<S> ? kSums + 2 : kSums);
          for (int64_t i = 0; i < 2 * ld; ++i) of_block[i] += made_sums[i];
          if (!into_input) continue;
          span.average_cotangents();
          span.input_gradient(dy + at, dy_dot + at, dx + at, accumulate);
        }
      }
    });
    if (gradient) put_sums(f, node, ld, blocks, sums, gradient);
  }

  static void put_sums(const Frame<T>& f, const Node& node, int64_t ld, int64_t blocks, const T* sums, T* gradient) {
    for (int p = 0; p < 2; ++p) {
      if (!wanted(node.parameter_mode[p])) continue;
      T* const out = gradient + f.parameter_plan(node.parameter[p]).offset;
      for (int64_t c = 0; c < ld; ++c) {
        T total = T(0);
        for (int64_t b = 0; b < blocks; ++b) total += sums[(2 * b + 1 - p) * ld + c];
        put(out + c, total, node.parameter_mode[p]);
      }
    }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
