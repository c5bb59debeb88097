// BatchNorm of a vector or of images, alone or with the ReLU and the 2x2 max-pooling behind it.
#pragma once

#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

struct BatchNormNode {
  static bool fits(const NodeCheck& c) {
    Node& node = c.node;
    for (int i = 0; i < 4; ++i) c.use(node.parameter[i], c.in()[0], 1, 1);
    node.attribute[0] = c.attribute("eps", 1e-5);
    node.training = c.attribute("training", 1) != 0;
    c.demand(node.training || (node.parameter[2] >= c.learnt_count && node.parameter[3] >= c.learnt_count),
             "evaluation needs constant running statistics");
    return c.in() == c.out() && c.in().size() != 2;
  }
  static void plan(const NodePlan& p) { plan(p, 0); }

 protected:
  static void plan(const NodePlan& p, int64_t kept) {
    const int64_t ld = p.out().ld;
    p.node.saved = p.tape(4 * ld + kept);
    p.node.saved_dot = p.tangent_tape(2 * ld + kept);
    p.scratch(norm_scratch(p.examples() * p.in().rows, ld));
  }
};

struct BatchNormReluPoolNode : BatchNormNode {
  static void plan(const NodePlan& p) { BatchNormNode::plan(p, p.examples() * p.out().rows * p.out().ld); }
};

}  // namespace metafast
