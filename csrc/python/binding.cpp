// The Python module metafast._native. Only files of csrc/python know Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "core/philox.h"
#include "cpu/dispatch.h"
#include "cpu/session.h"
#include "cpu/threads/wrap_around.h"
#include "cuda/session.h"
#include "engine/call.h"
#include "formulas/losses/list.h"
#include "program/nodes.h"
#include "python/links.h"
#include "python/optimisers.h"
#include "python/prepared.h"
#include "python/repeat.h"
#include "python/tensors.h"
#ifdef METAFAST_EMULATED
#include "cuda/emulated/faults.h"
#endif

#ifndef METAFAST_CUDA_ARCHS
#define METAFAST_CUDA_ARCHS ""
#endif
#ifndef METAFAST_MODULE
#define METAFAST_MODULE _native
#endif
#ifndef METAFAST_VERSION
#define METAFAST_VERSION "unknown"
#endif

namespace py = pybind11;
using namespace metafast;

namespace {

Role role(const std::string& name) {
  if (name == "adapted") return Role::kAdapted;
  if (name == "meta") return Role::kMeta;
  if (name == "constant") return Role::kConstant;
  throw std::invalid_argument("invalid Program: unknown role " + name);
}

std::shared_ptr<Program> make_program(
    std::vector<Shape> values, const std::vector<std::pair<Shape, std::string>>& parameters,
    const std::vector<std::tuple<std::string, std::vector<int>, int, std::vector<int>, std::map<std::string, double>,
                                 std::vector<int32_t>, std::vector<double>>>& nodes,
    const std::string& loss, const std::map<std::string, double>& loss_attributes, const std::string& reduction,
    bool loss_sums, std::vector<double> class_weights) {
  std::vector<std::pair<Shape, Role>> roles;
  for (const auto& p : parameters) roles.emplace_back(p.first, role(p.second));
  std::vector<NodeDescription> descriptions;
  for (const auto& [op, inputs, output, indices, attributes, table, factors] : nodes)
    descriptions.push_back({op, inputs, output, indices, attributes, table, factors});
  return std::make_shared<Program>(std::move(values), roles, descriptions, loss, loss_attributes, reduction, loss_sums,
                                   std::move(class_weights));
}

// (examples, y_is_class, stepwise)
using SetTuple = std::tuple<int64_t, bool, bool>;

std::optional<SetTensors> set(const std::optional<SetTuple>& t) {
  if (!t) return std::nullopt;
  const auto& [examples, y_is_class, stepwise] = *t;
  return SetTensors{examples, y_is_class, stepwise, 0, 0, 0, 0, 0, 0};
}

std::vector<Tensor> list(const std::vector<bool>& own) {
  std::vector<Tensor> tensors;
  for (bool differs : own) tensors.push_back({0, differs});
  return tensors;
}

// (style, index of the device, tasks at a time or 0, whether TF32 is allowed in linear layers, in convolutions)
using DeviceTuple = std::tuple<int, int, int64_t, bool, bool>;

// (name, what it knows the meaning of)
Estimator estimator(const std::pair<std::string, int>& description) {
  for (const EstimatorInfo& info : kEstimators)
    if (description.first == info.name) return {info.kind, description.second};
  throw std::invalid_argument("native call: unknown estimator " + description.first);
}

// (name, flags) of each link; their hyper-parameters and states are numbered one after the other.
std::vector<LinkPlan> rule(const std::vector<std::pair<std::string, int>>& description) {
  std::vector<LinkPlan> links;
  int32_t hyper = 0, state = 0;
  for (const auto& [name, flags] : description) {
    const auto info = std::find_if(std::begin(kLinks), std::end(kLinks),
                                   [&, &link = name](const LinkInfo& candidate) { return link == candidate.name; });
    if (info == std::end(kLinks)) throw std::invalid_argument("native call: unknown rule " + name);
    links.push_back({info->kind, flags, hyper, state});
    hyper += info->hypers, state += info->states;
  }
  return links;
}

// Gradients of data are added up, example by example; all else is written whole.
bool holds_zeros(const std::string& slot) {
  return slot.rfind("gradient.support.", 0) == 0 || slot.rfind("gradient.query.", 0) == 0;
}

std::unique_ptr<Prepared> prepare(std::shared_ptr<const Program> program, bool is_double, int64_t tasks, int64_t steps,
                                  int threads, const std::pair<std::string, int>& estimator_description,
                                  const std::vector<std::pair<std::string, int>>& rule_description, bool sweep,
                                  std::pair<int, int> memory, int packing, int sharing, double loss_cotangent,
                                  const std::optional<SetTuple>& support, const std::optional<SetTuple>& query,
                                  const std::vector<bool>& parameters, const std::vector<std::vector<bool>>& hypers,
                                  const std::vector<bool>& gradients, const std::vector<Slot>& inputs,
                                  const std::vector<std::pair<Slot, py::object>>& outputs, py::object empty_like,
                                  py::object zeros_like, const std::optional<DeviceTuple>& device) {
  Call call{};
  call.estimator = estimator(estimator_description), call.sweep = sweep;
  call.links = rule(rule_description);
  call.memory = Memory(memory.first), call.checkpoint_every = memory.second;
  call.packing = Packing(packing), call.sharing = Choice(sharing);
  call.tasks = tasks, call.steps = steps, call.threads = threads;
  call.loss_cotangent_all = loss_cotangent;
  call.support = set(support), call.query = set(query);
  call.parameters = list(parameters), call.gradients = list(gradients);
  for (const auto& elementwise : hypers) call.hypers.push_back({0, list(elementwise), 0, {}});
  const auto place = [known = program](Call& of, const Slot& slot) -> Address& {
    const auto& [name, i, j] = slot;
    return of.slot(name, *known, i, j);
  };
  for (const Slot& slot : inputs) place(call, slot) = 1;
  for (const auto& output : outputs) place(call, output.first) = 1;
  auto made = std::make_unique<Prepared>();
  if (device) {
    const auto& [style, index, chunk, linear, convolution] = *device;
    made->session = make_device_session(std::move(program), std::move(call), is_double,
                                        {Style(style), index, chunk, {linear, convolution}});
  } else {
    made->session = make_cpu_session(std::move(program), std::move(call), is_double);
  }
  for (const Slot& slot : inputs) made->inputs.push_back(&place(made->session->call, slot));
  for (const auto& [slot, like] : outputs)
    made->outputs.push_back({&place(made->session->call, slot), like, holds_zeros(std::get<0>(slot))});
  made->empty_like = std::move(empty_like), made->zeros_like = std::move(zeros_like);
  return made;
}

// Evaluates an elementary function of csrc/core/scalar.h on an array in place, for tests of its stated error.
void elementary(const std::string& name, bool is_double, Address x, Address y, int64_t n) {
  const char* names[] = {"exp", "expm1", "tanh", "sigmoid", "log1p01", "log", "log1p", "sin", "cos", "erf"};
  for (int i = 0; i < 10; ++i)
    if (name == names[i]) {
      if (is_double)
        kernels<double>().elementary(i, reinterpret_cast<const double*>(x), reinterpret_cast<double*>(y), n);
      else
        kernels<float>().elementary(i, reinterpret_cast<const float*>(x), reinterpret_cast<float*>(y), n);
      return;
    }
  throw std::invalid_argument("unknown elementary function " + name);
}

py::dict build_info() {
  py::dict info;
  info["version"] = METAFAST_VERSION;
  info["isa"] = selected_isa();
  info["isas"] = compiled_isas();
  info["cuda"] = std::string(METAFAST_CUDA_ARCHS) != "";
  info["cuda_archs"] = METAFAST_CUDA_ARCHS;
  info["compiler"] = __VERSION__;
  return info;
}

// The names of all links, and of each its numbers of states and hyper-parameters, and whether it scales.
std::map<std::string, std::tuple<int, int, bool>> links() {
  std::map<std::string, std::tuple<int, int, bool>> all;
  for (const LinkInfo& info : kLinks) all[info.name] = {info.states, info.hypers, info.scales};
  return all;
}

// The names of all primitives, and whether each runs on packs of tasks.
std::map<std::string, bool> primitives() {
  std::map<std::string, bool> packable;
  for (const PrimitiveInfo& info : kPrimitives) packable[info.name] = has(info.op, kPackable);
  return packable;
}

// The names of all losses, and of each its settings with their defaults, whether targets may be classes, and numbers.
std::map<std::string, std::tuple<std::map<std::string, double>, bool, bool>> losses() {
  std::map<std::string, std::tuple<std::map<std::string, double>, bool, bool>> all;
  for (const LossInfo& info : kLosses) {
    std::map<std::string, double> settings;
    for (const Attribute& setting : info.attributes)
      if (setting.name) settings[setting.name] = setting.otherwise;
    all[info.name] = {settings, has(info.kind, kTakesClasses), has(info.kind, kTakesReals)};
  }
  return all;
}

// For tests: (run, begin, end, after, migrated) of each thread's slices.
auto wrap_around_of_threads(int threads, int64_t runs, const std::vector<double>& stages, double rest) {
  const Slices found = wrap_around(threads, runs, stages, rest);
  std::vector<std::vector<std::tuple<int64_t, int, int, int64_t, int64_t>>> lists;
  for (size_t thread = 0; thread + 1 < found.first.size(); ++thread) {
    lists.emplace_back();
    for (int64_t i = found.first[thread]; i < found.first[thread + 1]; ++i) {
      const Slice& slice = found.all[size_t(i)];
      lists.back().emplace_back(slice.run, slice.begin, slice.end, slice.after, slice.migrated);
    }
  }
  return lists;
}

}  // namespace

PYBIND11_MODULE(METAFAST_MODULE, m) {
  m.doc() = "Native engine of metafast. Private: use the functions of metafast.engine.ops.";
  py::class_<Program, std::shared_ptr<Program>>(m, "Program", py::module_local())
      .def(py::init(&make_program), py::arg("values"), py::arg("parameters"), py::arg("nodes"), py::arg("loss"),
           py::arg("loss_attributes"), py::arg("reduction"), py::arg("loss_sums") = false,
           py::arg("class_weights") = std::vector<double>());
  py::class_<Prepared>(m, "Session", py::module_local())
      .def(py::init(&prepare), py::arg("program"), py::arg("is_double"), py::arg("tasks"), py::arg("steps"),
           py::arg("threads"), py::arg("estimator"), py::arg("rule"), py::arg("sweep"), py::arg("memory"),
           py::arg("packing"), py::arg("sharing"), py::arg("loss_cotangent"), py::arg("support"), py::arg("query"),
           py::arg("parameters"), py::arg("hypers"), py::arg("gradients"), py::arg("inputs"), py::arg("outputs"),
           py::arg("empty_like"), py::arg("zeros_like"), py::arg("device"))
      .def_property_readonly("bytes", [](const Prepared& p) { return p.session->bytes(); })
      .def_property_readonly("tasks_at_once", [](const Prepared& p) { return p.session->tasks_at_once(); })
      .def_property_readonly("migrated", [](const Prepared& p) { return p.session->migrated(); })
      .def_property_readonly("constants_bytes", [](const Prepared& p) { return p.session->constants_bytes(); })
      .def(
          "upload",
          [](Prepared& p, Address constants, Address stream) {
            p.session->upload(constants, reinterpret_cast<void*>(stream));
          },
          py::arg("constants"), py::arg("stream"))
      .def(
          "run",
          [](Prepared& p, const std::vector<py::handle>& inputs, Address workspace, Address stream) {
            return p.run(inputs, workspace, stream);
          },
          py::arg("inputs"), py::arg("workspace"), py::arg("stream") = 0);
  py::class_<Contents>(m, "Contents", py::module_local())
      .def(py::init<const std::vector<py::dict>&, std::vector<py::handle>>(), py::arg("dictionaries"),
           py::arg("tensors"))
      .def("hold", &Contents::hold);
  py::class_<RepeatedCall>(m, "RepeatedCall", py::module_local())
      .def(py::init<Prepared&, std::string, std::vector<int>, std::vector<py::handle>, std::vector<RepeatedCall::Check>,
                    const Contents&, py::handle, py::handle, py::handle>(),
           py::arg("session"), py::arg("metadata"), py::arg("places"), py::arg("own"), py::arg("checks"),
           py::arg("contents"), py::arg("is_unchanged"), py::arg("threads"), py::arg("workspace"))
      .def("fits", &RepeatedCall::fits, py::arg("tensors"))
      .def("run", &RepeatedCall::run, py::arg("tensors"));
  m.def("primitives", &primitives);
  m.def("losses", &losses);
  m.def("links", &links);
  m.def("link_step", &link_step, py::arg("name"), py::arg("flags"), py::arg("k"), py::arg("hypers"),
        py::arg("element"));
  m.def("link_bars", &link_bars, py::arg("name"), py::arg("flags"), py::arg("k"), py::arg("hypers"), py::arg("element"),
        py::arg("bars"), py::arg("by_duals"));
  m.def("wrap_around", &wrap_around_of_threads, py::arg("threads"), py::arg("runs"), py::arg("stages"),
        py::arg("rest"));
  m.def(
      "metadata",
      [](const py::tuple& tensors) -> py::object {
        const auto found = metadata({tensors.begin(), tensors.end()});
        return found ? py::object(py::bytes(*found)) : py::none();
      },
      py::arg("tensors"));
  m.def("holds_classes", &holds_classes, py::arg("tensor"), py::arg("classes"));
  m.def("rows_add_up", &rows_add_up, py::arg("tensor"), py::arg("share"));
  m.def("adam_step", &adam_step, py::arg("groups"), py::arg("state"), py::arg("threads"));
  m.def("sgd_step", &sgd_step, py::arg("groups"), py::arg("state"), py::arg("threads"));
  m.def("device_obstacle", &device_obstacle, py::arg("program"));
  m.def("elementary", &elementary, py::arg("name"), py::arg("is_double"), py::arg("x"), py::arg("y"), py::arg("n"));
  m.def(
      "philox",
      [](const std::array<uint32_t, 4>& counter, uint64_t key) {
        const METAFAST_ISA::Philox drawn(counter[0], counter[1], counter[2], counter[3], key);
        return std::vector<uint32_t>(drawn.word, drawn.word + 4);
      },
      py::arg("counter"), py::arg("key"));
  m.def("build_info", &build_info);
#ifdef METAFAST_EMULATED
  bind_faults(m);
#endif
}
