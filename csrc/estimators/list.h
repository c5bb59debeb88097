// The list of estimators: which derivative of the unrolled loop is taken. To add one: its header, and a line here.
#pragma once

#include <stdint.h>

#include "estimators/annealed.h"
#include "estimators/exact.h"
#include "estimators/first_order.h"
#include "estimators/hessian_vector.h"
#include "estimators/truncated.h"

namespace metafast {

// X(struct, name)
#define METAFAST_ESTIMATORS(X) \
  X(Exact, "exact")            \
  X(Annealed, "annealed")      \
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
  int32_t reverse_steps(int32_t steps) const {
    return visit([&](auto e) { return decltype(e)::reverse_steps(steps, argument); });
  }
  int32_t stages(int32_t steps, bool sweep) const {
    return is_hessian_vector() ? 1 : steps + 1 + (sweep ? reverse_steps(steps) : 0);
  }
};

}  // namespace metafast
