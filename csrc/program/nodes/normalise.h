// A normalisation of each example by itself: of the groups of channels of each row, or of an image.
#pragma once

#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

struct NormaliseNode {
  static bool fits(const NodeCheck& c) {
    Node& node = c.node;
    const int64_t channels = c.in().size() == 3 ? c.in()[0] : c.in().back();
    for (int i = 0; i < 2; ++i) c.use(node.parameter[i], channels, 1, 1);
    node.attribute[0] = c.attribute("eps", 1e-5);
    node.centred = c.attribute("centred", 1) != 0;
    const double groups = c.attribute("groups", 1);
    c.demand(groups >= 1 && groups <= double(channels) && channels % int64_t(groups) == 0,
             "groups do not divide the channels");
    node.groups = int32_t(groups);
    return c.in() == c.out();
  }

  static void plan(const NodePlan& p) {
    const int64_t positions = p.in().height > 0 ? p.in().rows : 1, spans = p.examples() * p.in().rows / positions;
    p.node.saved = p.tape(2 * spans * p.node.groups);
    p.node.saved_dot = p.tangent_tape(2 * spans * p.node.groups);
    p.scratch(set_scratch(spans, positions, p.in().ld));
  }
};

}  // namespace metafast
