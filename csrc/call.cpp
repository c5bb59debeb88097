#include "call.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "cpu/pool.h"
#include "dispatch.h"

namespace metafast {
namespace {

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

int64_t aligned(int64_t n) { return (n + 15) / 16 * 16; }

// What is summed over tasks is written per task for this many tasks at a time, and added up in task order.
constexpr int64_t kWaveBytes = int64_t(4) << 20;

// Memory::kAuto keeps the activations of all support passes while they take no more than this per thread.
constexpr int64_t kKeepBytes = int64_t(256) << 20;

// Fewer additions than this are done before a second thread has woken up.
constexpr int64_t kWorthSharing = 65536;

template <class T>
class Run {
 public:
  Run(const Program& program, const Call& call) : program_(program), call_(call), kernels_(kernels<T>()) {
    if (call.tasks <= 0 || call.steps < 0 || int(call.parameters.size()) != program.parameter_count())
      throw std::invalid_argument("native call: inconsistent sizes");
    plans_ = program.parameter_plans(kernels_.lanes);
    // From the order of the description to that of storage.
    sources_.resize(plans_.size());
    for (size_t i = 0; i < plans_.size(); ++i)
      sources_[size_t(program.stored_at(int(i)))] = {at<const T>(call.parameters[i].first), call.parameters[i].second};
    fill_sizes();
    fill_rates();
    fill_cotangents_and_outputs();
    choose_first_layer();
    make_batches();
    fill_sets();
    lay_out();
  }

  int64_t bytes() const { return (total_ + 16) * int64_t(sizeof(T)); }

  void operator()(Address workspace) {
    T* base = at<T>((workspace + 63) / 64 * 64);
    job_.workspace = base + threads_at_;
    prepare(base);
    T* sums = base + sums_at_;
    for (int64_t begin = 0; begin < call_.tasks; begin += wave_) {
      const int64_t count = std::min(wave_, call_.tasks - begin);
      std::atomic<int64_t> next{0};
      const int threads = int(std::min<int64_t>(call_.threads, count));
      parallel(threads, [&](int thread) {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;)
          kernels_.run_task(job_, begin + i, i, thread);
      });
      if (!job_.gradients) continue;
      add_up(sums, count, begin > 0);
    }
    finish(sums);
  }

 private:
  // In task order; threads share out the elements, so their number does not matter.
  void add_up(T* sums, int64_t count, bool accumulate) {
    const int64_t stride = job_.gradient_stride;
    if (count * stride < kWorthSharing)
      return kernels_.add_rows(job_.gradients, stride, count, 0, stride, accumulate, sums);
    const int64_t part = aligned((stride + call_.threads - 1) / call_.threads);
    std::atomic<int64_t> next{0};
    parallel(call_.threads, [&](int) {
      for (int64_t i; (i = next.fetch_add(part, std::memory_order_relaxed)) < stride;)
        kernels_.add_rows(job_.gradients, stride, count, i, std::min(stride, i + part), accumulate, sums);
    });
  }

  void fill_sizes() {
    job_.tasks = call_.tasks;
    job_.steps = int32_t(call_.steps);
    job_.first_order = call_.first_order;
    job_.sweep = call_.sweep;
    job_.hessian_vector = call_.hessian_vector;
    job_.has_query = bool(call_.query);
    job_.parameter_count = program_.parameter_count();
    job_.learnt_count = program_.learnt_count();
    job_.adapted_count = program_.adapted_count();
    const auto size = [&](int count) {
      return count == 0 ? 0 : plans_[size_t(count) - 1].offset + plans_[size_t(count) - 1].size;
    };
    job_.parameter_size = size(job_.parameter_count);
    job_.learnt_size = size(job_.learnt_count);
    job_.adapted_size = size(job_.adapted_count);
    job_.parameters = plans_.data();
    job_.sources = sources_.data();
    for (const auto& source : sources_) job_.own_initial |= source.task_stride != 0;
  }

  // Whether first_layer.h takes over the first layer: where it applies and costs fewer operations.
  void choose_first_layer() {
    FirstLayerPlan& first = job_.first;
    first = FirstLayerPlan{};
    first.parameter = -1;
    const Step* step = program_.first_layer_step();
    if (!step || !call_.support || !call_.query || call_.steps == 0 || call_.hessian_vector) return;
    const bool needs_weight = call_.support->dx || call_.query->dx || !call_.adapted.empty() ||
                              !call_.adapted_cotangent.empty() || (call_.first_order && job_.want_rate_gradient);
    const bool moves =
        call_.support->stepwise || (!call_.elementwise.empty() && call_.elementwise[size_t(step->parameter[0])].first);
    if (needs_weight || moves) return;

    const Shape &in = program_.value_shape(0), &out = program_.value_shape(step->output);
    const int64_t rows = in.size() == 2 ? in[0] : 1;
    const double support = double(rows * call_.support->examples), query = double(rows * call_.query->examples);
    const double inputs = double(in.back()), outputs = double(out.back()), steps = double(call_.steps);
    const double passes = call_.sweep && !call_.first_order ? 2 : 1;
    const double plain = inputs * outputs * (support * steps * 2 * passes + query * (call_.sweep ? 2 : 1));
    const double by_gram = inputs * support * (support + query) +
                           inputs * outputs * (support * passes + query * (call_.sweep ? 2 : 1)) +
                           steps * passes * support * support * outputs;
    if (by_gram >= plain) return;
    first.parameter = step->parameter[0];
    first.output = step->output;
    first.inputs = int32_t(in.back());
    first.ld = plans_[size_t(first.parameter)].ld;
    first.support_rows = int64_t(support);
    first.query_rows = int64_t(query);
    first.ld_rows = int32_t((first.support_rows + kernels_.lanes - 1) / kernels_.lanes * kernels_.lanes);
  }

  void make_batches() {
    const bool first_layer = job_.first.parameter >= 0;
    // The inner loop itself wants gradients of the adapted parameters only; the reverse sweep those of all.
    const bool second_order = call_.hessian_vector || (call_.sweep && !call_.first_order);
    if (call_.support) {
      support_ =
          program_.batch(call_.support->examples, kernels_.lanes, second_order ? Scope::kLearnt : Scope::kAdapted,
                         !second_order          ? Scope::kNone
                         : call_.hessian_vector ? Scope::kLearnt
                                                : Scope::kAdapted,
                         second_order && call_.support->dx, first_layer);
      job_.support_plan = support_.get();
    } else if (call_.steps > 0) {
      throw std::invalid_argument("native call: inner steps without a support set");
    }
    if (call_.query) {
      query_ = program_.batch(call_.query->examples, kernels_.lanes, call_.sweep ? Scope::kLearnt : Scope::kNone,
                              Scope::kNone, call_.sweep && call_.query->dx, first_layer);
      job_.query_plan = query_.get();
    }
  }

  void fill_sets() {
    const auto fill = [&](const std::optional<SetAddresses>& from, Examples<T>& to) {
      if (!from) return;
      const int64_t n = from->examples, x = n * program_.input_size();
      const int64_t y = from->y_is_class ? n : n * program_.output_size();
      const int64_t steps = from->stepwise ? call_.steps : 1;
      to.x = at<const T>(from->x), to.y = at<const void>(from->y), to.w = at<const T>(from->w);
      to.dx = at<T>(from->dx), to.dy = at<T>(from->dy), to.dw = at<T>(from->dw);
      to.y_is_class = from->y_is_class;
      to.x_task_stride = x * steps, to.y_task_stride = y * steps, to.w_task_stride = n * steps;
      if (from->stepwise) to.x_step_stride = x, to.y_step_stride = y, to.w_step_stride = n;
    };
    fill(call_.support, job_.support);
    fill(call_.query, job_.query);
  }

  void fill_rates() {
    job_.rate_table = at<const T>(call_.rate_table);
    const size_t count = size_t(job_.adapted_count);
    elementwise_.assign(count, nullptr);
    elementwise_stride_.assign(count, 0);
    rate_offset_.assign(count, 0);
    job_.rate_size = call_.steps * job_.adapted_count;
    for (size_t a = 0; a < call_.elementwise.size() && a < count; ++a) {
      if (!call_.elementwise[a].first) continue;
      const bool per_step = call_.elementwise[a].second != 0;
      rate_offset_[a] = job_.rate_size;
      elementwise_stride_[a] = per_step ? plans_[a].size : 0;
      job_.rate_size += plans_[a].size * (per_step ? call_.steps : 1);
    }
    job_.elementwise = elementwise_.data();
    job_.elementwise_stride = elementwise_stride_.data();
    job_.rate_offset = rate_offset_.data();
    job_.want_rate_gradient = call_.sweep && (call_.rate_table_gradient || !call_.elementwise_gradient.empty());
  }

  void fill_cotangents_and_outputs() {
    job_.loss_cotangent = at<const T>(call_.loss_cotangent);
    job_.loss_cotangent_all = T(call_.loss_cotangent_all);
    job_.logits_cotangent = at<const T>(call_.logits_cotangent);
    for (Address a : call_.adapted_cotangent) adapted_cotangent_.push_back({at<const T>(a), 0});
    job_.adapted_cotangent = adapted_cotangent_.empty() ? nullptr : adapted_cotangent_.data();
    for (const auto& v : call_.vectors) vectors_.push_back({at<const T>(v.first), v.second});
    vectors_ = in_storage_order(vectors_, job_.learnt_count);
    job_.vectors = vectors_.data();
    job_.support_loss = at<T>(call_.support_loss);
    job_.task_loss = at<T>(call_.task_loss);
    job_.logits = at<T>(call_.logits);
    for (Address a : call_.adapted) adapted_.push_back(at<T>(a));
    job_.adapted = adapted_.empty() ? nullptr : adapted_.data();
    std::vector<T*> shared, own;
    for (const auto& [address, per_task] : call_.gradients) {
      own.push_back(per_task ? at<T>(address) : nullptr);
      shared.push_back(per_task ? nullptr : at<T>(address));
      sums_ |= !per_task;
    }
    shared_gradient_ = in_storage_order(shared, job_.learnt_count);
    own_gradient_ = in_storage_order(own, job_.learnt_count);
    job_.own_gradient = own_gradient_.data();
    sums_ = call_.sweep && (sums_ || job_.want_rate_gradient);
  }

  // A list over learnt parameters, from the order of the description (adapted and meta interleaved) to storage order.
  template <class V>
  std::vector<V> in_storage_order(const std::vector<V>& list, int count) const {
    std::vector<V> out(static_cast<size_t>(count), V{});
    size_t next = 0;
    for (int i = 0; i < program_.parameter_count() && next < list.size(); ++i)
      if (program_.stored_at(i) < count) out[size_t(program_.stored_at(i))] = list[next++];
    return out;
  }

  void lay_out() {
    int64_t total = 0;
    const auto take = [&](int64_t n) {
      const int64_t at = total;
      total += aligned(n);
      return at;
    };
    shared_at_ = take(job_.parameter_size);
    elementwise_at_ = take(job_.rate_size);
    const int64_t block = aligned(std::max<int64_t>(1, job_.learnt_size + job_.rate_size));
    sums_at_ = take(block);
    wave_ = call_.tasks;
    job_.gradient_stride = block;
    if (sums_) {
      wave_ = std::clamp<int64_t>(kWaveBytes / (block * int64_t(sizeof(T))),
                                  std::min<int64_t>(call_.tasks, 4 * call_.threads), call_.tasks);
      waves_at_ = take(wave_ * block);
    }
    threads_at_ = total;

    ThreadLayout& l = job_.layout;
    total = 0;
    l.initial = take(job_.own_initial ? job_.parameter_size : 0);
    l.trajectory = take(call_.steps * job_.adapted_size);
    l.gradient_stride = job_.want_rate_gradient ? job_.learnt_size : 0;
    l.gradient = take(job_.learnt_size + (call_.steps > 0 ? call_.steps - 1 : 0) * l.gradient_stride);
    l.gradient_dot = take(job_.learnt_size);
    l.vector = take(job_.learnt_size);
    l.meta_gradient = take(sums_ ? 0 : block);
    if (FirstLayerPlan& first = job_.first; first.parameter >= 0) {
      const int64_t size = first.support_rows * first.ld;
      first.x_transposed = take(int64_t(first.inputs) * first.ld_rows);
      first.gram = take(first.support_rows * first.ld_rows);
      first.cross = take(first.query_rows * first.ld_rows);
      first.trajectory = take((call_.steps + 1) * size);
      first.z_query = take(first.query_rows * first.ld);
      for (int64_t* array : {&first.moved, &first.scaled, &first.mu, &first.tangent, &first.swept}) *array = take(size);
    }
    const auto targets = [&](const std::shared_ptr<const Program::Batch>& b) {
      return b ? b->examples * b->values[b->output].rows * b->values[b->output].cold : 0;
    };
    const auto examples = [&](const std::shared_ptr<const Program::Batch>& b) { return b ? b->examples : 0; };
    l.targets = take(std::max(targets(support_), targets(query_)));
    l.target_gradient = take(std::max(targets(support_), targets(query_)));
    l.weight_gradient = take(std::max(examples(support_), examples(query_)));
    l.scratch = take(std::max(support_ ? support_->scratch_size : 0, query_ ? query_->scratch_size : 0));
    l.tape_stride = support_ ? aligned(support_->tape_size) : 0;
    const int64_t tapes = l.tape_stride * std::max<int64_t>(call_.steps, 1);
    job_.keep = call_.memory == Memory::kKeep || (call_.memory == Memory::kAuto && call_.sweep && !call_.first_order &&
                                                  tapes * int64_t(sizeof(T)) <= kKeepBytes);
    l.tapes = take(job_.keep ? tapes : l.tape_stride);
    // The query's tape is no longer needed when the first tangent is.
    const int64_t last =
        std::max(support_ && call_.sweep ? support_->tangent_size_total : 0, query_ ? query_->tape_size : 0);
    l.tangent_tape = l.query_tape = take(last);
    l.total = total + 16;  // off a power of two, so that threads' parts do not fall on the same cache sets
    total_ = threads_at_ + l.total * call_.threads;
  }

  void prepare(T* base) {
    T* shared = base + shared_at_;
    for (size_t p = 0; p < plans_.size(); ++p)
      if (sources_[p].task_stride == 0) kernels_.parameter_in(plans_[p], sources_[p].data, shared + plans_[p].offset);
    job_.shared_initial = shared;
    if (job_.own_initial)
      for (size_t p = 0; p < plans_.size(); ++p)
        if (sources_[p].task_stride != 0) std::memset(shared + plans_[p].offset, 0, size_t(plans_[p].size) * sizeof(T));
    for (size_t a = 0; a < elementwise_.size(); ++a) {
      if (a >= call_.elementwise.size() || !call_.elementwise[a].first) continue;
      T* inside = base + elementwise_at_ + rate_offset_[a] - call_.steps * job_.adapted_count;
      elementwise_[a] = inside;
      const int64_t steps = elementwise_stride_[a] ? call_.steps : 1;
      for (int64_t k = 0; k < steps; ++k)
        kernels_.parameter_in(plans_[a], at<const T>(call_.elementwise[a].first) + k * call_.elementwise[a].second,
                              inside + k * plans_[a].size);
    }
    job_.gradients = sums_ ? base + waves_at_ : nullptr;
  }

  void finish(const T* sums) {
    if (call_.loss) {
      T total = T(0);
      for (int64_t t = 0; t < call_.tasks; ++t) total += job_.task_loss[t];
      *at<T>(call_.loss) = total / T(call_.tasks);
    }
    if (!sums_) return;
    for (size_t p = 0; p < shared_gradient_.size(); ++p)
      if (shared_gradient_[p]) kernels_.parameter_out(plans_[p], sums + plans_[p].offset, shared_gradient_[p]);
    if (!job_.want_rate_gradient) return;
    const T* rates = sums + job_.learnt_size;
    if (call_.rate_table_gradient)
      std::memcpy(at<T>(call_.rate_table_gradient), rates, size_t(call_.steps * job_.adapted_count) * sizeof(T));
    for (size_t a = 0; a < call_.elementwise_gradient.size(); ++a) {
      if (!call_.elementwise_gradient[a]) continue;
      const int64_t steps = elementwise_stride_[a] ? call_.steps : 1;
      const int64_t numel = int64_t(plans_[a].outputs) * plans_[a].inputs * plans_[a].taps;
      for (int64_t k = 0; k < steps; ++k)
        kernels_.parameter_out(plans_[a], rates + rate_offset_[a] + k * plans_[a].size,
                               at<T>(call_.elementwise_gradient[a]) + k * numel);
    }
  }

  const Program& program_;
  const Call& call_;
  const Kernels<T>& kernels_;
  Job<T> job_{};
  std::vector<ParameterPlan> plans_;
  std::vector<ParameterSource<T>> sources_, vectors_, adapted_cotangent_;
  std::vector<const T*> elementwise_;
  std::vector<int64_t> elementwise_stride_, rate_offset_;
  std::vector<T*> adapted_, shared_gradient_, own_gradient_;
  std::shared_ptr<const Program::Batch> support_, query_;
  int64_t shared_at_ = 0, elementwise_at_ = 0, sums_at_ = 0, waves_at_ = 0, threads_at_ = 0, total_ = 0, wave_ = 0;
  bool sums_ = false;
};

}  // namespace

template <class T>
int64_t run(const Program& program, const Call& call, Address workspace, int64_t bytes) {
  Run<T> run(program, call);
  const int64_t needed = run.bytes() + 64;
  if (bytes < needed) return needed;
  run(workspace);
  return 0;
}

template int64_t run<float>(const Program&, const Call&, Address, int64_t);
template int64_t run<double>(const Program&, const Call&, Address, int64_t);

}  // namespace metafast
