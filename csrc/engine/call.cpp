#include "engine/call.h"

#include <stdexcept>

namespace metafast {

void check(const Call& call, const Program& program) {
  const auto none_or = [](size_t size, int count) { return size == 0 || int(size) == count; };
  const int learnt = program.learnt_count(), adapted = program.adapted_count();
  const bool fits = call.tasks > 0 && call.steps >= 0 && call.threads > 0 &&
                    int(call.parameters.size()) == program.parameter_count() && none_or(call.vectors.size(), learnt) &&
                    none_or(call.gradients.size(), learnt) && none_or(call.elementwise.size(), adapted) &&
                    none_or(call.adapted.size(), adapted) && none_or(call.elementwise_gradient.size(), adapted) &&
                    none_or(call.adapted_cotangent.size(), adapted) && (call.sweep || call.gradients.empty()) &&
                    (!call.hessian_vector || !call.vectors.empty());
  if (!fits) throw std::invalid_argument("native call: inconsistent sizes");
}

std::vector<Address*> Call::inputs() {
  std::vector<Address*> all;
  for (Tensor& t : parameters) all.push_back(&t.data);
  for (Tensor& t : vectors) all.push_back(&t.data);
  all.push_back(&rate_table);
  for (Tensor& t : elementwise) all.push_back(&t.data);
  for (auto* set : {&support, &query})
    if (*set) all.insert(all.end(), {&(*set)->x, &(*set)->y, &(*set)->w});
  all.insert(all.end(), {&loss_cotangent, &logits_cotangent});
  for (Address& a : adapted_cotangent) all.push_back(&a);
  return all;
}

std::vector<Address*> Call::outputs() {
  std::vector<Address*> all{&support_loss, &task_loss, &loss, &logits};
  for (Address& a : adapted) all.push_back(&a);
  for (Tensor& t : gradients) all.push_back(&t.data);
  all.push_back(&rate_table_gradient);
  for (Address& a : elementwise_gradient) all.push_back(&a);
  for (auto* set : {&support, &query})
    if (*set) all.insert(all.end(), {&(*set)->dx, &(*set)->dy, &(*set)->dw});
  return all;
}

}  // namespace metafast
