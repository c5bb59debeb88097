// y = f(x), element by element. Attributes and traits stand in formulas/functions/list.h.
#pragma once

#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

struct PointwiseNode {
  static bool fits(const NodeCheck& c, std::initializer_list<Attribute> attributes) {
    int i = 0;
    for (const Attribute& a : attributes) c.node.attribute[i++] = c.attribute(a.name, a.otherwise);
    return c.in() == c.out();
  }
  static void plan(const NodePlan&) {}
};

}  // namespace metafast
