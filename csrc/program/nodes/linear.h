// y = x W' + b on the last axis.
#pragma once

#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

// Turning weights again took 5 % of a gradient with 5 rows and 1 % with 25, tapes being in the cache: with so many rows it is
// sooner done than fetched from a long tape.
constexpr int64_t kRowsToTurnAgain = 32;

struct LinearNode {
  static bool fits(const NodeCheck& c) {
    const Shape &in = c.in(), &out = c.out();
    c.demand(c.s.parameter[0] >= 0 && in.size() <= 2, "needs a weight and inputs of one or two dimensions");
    c.use(c.s.parameter[0], out.back(), in.back(), 1);
    c.use(c.s.parameter[1], out.back(), 1, 1);
    return in.size() == out.size() && (in.size() == 1 || in[0] == out[0]);
  }
  static void plan(const NodePlan& p) {
    if (p.for_device) return;
    Step& s = p.s;
    if (p.row) {
      s.op = Op::kOneOutputLinear;
      return;
    }
    if (p.in_packs) return;
    const int64_t transposed = int64_t(p.out().channels) * p.in().cold;
    s.turns_again = p.second_order() && p.examples() * p.out().rows >= kRowsToTurnAgain;
    s.saved = s.turns_again ? p.transient(transposed) : p.tape(transposed);
    s.saved_dot = p.tangent_tape(transposed);
  }
};

struct GivenLinearNode {
  static void plan(const NodePlan& p) { p.s.saved = p.tape(1); }
};

}  // namespace metafast
