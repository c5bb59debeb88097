// A rule's links over the elements of all adapted parameters, forwards and backwards (docs/maths.md, equation 6). Written once
// for both machines.
//
// A machine says how it walks over elements: its Walk has
//   Number, Scalar, Shared      what arrays of a task hold, what links compute on, what all tasks share
//   get, put, get_shared        between arrays and Scalars
//   each_parameter(n, body)     body(a) for those of n parameters that are this walk's business
//   each_element(size, body)    body(i) for all i, or for those that are this thread's business
//   Sums<n>                     add(h, place in the parameter, its leading dimension, Scalar), and total(walk, h), which may be
//                               as many sums as Scalar has places
//   is_first()                  whether this thread writes down totals
//   one(Scalar)                 what an array holds of a Scalar whose places all say the same
#pragma once

#include "engine/job.h"

namespace metafast {
namespace METAFAST_ISA {

// What a step finds: adapted parameters, states (null at step 0, where they are zero), gradient and theta_0; and the states
// after it. States of one link after the other, all of adapted_size.
template <class T>
struct RulePoint {
  const T *theta, *state, *gradient, *start, *state_after;
};

template <class Walk>
struct RuleLoops {
  using T = typename Walk::Number;
  using S = typename Walk::Scalar;
  using E = typename Walk::Shared;

  // The part of a call that says what the rule is.
  const LinkPlan* links;
  const int32_t link_count, adapted_count;
  const int64_t adapted_size;
  const int32_t skipped;  // the adapted parameter that somebody else moves, or -1
  const ParameterPlan* parameters;
  const HyperPlan<E>* hypers;
  const Walk& walk;
  T* const found;       // room for what each of several links finds: its theta, its g
  T* const hyper_bars;  // where the gradients of hyper-parameters stand; null if none is wanted

  // From `at`, the point of step k, to the next theta and states.
  MF_HD void step(int32_t k, const RulePoint<T>& at, T* theta, T* state) const {
    const T *theta_in = at.theta, *g_in = at.gradient;
    for (int32_t l = 0; l < link_count; ++l) {
      const LinkPlan& link = links[l];
      const bool last = l + 1 == link_count;
      with_link(link.kind, [&](auto is) {
        using Link = typename decltype(is)::Type;
        run<Link>(link, k, at, theta_in, g_in, theta, last ? nullptr : found, state);
      });
      theta_in = theta, g_in = found;
    }
  }

  // Bars of what a step leaves, which become those of what it finds: lambda of theta, sigma of the states. That of the gradient
  // is written, that of theta_0 added to. `pending`, unless null, is still to be added to that of theta.
  struct Bars {
    T *theta, *state, *g, *start;
    const T* pending;
  };

  // The adjoint of the same step.
  MF_HD void adjoint(int32_t k, const RulePoint<T>& at, const Bars& bars) const {
    const T* theta_of[kMostLinks] = {at.theta};
    const T* g_of[kMostLinks] = {at.gradient};
    replay(k, at, theta_of, g_of);
    for (int32_t l = link_count - 1; l >= 0; --l) {
      const bool last = l + 1 == link_count;
      with_link(links[l].kind, [&](auto is) {
        using Link = typename decltype(is)::Type;
        if constexpr (Link::kScales) {
          // What the last link leaves of g is read by nobody, and it leaves theta alone.
          if (last) everywhere([&](int64_t i) { begin_bars(bars, i); });
          scale_adjoint<Link>(links[l], k, g_of[l], bars.g);
        } else {
          const Bars found_bars{bars.theta, bars.state, bars.g, bars.start, last ? bars.pending : nullptr};
          hyper_bars ? run_back<Link, true>(links[l], k, at, theta_of[l], g_of[l], found_bars, last)
                     : run_back<Link, false>(links[l], k, at, theta_of[l], g_of[l], found_bars, last);
        }
      });
    }
  }

 private:
  // What one link finds, as copies, which no store can change.
  struct Found {
    const T *theta, *g, *state, *start, *state_after;
    const int64_t states_apart;

    template <class Link>
    MF_HD LinkElement<S, Link> element(int64_t i) const {
      LinkElement<S, Link> e{};
      e.theta = Walk::get(theta + i), e.g = Walk::get(g + i);
      if constexpr (Link::kUsesStart) e.start = Walk::get(start + i);
      for (int j = 0; j < Link::kStates; ++j) e.state[j] = state ? Walk::get(state + j * states_apart + i) : S(0);
      return e;
    }
  };
  MF_HD int64_t state_of(const LinkPlan& link) const { return link.state * adapted_size; }
  MF_HD Found find(const LinkPlan& link, const RulePoint<T>& at, const T* theta, const T* g) const {
    const int64_t begin = state_of(link);
    return {theta, g, at.state ? at.state + begin : nullptr, at.start, at.state_after + begin, adapted_size};
  }

  // Calls body(parameter, each), where each(visit) calls visit(settings, place among all adapted elements, place within the
  // parameter) for every element. Settings are made once where no hyper-parameter differs from element to element.
  template <class Link, class Body>
  MF_HD void each_parameter(const LinkPlan& link, int32_t k, Body body) const {
    const HyperPlan<E>* own = hypers + link.hyper;
    walk.each_parameter(adapted_count, [&](int32_t a) {
      if (a == skipped) return;
      const int64_t begin = parameters[a].offset, size = parameters[a].size;
      LinkSettings<S, Link> s{};
      s.flags = link.flags, s.k = k;
      const E* values[Link::kHypers > 0 ? Link::kHypers : 1] = {};
      bool varies = false;
      for (int h = 0; h < Link::kHypers; ++h) {
        if (own[h].each[a])
          values[h] = own[h].each[a] + k * own[h].each_stride[a], varies = true;
        else
          s.hyper[h] = S(own[h].table[k * adapted_count + a]);
      }
      Link::derive(s);
      if (!varies)
        body(a, [&](auto visit) { walk.each_element(size, [&](int64_t i) { visit(s, begin + i, i); }); });
      else
        body(a, [&](auto visit) {
          walk.each_element(size, [&](int64_t i) {
            for (int h = 0; h < Link::kHypers; ++h)
              if (values[h]) s.hyper[h] = Walk::get_shared(values[h] + i);
            Link::derive(s);
            visit(s, begin + i, i);
          });
        });
    });
  }

  // One link forwards, to theta, g (unless nobody reads it) and states.
  template <class Link>
  METAFAST_ONE_LOOP void run(const LinkPlan& link, int32_t k, const RulePoint<T>& at, const T* theta_in, const T* g_in,
                             T* theta, T* g, T* state) const {
    if constexpr (Link::kScales) {
      const S factor = Link::scale(settings_of_all<Link>(link, k), sum_of_products(g_in, g_in));
      everywhere([&](int64_t i) {
        Walk::put(theta + i, Walk::get(theta_in + i));
        if (g) Walk::put(g + i, factor * Walk::get(g_in + i));
      });
    } else {
      const Found found = find(link, at, theta_in, g_in);
      T* const states = state ? state + state_of(link) : nullptr;
      each_parameter<Link>(link, k, [&](int32_t, const auto& each) {
        each([&](const auto& s, int64_t i, int64_t) {
          auto e = found.template element<Link>(i);
          Link::step(s, e);
          Walk::put(theta + i, e.theta);
          if (g) Walk::put(g + i, e.g);
          if (states)
            for (int j = 0; j < Link::kStates; ++j) Walk::put(states + j * found.states_apart + i, e.state[j]);
        });
      });
    }
  }

  MF_HD void begin_bars(const Bars& bars, int64_t i) const {
    Walk::put(bars.g + i, S(0));
    if (bars.pending) Walk::put(bars.theta + i, Walk::get(bars.theta + i) + Walk::get(bars.pending + i));
  }

  // One link backwards, from what it found. The last one comes first: nobody has left it a bar of g.
  template <class Link, bool kHyperBars>
  METAFAST_ONE_LOOP void run_back(const LinkPlan& link, int32_t k, const RulePoint<T>& at, const T* theta, const T* g,
                                  const Bars& bars, bool last) const {
    constexpr int kHypers = Link::kHypers > 0 ? Link::kHypers : 1;
    const Found found = find(link, at, theta, g);
    const Bars to = bars;  // a copy, too
    T* const states = to.state + state_of(link);
    each_parameter<Link>(link, k, [&](int32_t a, const auto& each) {
      [[maybe_unused]] typename Walk::template Sums<kHypers> sums;
      each([&](const auto& s, int64_t i, int64_t within) {
        LinkElement<S, Link> bar{};
        bar.theta = Walk::get(to.theta + i);
        if (to.pending) bar.theta = bar.theta + Walk::get(to.pending + i);
        if (!last) bar.g = Walk::get(to.g + i);
        for (int j = 0; j < Link::kStates; ++j) bar.state[j] = Walk::get(states + j * found.states_apart + i);
        LinkState<S, Link> after;
        for (int j = 0; j < Link::kStates; ++j) after[j] = Walk::get(found.state_after + j * found.states_apart + i);
        S hyper_bar[kHypers] = {};
        link_adjoint<Link>(s, found.template element<Link>(i), after, bar, kHyperBars ? hyper_bar : nullptr);
        Walk::put(to.theta + i, bar.theta), Walk::put(to.g + i, bar.g);
        for (int j = 0; j < Link::kStates; ++j) Walk::put(states + j * found.states_apart + i, bar.state[j]);
        if constexpr (Link::kUsesStart) Walk::put(to.start + i, Walk::get(to.start + i) + bar.start);
        if constexpr (kHyperBars)
          for (int h = 0; h < Link::kHypers; ++h) collect(hypers[link.hyper + h], k, a, within, hyper_bar[h], h, sums);
      });
      if constexpr (kHyperBars) write_totals<Link>(link, k, a, sums);
    });
  }

  // g' = f g with f = scale(h, n), n = |g|^2: the bar of g is f bar + 2 g <bar, g> df/dn (docs/maths.md, equation 11).
  template <class Link>
  MF_HD void scale_adjoint(const LinkPlan& link, int32_t k, const T* g, T* bar) const {
    using D = Dual<S>;
    const LinkSettings<S, Link> s = settings_of_all<Link>(link, k);
    LinkSettings<D, Link> d{};
    d.flags = s.flags, d.k = s.k;
    for (int h = 0; h < Link::kHypers; ++h) d.hyper[h] = D(s.hyper[h]);
    const auto scale = [&](D squares) {
      Link::derive(d);
      return Link::scale(d, squares);
    };
    const S squares = sum_of_products(g, g), of_factor = sum_of_products(bar, g);
    const D factor = scale(D(squares, S(1)));
    everywhere([&](int64_t i) {
      Walk::put(bar + i, factor.v * Walk::get(bar + i) + S(2) * of_factor * factor.d * Walk::get(g + i));
    });
    if (!hyper_bars) return;
    for (int h = 0; h < Link::kHypers; ++h) {
      const HyperPlan<E>& plan = hypers[link.hyper + h];
      if (!plan.wanted || !walk.is_first()) continue;
      d.hyper[h].d = S(1);
      T* const bars = hyper_bars + plan.table_offset + k * adapted_count;
      bars[0] = Walk::one(of_factor * scale(D(squares)).d);  // its value is that of the first parameter
      for (int32_t a = 1; a < adapted_count; ++a) bars[a] = T(0);
      d.hyper[h].d = S(0);
    }
  }

  // Settings of a link that treats all parameters alike: those of the first.
  template <class Link>
  MF_HD LinkSettings<S, Link> settings_of_all(const LinkPlan& link, int32_t k) const {
    LinkSettings<S, Link> s{};
    s.flags = link.flags, s.k = k;
    for (int h = 0; h < Link::kHypers; ++h) s.hyper[h] = S(hypers[link.hyper + h].table[k * adapted_count]);
    Link::derive(s);
    return s;
  }

  template <class Body>
  MF_HD void everywhere(Body body) const {
    walk.each_parameter(adapted_count, [&](int32_t a) {
      walk.each_element(parameters[a].size, [&](int64_t i) { body(parameters[a].offset + i); });
    });
  }
  MF_HD S sum_of_products(const T* a, const T* b) const {
    typename Walk::template Sums<1> sums;
    walk.each_parameter(adapted_count, [&](int32_t p) {
      const int64_t begin = parameters[p].offset;
      walk.each_element(parameters[p].size, [&](int64_t i) {
        sums.add(0, i, parameters[p].ld, Walk::get(a + begin + i) * Walk::get(b + begin + i));
      });
    });
    return S(sums.total(walk, 0));
  }
  // Runs all links but the last once more and leaves what the next one finds.
  MF_HD void replay(int32_t k, const RulePoint<T>& at, const T** theta_of, const T** g_of) const {
    T* room = found;
    for (int32_t l = 0; l + 1 < link_count; ++l, room += 2 * adapted_size)
      with_link(links[l].kind, [&](auto is) {
        using Link = typename decltype(is)::Type;
        run<Link>(links[l], k, at, theta_of[l], g_of[l], room, room + adapted_size, nullptr);
        theta_of[l + 1] = room, g_of[l + 1] = room + adapted_size;
      });
  }

  // The bar of a hyper-parameter from one place: to the sum over a parameter, or to the place's own.
  template <class Sums>
  MF_HD void collect(const HyperPlan<E>& plan, int32_t k, int32_t a, int64_t within, S bar, int h, Sums& sums) const {
    if (!plan.wanted) return;
    if (!plan.each[a]) return sums.add(h, within, parameters[a].ld, bar);
    T* out = hyper_bars + plan.each_offset[a] + k * plan.each_stride[a] + within;
    Walk::put(out, Walk::get(out) + bar);
  }
  template <class Link, class Sums>
  MF_HD void write_totals(const LinkPlan& link, int32_t k, int32_t a, Sums& sums) const {
    for (int h = 0; h < Link::kHypers; ++h) {
      const HyperPlan<E>& plan = hypers[link.hyper + h];
      if (!plan.wanted || plan.each[a]) continue;
      const T total = sums.total(walk, h);
      if (walk.is_first()) hyper_bars[plan.table_offset + k * adapted_count + a] = total;
    }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
