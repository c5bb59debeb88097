// Prepares a call once per kind (shapes, flags, which tensors are there): plans, order of work, layout of memory; then
// each call only writes the block of addresses and launches.
#include "cuda/session.h"

#include <cstring>
#include <map>
#include <stdexcept>

#include "cuda/blob.h"
#include "cuda/kernels.h"
#include "cuda/runtime.h"
#include "cuda/schedule.h"
#include "engine/memory.h"

namespace metafast {
namespace {

// Tasks of one launch: the second dimension of a grid ends at 65535.
constexpr int64_t kMostTasks = 32768;
// The persistent kernel pays where a task is one block's work: at most so many elements of parameters and activations.
constexpr int64_t kSmallTask = 1 << 16;
// Fewer launches than this are not worth a graph.
constexpr size_t kWorthGraph = 6;

template <class T>
class DeviceSession final : public Session {
 public:
  DeviceSession(std::shared_ptr<const Program> program, Call c, OnDevice on)
      : Session(std::move(c)),
        shared_program_(std::move(program)),
        program_(*shared_program_),
        on_(on),
        parameters_(program_.parameter_plans(kDeviceLanes, false)) {
    check(call, program_);
    make_plans();
    fill_shape();
    check_sizes();
    chunk_ = std::min(call.tasks, kMostTasks);
    if (on.chunk > 0) chunk_ = std::min(chunk_, on.chunk);
    choose_memory();
    shape_.chunk_tasks = chunk_;
    shape_.persistent = persistent_;
    if (std::is_same<T, float>::value) shape_.tf32 = on.tf32;
    shape_.shared_initial = !persistent_ && !shape_.own_initial;
    schedule_ = make_schedule(shape_);
    lay_out_task();
    lay_out_workspace();
    make_constants();
  }

  int64_t bytes() const override { return total_bytes_ + 256; }
  int64_t constants_bytes() const override { return int64_t(constants_.size()) + 256; }

  void upload(Address constants, void* stream) override {
    if (device::is_capturing(stream))
      throw std::runtime_error(
          "metafast: the first call of its kind uploads plans, which a CUDA graph cannot record; run it once before "
          "capturing");
    constants_on_device_ = (constants + 255) / 256 * 256;
    const std::vector<unsigned char> bytes = constants_.placed(constants_on_device_);
    device::copy_and_wait(at<void>(constants_on_device_), bytes.data(), bytes.size(), stream);
  }

  void run(Address workspace, void* stream, const std::function<void()>& overlapped) override {
    overlapped();
    const Address base = (workspace + 255) / 256 * 256;
    upload_block(base, stream);
    const auto launches = [this, base](void* on) { launch(base, on); };
    if (launch_count() < kWorthGraph || device::is_capturing(stream)) return launches(stream);
    // Recorded when a call comes back to the same memory, which torch's allocator sees to.
    Recorded& recorded = graphs_[base];
    if (!recorded.graph && recorded.calls++ > 0) recorded.graph = device::record(launches);
    if (graphs_.size() > 16)
      graphs_.clear();
    else if (recorded.graph)
      return recorded.graph->launch(stream);
    launches(stream);
  }

 private:
  void make_plans() {
    const bool second_order = call.sweep && call.is_second_order();
    if (call.support) {
      const Scope tangent = !second_order ? Scope::kNone : call.is_hessian_vector() ? Scope::kLearnt : Scope::kAdapted;
      plans_[0] =
          program_.device_plan(call.support->examples, kDeviceLanes, second_order ? Scope::kLearnt : Scope::kAdapted,
                               tangent, second_order && call.support->dx);
    } else if (call.steps > 0) {
      throw std::invalid_argument("native call: inner steps without a support set");
    }
    if (call.query)
      plans_[1] = program_.device_plan(call.query->examples, kDeviceLanes, call.sweep ? Scope::kLearnt : Scope::kNone,
                                       Scope::kNone, call.sweep && call.query->dx);
  }

  // Kernels count in 32 bits (frame.cuh).
  void check_sizes() const {
    const auto check = [](int64_t elements) {
      if (elements >= int64_t(1) << 31)
        throw std::invalid_argument("metafast: an array of one task has " + std::to_string(elements) +
                                    " elements; on a GPU fewer than 2^31 are supported");
    };
    check(std::max(shape_.parameter_size, shape_.learnt_size + shape_.hyper_size));
    for (const auto& plan : plans_)
      for (int32_t v = 0; plan && v < plan->value_count; ++v)
        check(plan->examples * plan->values[v].rows * std::max(plan->values[v].ld, plan->values[v].ld_cotangent));
  }

  void fill_shape() {
    DeviceShape& n = shape_;
    hypers_ = lay_out_hypers(call, parameters_, program_.adapted_count());
    n = DeviceShape{};
    static_cast<CallShape&>(n) = shape_of(call, program_, parameters_, hypers_);
    n.parameters = parameters_.data();
    n.hyper_values = hypers_.values_size;
    n.scales = call.scales();
    n.logits = call.logits != 0;
    n.logits_cotangent = call.logits_cotangent != 0;
    n.adapted_cotangent = !call.adapted_cotangent.empty();
    n.adapted = !call.adapted.empty();
    n.loss = call.loss != 0;
    for (const Tensor& gradient : call.gradients) (gradient.own ? n.own_gradients : n.sums) = true;
    n.sums = call.sweep && (n.sums || n.want_hyper_gradient);
    n.own_gradients &= call.sweep;
    const std::optional<SetTensors>* sets[2] = {&call.support, &call.query};
    for (int i = 0; i < 2; ++i) {
      if (!*sets[i]) continue;
      const SetTensors& set = **sets[i];
      const BatchPlan& plan = *plans_[i];
      n.plans[i] = &plan;
      n.image_targets[i] = set.y && !set.y_is_class && plan.values[plan.output].height > 0;
      n.data_gradients[i] = set.dx || set.dy || set.dw;
    }
    n.query_has_targets = call.query && call.query->y;
  }

  // What is kept, and which of the two styles runs.
  void choose_memory() {
    tape_stride_ = plans_[0] ? aligned(plans_[0]->tape_size) : 0;
    shape_.kept = keep_steps(call, tape_stride_ * int64_t(sizeof(T)));
    const int64_t work = shape_.parameter_size + std::max(tape_stride_, plans_[1] ? plans_[1]->tape_size : 0);
    persistent_ = on_.style == Style::kAuto ? work <= kSmallTask : on_.style == Style::kPersistent;
  }

  // One task's memory.
  void lay_out_task() {
    TaskLayout& l = layout_;
    l = TaskLayout{};
    const DeviceShape& n = shape_;
    int64_t hot = 0, cold = 0;
    const auto take = [&](int64_t size, bool is_cold) {
      int64_t& top = is_cold ? cold : hot;
      const int64_t begin = top;
      top += aligned(size);
      return is_cold ? begin | kCold : begin;
    };
    const auto targets = [&](int i) {
      return plans_[i] ? plans_[i]->examples * plans_[i]->values[plans_[i]->output].rows *
                             plans_[i]->values[plans_[i]->output].ld_cotangent
                       : 0;
    };
    const auto examples = [&](int i) { return plans_[i] ? plans_[i]->examples : 0; };
    const int64_t limit = device::properties(on_.device).shared_bytes / int64_t(sizeof(T)) -
                          device_kernels<T>().persistent_shared_elements;
    // All hot; if that is too much for shared memory, what grows with the steps is cold; then everything.
    for (int level = 0; level < 2; ++level) {
      const bool grows = level > 0;
      hot = cold = 0;
      l.initial = take(n.shared_initial ? 0 : n.parameter_size, false);
      const int64_t states = n.state_count * n.adapted_size;
      l.trajectory_stride = n.adapted_size + (n.kept.states ? states : 0);
      l.state = take(n.kept.states ? 0 : states, false);
      l.trajectory = take(n.kept.theta_count(n.steps) * l.trajectory_stride, grows);
      l.state_bar = take(states, false);
      l.start_bar = take(n.uses_start ? n.adapted_size : 0, false);
      l.link = take(n.link_count > 1 ? 2 * n.link_count * n.adapted_size : 0, false);
      l.gradient_stride = n.learnt_size;
      l.gradient = take(std::max(n.kept.gradients, 1) * l.gradient_stride, grows);
      l.gradient_dot = take(n.learnt_size, false);
      l.vector = take(n.learnt_size, false);
      l.targets = take(n.image_targets[0] || n.image_targets[1] ? std::max(targets(0), targets(1)) : 0, false);
      l.target_gradient = take(std::max(targets(0), targets(1)), false);
      l.weight_gradient = take(std::max(examples(0), examples(1)), false);
      l.loss = take(4 * (n.steps + 1), false);
      l.scratch = take(schedule_.scratch, false);
      l.tape_stride = tape_stride_;
      l.tapes = take(n.kept.tapes * tape_stride_, grows);
      // The query's tape is no longer needed when the first tangent is.
      const int64_t tangents = plans_[0] && call.sweep ? plans_[0]->tangent_size_total : 0;
      l.tangent_tape = l.query_tape = take(std::max(tangents, plans_[1] ? plans_[1]->tape_size : 0), false);
      if (hot <= limit) break;
    }
    hot_is_shared_ = persistent_ && hot <= limit;
    l.hot_size = hot;
    l.cold_size = cold;
  }

  // All of the workspace: the block of addresses, what tasks share, and the memory of a chunk of them.
  void lay_out_workspace() {
    const DeviceShape& n = shape_;
    int64_t total = 0;
    const auto place = [&](int64_t bytes) {
      const int64_t begin = total;
      total += (bytes + 255) / 256 * 256;
      return begin;
    };
    const int64_t size = sizeof(T);
    block_size_ = aligned(int64_t(sizeof(DeviceJob<T>))) + aligned(lists_bytes());
    place(block_size_);
    shared_at_ = place(n.shared_initial ? n.parameter_size * size : 0);
    hypers_at_ = place(n.hyper_values * size);
    gradient_stride_ = aligned(std::max<int64_t>(1, n.learnt_size + n.hyper_size));
    sums_at_ = place(n.sums ? gradient_stride_ * size * (sum_groups(chunk_) + 2) : 0);
    gradients_at_ = place(call.sweep ? chunk_ * gradient_stride_ * size : 0);
    hot_at_ = place(hot_is_shared_ ? 0 : chunk_ * layout_.hot_size * size);
    cold_at_ = place(chunk_ * layout_.cold_size * size);
    total_bytes_ = total;
    tasks_ = call.tasks;
  }

  void make_constants() {
    const int64_t parameters = constants_.put(parameters_.data(), parameters_.size());
    parameters_at_ = parameters;
    for (int i = 0; i < 2; ++i)
      if (plans_[i]) plan_at_[i] = put_plan(constants_, *plans_[i], parameters);
    instructions_at_ = constants_.put(schedule_.list.data(), schedule_.list.size());
    links_at_ = constants_.put(call.links.data(), call.links.size());
    for (const HyperLayout& h : hypers_.hypers) {
      strides_at_.push_back(constants_.put(h.stride.data(), h.stride.size()));
      gradients_in_block_at_.push_back(constants_.put(h.gradient.data(), h.gradient.size()));
    }
  }

  int64_t lists_bytes() const {
    const int64_t p = shape_.parameter_count, l = shape_.learnt_count, a = shape_.adapted_count;
    const int64_t h = int64_t(call.hypers.size()),
                  hyper = sizeof(HyperPlan<T>) + 8 + a * (8 + int64_t(sizeof(HyperTensor<T>)));
    return 16 * p + 16 * l + 8 * (a + l + l + a) + h * (hyper + 16) + 16 * 10;
  }

  size_t launch_count() const {
    const size_t chunks = size_t((tasks_ + chunk_ - 1) / chunk_);
    const size_t tasks = persistent_ ? 1 : size_t(schedule_.chunk_begin - schedule_.tasks_begin);
    return schedule_.list.size() - size_t(schedule_.chunk_begin - schedule_.tasks_begin) + chunks * (tasks + 1);
  }

  // The block of this call's addresses, written to the beginning of the workspace.
  void upload_block(Address base, void* stream) {
    AddressBlock block(block_size_, size_t(aligned(int64_t(sizeof(DeviceJob<T>)))), base);
    DeviceJob<T> job{};
    const Address constants = constants_on_device_;
    for (int i = 0; i < 2; ++i)
      if (plans_[i]) job.plans[i] = at<const BatchPlan>(constants + Address(plan_at_[i]));
    job.instructions = at<const Instruction>(constants + Address(instructions_at_));
    job.instruction_count = int32_t(schedule_.list.size());
    static_cast<CallShape&>(job) = shape_;
    job.tasks = call.tasks;
    job.seed = call.seed ? *at<const uint64_t>(call.seed) : 0;
    job.chunk_tasks = std::min(chunk_, call.tasks);
    job.query_has_targets = shape_.query_has_targets, job.has_query = bool(call.query);
    job.sets[0] = examples_of<T>(call.support, program_, call.steps);
    job.sets[1] = examples_of<T>(call.query, program_, call.steps);
    job.links = at<const LinkPlan>(constants + Address(links_at_));
    put_parameters(job, block);
    put_hypers(job, block);
    put_outputs(job, block);
    job.layout = layout_;
    job.hot = hot_is_shared_ ? nullptr : at<T>(base + Address(hot_at_));
    job.cold = at<T>(base + Address(cold_at_));
    block.begin_with(job);
    const std::vector<uint64_t>& words = block.words();
    for (size_t begin = 0; begin < words.size(); begin += kUploadWords) {
      UploadWords part;
      const size_t count = std::min(size_t(kUploadWords), words.size() - begin);
      std::memcpy(part.word, words.data() + begin, count * 8);
      device_kernels<T>().upload(part, int32_t(count), at<uint64_t>(base) + begin, stream);
    }
    device::check_launch();
  }

  // Initial parameters, and vectors of Hessian-vector products.
  void put_parameters(DeviceJob<T>& job, AddressBlock& block) const {
    job.parameters = at<const ParameterPlan>(constants_on_device_ + Address(parameters_at_));
    const auto source = [&](const Tensor& t, size_t stored) {
      return ParameterSource<T>{at<const T>(t.data), t.own ? parameters_[stored].numel() : 0};
    };
    std::vector<ParameterSource<T>> sources(call.parameters.size());
    for (size_t i = 0; i < call.parameters.size(); ++i) {
      const size_t stored = size_t(program_.stored_at(int(i)));
      sources[stored] = source(call.parameters[i], stored);
    }
    job.sources = block.list(sources);
    job.shared_initial = shape_.shared_initial ? at<T>(block.address() + Address(shared_at_)) : nullptr;
    std::vector<ParameterSource<T>> vectors;
    const std::vector<Tensor> v = in_storage_order(call.vectors, shape_.learnt_count);
    for (size_t p = 0; p < v.size(); ++p) vectors.push_back(source(v[p], p));
    job.vectors = block.list(vectors);
  }

  void put_hypers(DeviceJob<T>& job, AddressBlock& block) const {
    const Address constants = constants_on_device_;
    std::vector<HyperPlan<T>> hypers;
    std::vector<HyperTensor<T>> tensors;
    std::vector<T*> tables;
    for (size_t h = 0; h < call.hypers.size(); ++h) {
      const HyperTensors& user = call.hypers[h];
      const HyperLayout& layout = hypers_.hypers[h];
      std::vector<const T*> each(size_t(shape_.adapted_count), nullptr);
      for (size_t a = 0; a < each.size(); ++a) {
        T* values = layout.values[a] < 0 ? nullptr : at<T>(block.address() + Address(hypers_at_)) + layout.values[a];
        each[a] = values;
        tensors.push_back({values ? at<const T>(user.elementwise[a].data) : nullptr, values,
                           user.elementwise_gradient.empty() ? nullptr : at<T>(user.elementwise_gradient[a])});
      }
      hypers.push_back({at<const T>(user.table), block.list(each),
                        at<const int64_t>(constants + Address(strides_at_[h])), layout.wanted, layout.elementwise,
                        layout.table_gradient, at<const int64_t>(constants + Address(gradients_in_block_at_[h]))});
      tables.push_back(at<T>(user.table_gradient));
    }
    job.hypers = block.list(hypers);
    job.hyper_tensors = block.list(tensors);
    job.hyper_table_gradient = block.list(tables);
  }

  // Losses, outputs, adapted parameters and gradients, and the cotangents that these answer.
  void put_outputs(DeviceJob<T>& job, AddressBlock& block) const {
    job.loss_cotangent = at<const T>(call.loss_cotangent);
    job.loss_cotangent_all = T(call.loss_cotangent_all);
    job.logits_cotangent = at<const T>(call.logits_cotangent);
    const auto pointers = [](const std::vector<Address>& addresses) {
      std::vector<T*> made;
      for (Address a : addresses) made.push_back(at<T>(a));
      return made;
    };
    job.adapted_cotangent = block.list(pointers(call.adapted_cotangent));
    job.support_loss = at<T>(call.support_loss), job.task_loss = at<T>(call.task_loss);
    job.loss = at<T>(call.loss), job.logits = at<T>(call.logits);
    job.adapted = block.list(pointers(call.adapted));
    std::vector<T*> own, shared;
    for (const Tensor& gradient : call.gradients) {
      own.push_back(gradient.own ? at<T>(gradient.data) : nullptr);
      shared.push_back(gradient.own ? nullptr : at<T>(gradient.data));
    }
    job.own_gradient = block.list(in_storage_order(own, shape_.learnt_count));
    job.shared_gradient = block.list(in_storage_order(shared, shape_.learnt_count));
    job.gradients = at<T>(block.address() + Address(gradients_at_));
    job.sums = at<T>(block.address() + Address(sums_at_));
    job.carry = job.sums + gradient_stride_;
    job.group_sums = job.carry + gradient_stride_;
    job.gradient_stride = gradient_stride_;
  }

  // A list over learnt parameters, from the order of the description to that of storage.
  template <class V>
  std::vector<V> in_storage_order(const std::vector<V>& list, int count) const {
    std::vector<V> out(static_cast<size_t>(count), V{});
    size_t next = 0;
    for (int i = 0; i < program_.parameter_count() && next < list.size(); ++i)
      if (program_.stored_at(i) < count) out[size_t(program_.stored_at(i))] = list[next++];
    return out;
  }

  // Everything but the block of addresses: the same launches for the same memory.
  void launch(Address base, void* stream) const {
    const DeviceKernels<T>& kernels = device_kernels<T>();
    DeviceJob<T>* job = at<DeviceJob<T>>(base);
    const auto phases = [&](int32_t begin, int32_t end, int64_t tasks) {
      for (int32_t i = begin; i < end; ++i) {
        const Instruction& instruction = schedule_.list[size_t(i)];
        kernels.phase(instruction.phase, job, i, instruction.tiles, tasks, stream);
        device::check_launch();
      }
    };
    phases(0, schedule_.tasks_begin, 1);
    for (int64_t begin = 0; begin < tasks_; begin += chunk_) {
      const int64_t count = std::min(chunk_, tasks_ - begin);
      if (tasks_ > chunk_) kernels.begin_chunk(job, begin, count, stream);
      if (persistent_) {
        kernels.persistent(job, schedule_.tasks_begin, schedule_.chunk_begin, count,
                           hot_is_shared_ ? layout_.hot_size : 0, stream);
        device::check_launch();
      } else {
        phases(schedule_.tasks_begin, schedule_.chunk_begin, count);
      }
      phases(schedule_.chunk_begin, schedule_.finish_begin, 1);
    }
    phases(schedule_.finish_begin, int32_t(schedule_.list.size()), 1);
  }

  struct Recorded {
    int calls = 0;
    std::unique_ptr<device::Graph> graph;
  };

  const std::shared_ptr<const Program> shared_program_;
  const Program& program_;
  const OnDevice on_;
  std::vector<ParameterPlan> parameters_;
  std::shared_ptr<const Program::Plan> plans_[2];
  DeviceShape shape_;
  Schedule schedule_;
  TaskLayout layout_;
  HypersLayout hypers_;
  bool persistent_ = false, hot_is_shared_ = false;
  int64_t tasks_ = 0, chunk_ = 0, tape_stride_ = 0, gradient_stride_ = 0, block_size_ = 0, total_bytes_ = 0;
  int64_t shared_at_ = 0, hypers_at_ = 0, sums_at_ = 0, gradients_at_ = 0, hot_at_ = 0, cold_at_ = 0;
  Blob constants_;
  int64_t plan_at_[2] = {}, parameters_at_ = 0, instructions_at_ = 0, links_at_ = 0;
  std::vector<int64_t> strides_at_, gradients_in_block_at_;  // of each hyper-parameter
  Address constants_on_device_ = 0;
  std::map<Address, Recorded> graphs_;
};

}  // namespace

std::unique_ptr<Session> make_device_session(std::shared_ptr<const Program> program, Call call, bool is_double,
                                             OnDevice on) {
  if (is_double) return std::make_unique<DeviceSession<double>>(std::move(program), std::move(call), on);
  return std::make_unique<DeviceSession<float>>(std::move(program), std::move(call), on);
}

std::string device_obstacle(const Program& program) {
  const auto plan = program.device_plan(2, kDeviceLanes, Scope::kNone, Scope::kNone, false);
  return device_supports(*plan) ? "" : "a layer of it has no CUDA code yet";
}

}  // namespace metafast
