// y = x * mask / (1 - p). Attributes: p; number: which of the model's random nodes it is; each: how many elements, one behind
// another in the user's order, are kept or dropped together.
#pragma once

#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

struct DropoutNode {
  static bool fits(const NodeCheck& c) {
    const double p = c.node.attribute[0] = c.attribute("p", 0.5);
    c.demand(p >= 0 && p <= 1, "p is no probability");
    RandomPlan& random = c.node.random;
    random.number = uint32_t(c.attribute("number", 0));
    random.each = uint32_t(c.attribute("each", 1));
    random.kept = uint64_t((1 - p) * 4294967296.0 + 0.5);
    c.demand(random.each > 0 && product(c.out()) % random.each == 0, "its elements are not so many at a time");
    return c.in() == c.out();
  }
  static void plan(const NodePlan& p) { p.scratch(p.out().rows * p.out().channels + 8); }
};

}  // namespace metafast
