// Rows of a table, by their numbers; without a table, of the identity.
#pragma once

#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

struct EmbeddingNode {
  static bool fits(const NodeCheck& c) {
    const Shape &in = c.in(), &out = c.out();
    const int p = c.node.parameter[0];
    c.node.attribute[0] = c.attribute("padding_idx", -1);
    if (p >= 0) {
      const Shape& table = c.parameter_shapes[size_t(p)];
      c.demand(table.size() == 2 && table[1] == out.back(), "its table does not fit the output");
      c.use_table(p, table[0], table[1]);
    }
    return in.size() <= 2 && out.size() <= 2 && product(out) == product(in) * out.back();
  }
  static void plan(const NodePlan&) {}
};

}  // namespace metafast
