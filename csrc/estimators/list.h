// Which derivative of the unrolled loop is taken: the order in which a machine does its stages. A machine is whoever does
// them: a CPU thread with a task or a pack of tasks (cpu/machine.h), or a recorder that writes down a GPU's phases
// (cuda/schedule.cpp). This text exists once.
//
// What an estimator may ask of a machine M:
//   steps()                       K, and argument(), which the estimator knows the meaning of
//   linearise(k), step(k)         loss and gradient at theta_k, which leave a tape; the rule's step to theta_{k+1}
//   query()                       the query loss; with a sweep, lambda becomes its gradient
//   replay(k)                     whatever a sweep reads of step k stands where it did after linearise(k)
//   step_adjoint(k)               the rule's adjoint: lambda, sigma, v, the bars of hyper-parameters
//   product(k)                    lambda += H_k v, and the gradients of the data
//   hessian_vector()              on the support set, v given by the caller
//
// To add one: a struct like those below, and a line of METAFAST_ESTIMATORS.
#pragma once

#include <stdint.h>

#include "core/isa.h"

namespace metafast {

// X(struct, name)
#define METAFAST_ESTIMATORS(X) \
  X(Exact, "exact")            \
  X(FirstOrder, "first_order") \
  X(Truncated, "truncated")    \
  X(HessianVector, "hessian_vector")

enum class EstimatorKind : int32_t {
#define METAFAST_MEMBER(NAME, TEXT) k##NAME,
  METAFAST_ESTIMATORS(METAFAST_MEMBER)
#undef METAFAST_MEMBER
};

struct EstimatorInfo {
  const char* name;
  EstimatorKind kind;
};
constexpr EstimatorInfo kEstimators[] = {
#define METAFAST_INFO(NAME, TEXT) {TEXT, EstimatorKind::k##NAME},
    METAFAST_ESTIMATORS(METAFAST_INFO)
#undef METAFAST_INFO
};

// The exact derivative (docs/maths.md, section 2): K steps, the query, and the K steps backwards.
struct Exact {
  static constexpr bool kSecondOrder = true;
  static constexpr int32_t swept(int32_t steps, int32_t) { return steps; }
  template <class M>
  static void stage(M& m, int32_t i) {
    const int32_t steps = m.steps();
    if (i < steps) return m.linearise(i), m.step(i);
    if (i == steps) return m.query();
    const int32_t k = 2 * steps - i;
    m.replay(k), m.step_adjoint(k), m.product(k);
  }
};

// Takes every inner gradient for a constant (Finn et al. 2017, section 5.2).
struct FirstOrder {
  static constexpr bool kSecondOrder = false;
  static constexpr int32_t swept(int32_t steps, int32_t) { return steps; }
  template <class M>
  static void stage(M& m, int32_t i) {
    const int32_t steps = m.steps();
    if (i < steps) return m.linearise(i), m.step(i);
    if (i == steps) return m.query();
    const int32_t k = 2 * steps - i;
    m.replay(k), m.step_adjoint(k);
  }
};

// Goes back through the last `argument` steps alone, and takes what stands before them for a constant (Shaban et al. 2019).
struct Truncated : Exact {
  static constexpr int32_t swept(int32_t steps, int32_t argument) { return argument < steps ? argument : steps; }
};

// Instead of an unrolled loop: H v on the support set.
struct HessianVector {
  static constexpr bool kSecondOrder = true;
  static constexpr int32_t swept(int32_t, int32_t) { return 0; }
  template <class M>
  static void stage(M& m, int32_t) {
    m.hessian_vector();
  }
};

struct Estimator {
  EstimatorKind kind;
  int32_t argument;

  // Calls body(an object of the estimator's type).
  template <class Body>
  auto visit(Body body) const {
    switch (kind) {
#define METAFAST_CASE(NAME, TEXT) \
  case EstimatorKind::k##NAME: return body(NAME());
      METAFAST_ESTIMATORS(METAFAST_CASE)
#undef METAFAST_CASE
    }
    return body(Exact());
  }
  bool is_second_order() const {
    return visit([](auto e) { return decltype(e)::kSecondOrder; });
  }
  bool is_hessian_vector() const { return kind == EstimatorKind::kHessianVector; }
  // Steps of the reverse sweep.
  int32_t swept(int32_t steps) const {
    return visit([&](auto e) { return decltype(e)::swept(steps, argument); });
  }
  int32_t stages(int32_t steps, bool sweep) const {
    return is_hessian_vector() ? 1 : steps + 1 + (sweep ? swept(steps) : 0);
  }
};

}  // namespace metafast
