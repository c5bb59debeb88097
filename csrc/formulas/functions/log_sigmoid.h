// log(1 / (1 + exp(-x))).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct LogSigmoid {
  MF_HD explicit LogSigmoid(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return (x < T(0) ? x : T(0)) - log1p01(exp(-magnitude(x)));
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return sigmoid(-x);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
