// Softmax over the channels of each row or position, and its logarithm. Attribute: of_nothing, whether a row of -inf alone
// comes out as zeros.
#pragma once

#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

struct SoftmaxNode {
  static bool fits(const NodeCheck& c) {
    c.node.attribute[0] = c.attribute("of_nothing", 0);
    return c.in() == c.out();
  }
  static void plan(const NodePlan& p) { p.scratch(2 * p.out().ld); }
};
using LogSoftmaxNode = SoftmaxNode;

}  // namespace metafast
