#include "engine/call.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "formulas/losses/list.h"

namespace metafast {

void check(const Call& call, const Program& program) {
  const auto none_or = [](size_t size, int count) { return size == 0 || int(size) == count; };
  const int learnt = program.learnt_count(), adapted = program.adapted_count();
  size_t taken = 0;
  for (const LinkPlan& link : call.links) taken += size_t(link_info(link.kind).hypers);
  const bool loops = call.steps > 0 && !call.is_hessian_vector();
  bool hypers =
      call.links.size() <= size_t(kMostLinks) && call.hypers.size() == taken && (!loops || !call.links.empty());
  for (const HyperTensors& h : call.hypers)
    hypers &= none_or(h.elementwise.size(), adapted) && none_or(h.elementwise_gradient.size(), adapted);
  const bool fits = call.tasks > 0 && call.steps >= 0 && call.threads > 0 &&
                    int(call.parameters.size()) == program.parameter_count() && none_or(call.vectors.size(), learnt) &&
                    none_or(call.gradients.size(), learnt) && hypers && none_or(call.adapted.size(), adapted) &&
                    none_or(call.adapted_cotangent.size(), adapted) && (call.sweep || call.gradients.empty()) &&
                    (!call.is_hessian_vector() || !call.vectors.empty());
  if (!fits) throw std::invalid_argument("native call: inconsistent sizes");
  if (program.is_random() && !call.seed) throw std::invalid_argument("native call: random nodes without a seed");
  for (const auto* set : {&call.support, &call.query})
    if (*set && (*set)->y && program.loss() != LossKind::kNone &&
        !has(program.loss(), (*set)->y_is_class ? kTakesClasses : kTakesReals))
      throw std::invalid_argument("native call: the loss takes no such targets");
}

bool Call::wants_hyper_gradient() const {
  return sweep && std::any_of(hypers.begin(), hypers.end(), [](const HyperTensors& h) { return h.is_wanted(); });
}

int32_t Call::state_count() const {
  return std::accumulate(links.begin(), links.end(), 0,
                         [](int32_t n, const LinkPlan& link) { return n + link_info(link.kind).states; });
}

bool Call::uses_start() const {
  return std::any_of(links.begin(), links.end(), [](const LinkPlan& link) { return link_info(link.kind).uses_start; });
}

bool Call::scales() const {
  return std::any_of(links.begin(), links.end(), [](const LinkPlan& link) { return link_info(link.kind).scales; });
}

namespace {

// Lists are empty until one of their tensors is there.
template <class Item>
Item& item(std::vector<Item>& list, int count, size_t i, Item absent = {}) {
  if (list.empty()) list.resize(size_t(count), absent);
  return list.at(i);
}

SetTensors& present(std::optional<SetTensors>& set) {
  if (!set) throw std::invalid_argument("native call: a tensor of a set that is absent");
  return *set;
}

struct SlotInfo {
  const char* name;
  Address& (*of)(Call& call, const Program& program, size_t i, size_t j);
};

#define METAFAST_SLOT(NAME, PLACE)                                                                                    \
  {NAME,                                                                                                              \
   [](Call& c, [[maybe_unused]] const Program& p, [[maybe_unused]] size_t i, [[maybe_unused]] size_t j) -> Address& { \
     return PLACE;                                                                                                    \
   }}
#define METAFAST_SET(SET, FIELD)                        \
  METAFAST_SLOT(#SET "." #FIELD, present(c.SET).FIELD), \
      METAFAST_SLOT("gradient." #SET "." #FIELD, present(c.SET).d##FIELD)

// Everything that Python hands over, and everything that it gets.
constexpr SlotInfo kSlots[] = {
    METAFAST_SLOT("parameters", c.parameters.at(i).data),
    METAFAST_SLOT("vectors", item(c.vectors, p.learnt_count(), i, Tensor{0, true}).data),
    METAFAST_SLOT("hyper", c.hypers.at(i).table),
    METAFAST_SLOT("elementwise", c.hypers.at(i).elementwise.at(j).data),
    METAFAST_SET(support, x),
    METAFAST_SET(support, y),
    METAFAST_SET(support, w),
    METAFAST_SET(query, x),
    METAFAST_SET(query, y),
    METAFAST_SET(query, w),
    METAFAST_SLOT("cotangent.task_loss", c.loss_cotangent),
    METAFAST_SLOT("cotangent.logits", c.logits_cotangent),
    METAFAST_SLOT("cotangent.adapted", item(c.adapted_cotangent, p.adapted_count(), i)),
    METAFAST_SLOT("seed", c.seed),
    METAFAST_SLOT("support_loss", c.support_loss),
    METAFAST_SLOT("task_loss", c.task_loss),
    METAFAST_SLOT("loss", c.loss),
    METAFAST_SLOT("logits", c.logits),
    METAFAST_SLOT("adapted", item(c.adapted, p.adapted_count(), i)),
    METAFAST_SLOT("gradient.parameters", c.gradients.at(i).data),
    METAFAST_SLOT("gradient.hyper", c.hypers.at(i).table_gradient),
    METAFAST_SLOT("gradient.elementwise", item(c.hypers.at(i).elementwise_gradient, p.adapted_count(), j)),
};
#undef METAFAST_SET
#undef METAFAST_SLOT

}  // namespace

Address& Call::slot(const std::string& name, const Program& program, size_t i, size_t j) {
  for (const SlotInfo& info : kSlots)
    if (name == info.name) return info.of(*this, program, i, j);
  throw std::invalid_argument("native call: unknown tensor " + name);
}

}  // namespace metafast
