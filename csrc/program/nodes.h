// Every primitive's check and plan, found by its Op. To add a primitive: its header here, with a struct <Name>Node.
#pragma once

#include "program/nodes/batch_norm.h"
#include "program/nodes/conv2d.h"
#include "program/nodes/dropout.h"
#include "program/nodes/embedding.h"
#include "program/nodes/linear.h"
#include "program/nodes/matmul.h"
#include "program/nodes/normalise.h"
#include "program/nodes/pair.h"
#include "program/nodes/pointwise.h"
#include "program/nodes/shape.h"
#include "program/nodes/softmax.h"
#include "program/nodes/sparse_map.h"
#include "program/primitives.h"

namespace metafast {

// Forms that need no more than their primitive's node was given.
struct PlannedNode {
  static void plan(const NodePlan&) {}
};
using FirstLinearNode = PlannedNode;
using UserHiddenLinearNode = PlannedNode;
using WinogradConv2dNode = PlannedNode;
using GroupedConv2dNode = PlannedNode;
using GroupedConvTranspose2dNode = PlannedNode;
using OneOutputLinearNode = PlannedNode;

// What Python calls a primitive, and how many inputs and parameters it takes.
struct PrimitiveInfo {
  const char* name;
  Op op;
  int inputs, parameters;
};
constexpr PrimitiveInfo kPrimitives[] = {
#define METAFAST_INFO(NAME, TEXT, ...) {TEXT, Op::k##NAME, 1, 0},
    METAFAST_POINTWISE(METAFAST_INFO)
#undef METAFAST_INFO
#define METAFAST_INFO(NAME, TEXT, ...) {TEXT, Op::k##NAME, 2, 0},
        METAFAST_PAIRS(METAFAST_INFO)
#undef METAFAST_INFO
#define METAFAST_INFO(NAME, TEXT, INPUTS, PARAMETERS, TRAITS) {TEXT, Op::k##NAME, INPUTS, PARAMETERS},
            METAFAST_STRUCTURED(METAFAST_INFO)
#undef METAFAST_INFO
};

// Whether the shapes fit together; reads the attributes.
inline bool fits(const NodeCheck& c) {
  switch (c.node.op) {
#define METAFAST_CASE(NAME, TEXT, TRAITS, ...) \
  case Op::k##NAME: return PointwiseNode::fits(c, {__VA_ARGS__});
    METAFAST_POINTWISE(METAFAST_CASE)
#undef METAFAST_CASE
#define METAFAST_CASE(NAME, ...) \
  case Op::k##NAME: return PairNode::fits(c);
    METAFAST_PAIRS(METAFAST_CASE)
#undef METAFAST_CASE
#define METAFAST_CASE(NAME, ...) \
  case Op::k##NAME: return NAME##Node::fits(c);
    METAFAST_STRUCTURED(METAFAST_CASE)
#undef METAFAST_CASE
    default: return false;
  }
}

// Chooses a form, builds tables and asks for memory.
inline void plan_node(const NodePlan& p) {
  switch (p.node.op) {
#define METAFAST_CASE(NAME, ...) \
  case Op::k##NAME: return PointwiseNode::plan(p);
    METAFAST_POINTWISE(METAFAST_CASE)
#undef METAFAST_CASE
#define METAFAST_CASE(NAME, ...) \
  case Op::k##NAME: return PairNode::plan(p);
    METAFAST_PAIRS(METAFAST_CASE)
#undef METAFAST_CASE
#define METAFAST_CASE(NAME, ...) \
  case Op::k##NAME: return NAME##Node::plan(p);
    METAFAST_STRUCTURED(METAFAST_CASE) METAFAST_FORMS(METAFAST_CASE)
#undef METAFAST_CASE
  }
}

}  // namespace metafast
