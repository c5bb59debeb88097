// How the inner loop moves a parameter: a rule is a chain of links, each a small map of one element (docs/maths.md, section 2).
//
//   (theta, g, state) -> (theta', g', state')
//
// A link that changes g is a gradient transformation (clipping, a penalty); one that changes theta is an optimiser. A link
// states
//   kStates, kHypers          how many numbers of state an element has, and how many hyper-parameters there are
//   step(settings, element)   the map, for any scalar S: a number, a register of numbers, a pack of tasks, a dual number
//   kDerived, derive(settings)  what follows from hyper-parameters and the number of the step alone, if anything does
// or, where kScales is true, scale(settings, sum of the squares of all of g) in place of step: the number that it multiplies g by;
// and may state adjoint(settings, before, after, bar, hyper_bar), its transposed Jacobian by hand, where `after` is the state that
// the step left; without it the columns of the Jacobian come from dual numbers, which costs one evaluation of step for each
// input. A law compares the two.
#pragma once

#include <type_traits>

#include "core/scalar.h"

namespace metafast {

constexpr int kMostLinks = 8;

namespace METAFAST_ISA {

template <class S, class Link>
using LinkState = S[Link::kStates > 0 ? Link::kStates : 1];

// One element as a link finds and leaves it. `start` is theta at step 0.
template <class S, class Link>
struct LinkElement {
  S theta, g, start;
  LinkState<S, Link> state;
};

// The settings of a link at step k: hyper-parameters, what is derived of them, and yes-or-no flags.
template <class S, class Link>
struct LinkSettings {
  S hyper[Link::kHypers > 0 ? Link::kHypers : 1];
  S derived[Link::kDerived > 0 ? Link::kDerived : 1];
  int32_t flags, k;
};

struct LinkDefaults {
  static constexpr int kDerived = 0;
  static constexpr bool kUsesStart = false;     // reads `start`
  static constexpr bool kAffine = false;        // linear in theta, g and state, all together
  static constexpr bool kScales = false;        // see scale below
  static constexpr bool kReadsState = true;     // its adjoint, though no hyper-parameter wants a gradient
  static constexpr bool kReadsGradient = true;  // its adjoint, though no hyper-parameter wants a gradient
  template <class Settings>
  MF_HD static void derive(Settings&) {}
};

// x^n for a whole number n >= 0.
template <class S>
MF_HD S power(S x, int32_t n) {
  S result = S(1);
  for (; n > 0; n /= 2) {
    if (n % 2) result = result * x;
    x = x * x;
  }
  return result;
}

// x > 0 ? a : b. Kinks are written with it, because a pack has no single answer.
template <class T, std::enable_if_t<std::is_floating_point<T>::value, int> = 0>
MF_HD T if_positive(T x, T a, T b) {
  return x > T(0) ? a : b;
}
template <class T>
MF_HD Dual<T> if_positive(Dual<T> x, Dual<T> a, Dual<T> b) {
  return {if_positive(x.v, a.v, b.v), if_positive(x.v, a.d, b.d)};
}

// x where it is positive, else what makes any quotient by it 0.
template <class S>
MF_HD S divisor(S x) {
  return if_positive(x, x, S(__builtin_inf()));
}

// sqrt(x) with slope 0 at 0: an element whose gradient was always exactly zero has finite derivatives.
template <class S>
MF_HD S sqrt_or_zero(S x) {
  return sqrt(x);
}
template <class T>
MF_HD Dual<T> sqrt_or_zero(Dual<T> x) {
  const T root = sqrt(x.v);
  return {root, x.d / divisor(T(2) * root)};
}

// The bars of everything that goes into a link, from those of what comes out of it, which they replace; and what is to be
// added to the bars of its hyper-parameters. By dual numbers.
template <class Link, class S>
MF_HD void adjoint_by_duals(const LinkSettings<S, Link>& settings, const LinkElement<S, Link>& before,
                            LinkElement<S, Link>& bar, S* hyper_bar) {
  using D = Dual<S>;
  LinkElement<S, Link> result{};
  LinkSettings<D, Link> s{};
  s.flags = settings.flags, s.k = settings.k;
  for (int h = 0; h < Link::kHypers; ++h) s.hyper[h] = D(settings.hyper[h]);
  // The derivative of <bar, step> along whatever `seed` marks.
  const auto column = [&](auto seed) {
    LinkElement<D, Link> e{};
    e.theta = D(before.theta), e.g = D(before.g), e.start = D(before.start);
    for (int i = 0; i < Link::kStates; ++i) e.state[i] = D(before.state[i]);
    seed(e);
    Link::derive(s);
    Link::step(s, e);
    S sum = bar.theta * e.theta.d + bar.g * e.g.d;
    for (int i = 0; i < Link::kStates; ++i) sum = sum + bar.state[i] * e.state[i].d;
    return sum;
  };
  result.theta = column([](auto& e) { e.theta.d = S(1); });
  result.g = column([](auto& e) { e.g.d = S(1); });
  result.start = bar.start + column([](auto& e) { e.start.d = S(1); });
  for (int i = 0; i < Link::kStates; ++i) result.state[i] = column([&](auto& e) { e.state[i].d = S(1); });
  if (hyper_bar)
    for (int h = 0; h < Link::kHypers; ++h) {
      s.hyper[h].d = S(1);
      hyper_bar[h] = hyper_bar[h] + column([](auto&) {});
      s.hyper[h].d = S(0);
    }
  bar = result;
}

// Whether Link writes its adjoint by hand.
template <class Link, class S, class = void>
constexpr bool kHasAdjoint = false;
template <class Link, class S>
constexpr bool kHasAdjoint<Link, S, std::void_t<decltype(&Link::template adjoint<S>)>> = true;

template <class Link, class S>
MF_HD void link_adjoint(const LinkSettings<S, Link>& settings, const LinkElement<S, Link>& before,
                        const LinkState<S, Link>& after, LinkElement<S, Link>& bar, S* hyper_bar) {
  if constexpr (kHasAdjoint<Link, S>)
    Link::adjoint(settings, before, after, bar, hyper_bar);
  else
    adjoint_by_duals<Link>(settings, before, bar, hyper_bar);
}

}  // namespace METAFAST_ISA
}  // namespace metafast
