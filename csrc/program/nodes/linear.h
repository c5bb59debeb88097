// y = x W' + b on the last axis.
#pragma once

#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

// To transpose weights again took 5 % of a gradient with 5 rows and 1 % with 25, tapes being in the cache: with so many rows
// it is sooner done than fetched from a long tape.
constexpr int64_t kRowsToRecomputeTranspose = 32;

struct LinearNode {
  static bool fits(const NodeCheck& c) {
    const Shape &in = c.in(), &out = c.out();
    c.demand(c.node.parameter[0] >= 0 && in.size() <= 2, "needs a weight and inputs of one or two dimensions");
    c.use(c.node.parameter[0], out.back(), in.back(), 1);
    c.use(c.node.parameter[1], out.back(), 1, 1);
    return in.size() == out.size() && (in.size() == 1 || in[0] == out[0]);
  }
  static void plan(const NodePlan& p) {
    if (p.for_device) return;
    Node& node = p.node;
    if (p.row) {
      node.op = Op::kOneOutputLinear;
      return;
    }
    if (p.in_packs) return;
    const int64_t transposed = int64_t(p.out().channels) * p.in().ld_cotangent;
    node.recomputes_transpose = p.second_order() && p.examples() * p.out().rows >= kRowsToRecomputeTranspose;
    node.saved = node.recomputes_transpose ? p.transient(transposed) : p.tape(transposed);
    node.saved_dot = p.tangent_tape(transposed);
  }
};

struct UserLinearNode {
  static void plan(const NodePlan& p) { p.node.saved = p.tape(1); }
};

}  // namespace metafast
