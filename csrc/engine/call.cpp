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

std::vector<Address*> Call::inputs() {
  std::vector<Address*> all;
  for (Tensor& t : parameters) all.push_back(&t.data);
  for (Tensor& t : vectors) all.push_back(&t.data);
  for (HyperTensors& h : hypers) {
    all.push_back(&h.table);
    for (Tensor& t : h.elementwise) all.push_back(&t.data);
  }
  for (auto* set : {&support, &query})
    if (*set) all.insert(all.end(), {&(*set)->x, &(*set)->y, &(*set)->w});
  all.insert(all.end(), {&loss_cotangent, &logits_cotangent});
  for (Address& a : adapted_cotangent) all.push_back(&a);
  all.push_back(&seed);
  return all;
}

std::vector<Address*> Call::outputs() {
  std::vector<Address*> all{&support_loss, &task_loss, &loss, &logits};
  for (Address& a : adapted) all.push_back(&a);
  for (Tensor& t : gradients) all.push_back(&t.data);
  for (HyperTensors& h : hypers) {
    all.push_back(&h.table_gradient);
    for (Address& a : h.elementwise_gradient) all.push_back(&a);
  }
  for (auto* set : {&support, &query})
    if (*set) all.insert(all.end(), {&(*set)->dx, &(*set)->dy, &(*set)->dw});
  return all;
}

}  // namespace metafast
