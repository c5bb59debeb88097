#include "cpu/choices.h"

#include <algorithm>
#include <limits>

namespace metafast {
namespace {

// Tasks run in packs while `pack_bytes` is no more than this.
constexpr int64_t kPackBytes = int64_t(6) << 20;
// A pack takes as long as this part of its lanes would one after the other, and so much more as it nears that limit: fitted to
// networks of 40 to 100 units with 1 to 20 inner steps.
constexpr double kPackTasks = 0.55, kPackTasksMore = 0.3;
// To move a pack to another thread takes this part of its time.
constexpr double kMigration = 0.1;
// This part of what all threads do is added to the time of a call.
constexpr double kContention = 0.05;
// A pack that does not fill its registers makes as many instructions and calls for fewer tasks.
constexpr double kSmallPackMore = 1.05;
// They do not if that would forgo a saving of this part of all products by cpu/first_layer.h.
constexpr double kFirstLayerSaving = 0.2;

int64_t elements(const Program& program) {
  int64_t total = 0;
  for (const ParameterPlan& p : program.parameter_plans(1, true)) total += p.size;
  return total;
}

// A pack's trajectory, which is read once, and what is needed again and again, of which the size of the weights is a measure.
int64_t pack_bytes(const Call& call, const Program& program, int lanes, size_t element_bytes) {
  return elements(program) * (12 + call.steps) * lanes * int64_t(element_bytes);
}

// Multiply-adds per task of the first layer, as it stands and by cpu/first_layer.h, and about those of all layers; zeros where
// that does not apply.
struct MultiplyAdds {
  double plain, by_gram, all;
};

// Whether the rule moves coordinates as it moves what they stand for, and nothing is asked that needs more than that.
bool runs_on_coordinates(const Call& call) {
  if (call.is_descent()) return true;
  return call.links.size() == 1 && link_info(call.links[0].kind).affine && call.is_second_order() &&
         !call.wants_hyper_gradient();
}

MultiplyAdds first_layer_multiply_adds(const Call& call, const Program& program) {
  const Node* node = program.first_layer_node();
  if (!node || !call.support || !call.query || call.steps == 0 || call.is_hessian_vector()) return {};
  if (!runs_on_coordinates(call)) return {};
  const bool needs_weight = call.support->dx || call.query->dx || !call.adapted.empty() ||
                            !call.adapted_cotangent.empty() || (!call.is_second_order() && call.wants_hyper_gradient());
  const auto differs = [&](const HyperTensors& h) {
    return !h.elementwise.empty() && h.elementwise[size_t(node->parameter[0])].data;
  };
  const bool moves = call.support->stepwise || std::any_of(call.hypers.begin(), call.hypers.end(), differs);
  if (needs_weight || moves) return {};

  const Shape &in = program.value_shape(0), &out = program.value_shape(node->output);
  const double rows = in.size() == 2 ? double(in[0]) : 1;
  const double support = rows * double(call.support->examples), query = rows * double(call.query->examples);
  const double inputs = double(in.back()), outputs = double(out.back()), steps = double(call.steps);
  const double passes = call.sweep && call.is_second_order() ? 2 : 1;
  const double plain = inputs * outputs * (support * steps * 2 * passes + query * (call.sweep ? 2 : 1));
  const double by_gram = inputs * support * (support + query) +
                         inputs * outputs * (support * passes + query * (call.sweep ? 2 : 1)) +
                         steps * passes * support * support * outputs;
  // The other layers have an input gradient, too, and a tangent of their input.
  const double others = double(elements(program)) / (inputs * outputs) - 1;
  return {plain, by_gram, plain * (1 + 1.5 * others)};
}

}  // namespace

bool first_layer_by_gram(const Call& call, const Program& program) {
  const MultiplyAdds multiply_adds = first_layer_multiply_adds(call, program);
  return multiply_adds.by_gram < multiply_adds.plain;
}

bool could_run_in_packs(const Call& call, const Program& program, int lanes, size_t element_bytes) {
  if (!program.packable()) return false;
  if (call.packing != Packing::kAuto && call.packing != Packing::kNever) return true;
  if (pack_bytes(call, program, lanes, element_bytes) > kPackBytes) return false;
  const MultiplyAdds first = first_layer_multiply_adds(call, program);
  return first.plain - first.by_gram <= kFirstLayerSaving * first.all;
}

Division divide(const Call& call, const Program& program, const PackSizes& sizes, size_t element_bytes) {
  const Division alone{1, call.tasks, 0};
  if (call.packing == Packing::kNever || !could_run_in_packs(call, program, sizes.lanes, element_bytes)) return alone;
  if (call.packing == Packing::kWhole) return {sizes.lanes, call.tasks, 0};
  if (call.packing == Packing::kSmall) return {sizes.group, call.tasks, 0};

  const int64_t threads = call.threads;
  const auto rounds = [&](int64_t runs) { return double((runs + threads - 1) / threads); };
  Division best = alone;
  // In times of one task by itself. Busy threads slow each other, so of two ways that take as long the one with less work.
  const auto with_contention = [](double time, double work) { return time + kContention * work; };
  double quickest = with_contention(rounds(call.tasks), double(call.tasks));
  if (call.packing == Packing::kMixed) quickest = std::numeric_limits<double>::max();
  const auto consider = [&](int width, int64_t packs, int64_t rest) {
    const bool few = packs <= kFewRuns * threads;
    if (packs == 0 || (rest > 0 && !few)) return;
    const double fill = double(pack_bytes(call, program, width, element_bytes)) / double(kPackBytes);
    const double pack = (kPackTasks + kPackTasksMore * fill) * width * (width < sizes.lanes ? kSmallPackMore : 1);
    const bool migrated = packs > threads && packs % threads > 0 && few && !call.is_hessian_vector();
    const double of_packs = migrated ? double(packs) / double(threads) + kMigration : rounds(packs);
    const double work = double(packs) * pack + double(rest);
    const double time = with_contention(std::max(pack * of_packs, work / double(threads)), work);
    if (time >= quickest) return;
    quickest = time;
    best = {width, rest > 0 ? packs * width : call.tasks, double(rest) / pack};
  };
  const auto with_rest = [&](int width) { consider(width, call.tasks / width, call.tasks % width); };
  if (call.packing == Packing::kMixed) {
    with_rest(sizes.group);
    return best;
  }
  for (const int width : {sizes.lanes, sizes.group}) {
    if (width < sizes.lanes && !sizes.small_pay()) continue;
    consider(width, (call.tasks + width - 1) / width, 0);
    with_rest(width);
  }
  return best;
}

}  // namespace metafast
