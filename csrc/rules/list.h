// The list of links that rules are chained of. To add one: its header, and a line here.
#pragma once

#include "core/plan.h"
#include "rules/adagrad.h"
#include "rules/adam.h"
#include "rules/clip.h"
#include "rules/penalty.h"
#include "rules/sgd.h"

// X(struct, name)
#define METAFAST_LINKS(X)    \
  X(Descent, "descent")      \
  X(Momentum, "momentum")    \
  X(Adam, "adam")            \
  X(Amsgrad, "amsgrad")      \
  X(Adagrad, "adagrad")      \
  X(ClipNorm, "clip_norm")   \
  X(ClipValue, "clip_value") \
  X(Proximal, "proximal")    \
  X(SoftThreshold, "soft_threshold")

namespace metafast {

enum class LinkKind : int32_t {
#define METAFAST_MEMBER(NAME, TEXT) k##NAME,
  METAFAST_LINKS(METAFAST_MEMBER)
#undef METAFAST_MEMBER
};

struct LinkInfo {
  const char* name;
  LinkKind kind;
  int states, hypers;
  bool reads_gradient, reads_state;  // its adjoint
  bool uses_start, scales, affine;
};
constexpr LinkInfo kLinks[] = {
#define METAFAST_INFO(NAME, TEXT)      \
  {TEXT,                               \
   LinkKind::k##NAME,                  \
   METAFAST_ISA::NAME::kStates,        \
   METAFAST_ISA::NAME::kHypers,        \
   METAFAST_ISA::NAME::kReadsGradient, \
   METAFAST_ISA::NAME::kReadsState,    \
   METAFAST_ISA::NAME::kUsesStart,     \
   METAFAST_ISA::NAME::kScales,        \
   METAFAST_ISA::NAME::kAffine},
    METAFAST_LINKS(METAFAST_INFO)
#undef METAFAST_INFO
};
constexpr const LinkInfo& link_info(LinkKind kind) { return kLinks[int32_t(kind)]; }

namespace METAFAST_ISA {

template <class Link>
struct IsLink {
  using Type = Link;
};

// Calls body(IsLink<the link's struct>).
template <class Body>
MF_HD void with_link(LinkKind kind, Body body) {
  switch (kind) {
#define METAFAST_CASE(NAME, TEXT) \
  case LinkKind::k##NAME: return body(IsLink<NAME>());
    METAFAST_LINKS(METAFAST_CASE)
#undef METAFAST_CASE
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
