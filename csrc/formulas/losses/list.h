// The list of losses: the enum, the names and settings that Python knows, the dispatch on both machines and whatever the
// planner asks about a loss come from here.
//
// To add one: its header, and a line here. A trait that is not given means no.
#pragma once

#include <stdint.h>

#include "core/plan.h"
#include "formulas/losses/bce.h"
#include "formulas/losses/bce_with_logits.h"
#include "formulas/losses/cross_entropy.h"
#include "formulas/losses/dice.h"
#include "formulas/losses/huber.h"
#include "formulas/losses/kl_div.h"
#include "formulas/losses/l1.h"
#include "formulas/losses/mse.h"
#include "formulas/losses/multi_margin.h"
#include "formulas/losses/nll.h"
#include "formulas/losses/poisson_nll.h"
#include "formulas/losses/smooth_l1.h"
#include "formulas/losses/soft_margin.h"

// X(member of LossKind and template of a scalar, name, traits, {setting, default}...)
#define METAFAST_LOSSES(X)                                                                                    \
  X(CrossEntropy, "cross_entropy", kTakesClasses | kTakesReals | kKeepsProbabilities, {"label_smoothing", 0}, \
    {"ignore_index", -100})                                                                                   \
  X(Nll, "nll", kTakesClasses, {"ignore_index", -100})                                                        \
  X(Mse, "mse", kTakesReals | kArithmetic)                                                                    \
  X(L1, "l1", kTakesReals)                                                                                    \
  X(BceWithLogits, "bce_with_logits", kTakesReals, {"pos_weight", 1})                                         \
  X(Bce, "bce", kTakesReals)                                                                                  \
  X(SoftMargin, "soft_margin", kTakesReals)                                                                   \
  X(PoissonNll, "poisson_nll", kTakesReals, {"log_input", 1}, {"eps", 1e-8})                                  \
  X(KlDiv, "kl_div", kTakesReals, {"log_target", 0})                                                          \
  X(Dice, "dice", kTakesReals, {"smooth", 1})                                                                 \
  X(Huber, "huber", kTakesReals, {"delta", 1})                                                                \
  X(SmoothL1, "smooth_l1", kTakesReals, {"beta", 1})                                                          \
  X(MultiMargin, "multi_margin", kTakesClasses, {"p", 1}, {"margin", 1})

namespace metafast {

enum class LossKind : int32_t {
  kNone,
#define METAFAST_MEMBER(NAME, ...) k##NAME,
  METAFAST_LOSSES(METAFAST_MEMBER)
#undef METAFAST_MEMBER
};

enum LossTrait : uint32_t {
  kTakesClasses = 1 << 0,        // as targets,
  kTakesReals = 1 << 1,          // and numbers that stand like the outputs
  kKeepsProbabilities = 1 << 2,  // a number for each output, which forward leaves to the later passes
  kArithmetic = 1 << 3,          // nothing but sums and products: it runs on packs of tasks as it stands
};

struct LossInfo {
  const char* name;
  LossKind kind;
  uint32_t traits;
  Attribute attributes[2];  // those without a name are absent
};
constexpr LossInfo kLosses[] = {
#define METAFAST_INFO(NAME, TEXT, TRAITS, ...) {TEXT, LossKind::k##NAME, TRAITS, {__VA_ARGS__}},
    METAFAST_LOSSES(METAFAST_INFO)
#undef METAFAST_INFO
};

constexpr bool has(LossKind kind, LossTrait trait) {
  for (const LossInfo& info : kLosses)
    if (info.kind == kind) return (info.traits & trait) != 0;
  return false;
}

}  // namespace metafast
