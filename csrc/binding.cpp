// The Python module metafast._native: the only file that knows pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "call.h"
#include "cuda/session.h"
#include "dispatch.h"
#ifdef METAFAST_EMULATED
#include "emulated/faults.h"
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

std::unique_ptr<Program> make_program(
    std::vector<Shape> values, const std::vector<std::pair<Shape, std::string>>& parameters,
    const std::vector<std::tuple<std::string, std::vector<int>, int, std::vector<int>, std::map<std::string, double>>>&
        steps,
    const std::string& loss, const std::map<std::string, double>& loss_attributes) {
  std::vector<std::pair<Shape, Role>> roles;
  for (const auto& p : parameters) roles.emplace_back(p.first, role(p.second));
  std::vector<StepDescription> descriptions;
  for (const auto& [op, inputs, output, indices, attributes] : steps)
    descriptions.push_back({op, inputs, output, indices, attributes});
  return std::make_unique<Program>(std::move(values), roles, descriptions, loss, loss_attributes);
}

// (x, y, w, dx, dy, dw, examples, y_is_class, stepwise)
using SetTuple = std::tuple<Address, Address, Address, Address, Address, Address, int64_t, bool, bool>;

std::optional<SetAddresses> set(const std::optional<SetTuple>& t) {
  if (!t) return std::nullopt;
  const auto& [x, y, w, dx, dy, dw, examples, y_is_class, stepwise] = *t;
  return SetAddresses{x, y, w, dx, dy, dw, examples, y_is_class, stepwise};
}

using Pairs = std::vector<std::pair<Address, int64_t>>;
using Addresses = std::vector<Address>;

// (style, device, stream, tasks at a time, constants, bytes of constants)
using DeviceTuple = std::tuple<int, int, Address, int64_t, Address, int64_t>;

py::object call(const Program& program, bool is_double, int64_t tasks, int64_t steps, int threads, bool first_order,
                bool sweep, int memory, bool hessian_vector, const std::optional<SetTuple>& support,
                const std::optional<SetTuple>& query, Pairs parameters, Pairs vectors, Address rate_table,
                Pairs elementwise, Address rate_table_gradient, Addresses elementwise_gradient,
                double loss_cotangent_all, Address loss_cotangent, Address logits_cotangent,
                Addresses adapted_cotangent, Address support_loss, Address task_loss, Address loss, Address logits,
                Addresses adapted, std::vector<std::pair<Address, bool>> gradients, Address workspace,
                int64_t workspace_bytes, const std::optional<DeviceTuple>& device) {
  const Call c{first_order,
               sweep,
               hessian_vector,
               Memory(memory),
               tasks,
               steps,
               threads,
               set(support),
               set(query),
               std::move(parameters),
               std::move(vectors),
               rate_table,
               std::move(elementwise),
               rate_table_gradient,
               std::move(elementwise_gradient),
               loss_cotangent_all,
               loss_cotangent,
               logits_cotangent,
               std::move(adapted_cotangent),
               support_loss,
               task_loss,
               loss,
               logits,
               std::move(adapted),
               std::move(gradients)};
  if (device) {
    const auto& [style, index, stream, chunk, constants, constants_bytes] = *device;
    const DeviceCall on{Style(style), index, reinterpret_cast<void*>(stream), chunk, constants, constants_bytes};
    DeviceNeeds needs;
    {
      py::gil_scoped_release release;
      needs = is_double ? run_on_device<double>(program, c, on, workspace, workspace_bytes)
                        : run_on_device<float>(program, c, on, workspace, workspace_bytes);
    }
    return py::make_tuple(needs.workspace, needs.constants);
  }
  int64_t needed;
  {
    py::gil_scoped_release release;
    needed = is_double ? run<double>(program, c, workspace, workspace_bytes)
                       : run<float>(program, c, workspace, workspace_bytes);
  }
  return py::int_(needed);
}

// Evaluates an elementary function of csrc/scalar.h on an array in place, for tests of its stated error.
void elementary(const std::string& name, bool is_double, Address x, Address y, int64_t n) {
  const char* names[] = {"exp", "expm1", "tanh", "sigmoid", "log1p01"};
  for (int i = 0; i < 5; ++i)
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

}  // namespace

PYBIND11_MODULE(METAFAST_MODULE, m) {
  m.doc() = "Native engine of metafast. Private: use the functions of metafast.ops.";
  py::class_<Program>(m, "Program", py::module_local())
      .def(py::init(&make_program), py::arg("values"), py::arg("parameters"), py::arg("steps"), py::arg("loss"),
           py::arg("loss_attributes"));
  m.def("call", &call, py::arg("program"), py::arg("is_double"), py::arg("tasks"), py::arg("steps"), py::arg("threads"),
        py::arg("first_order"), py::arg("sweep"), py::arg("memory"), py::arg("hessian_vector"), py::arg("support"),
        py::arg("query"), py::arg("parameters"), py::arg("vectors"), py::arg("rate_table"), py::arg("elementwise"),
        py::arg("rate_table_gradient"), py::arg("elementwise_gradient"), py::arg("loss_cotangent_all"),
        py::arg("loss_cotangent"), py::arg("logits_cotangent"), py::arg("adapted_cotangent"), py::arg("support_loss"),
        py::arg("task_loss"), py::arg("loss"), py::arg("logits"), py::arg("adapted"), py::arg("gradients"),
        py::arg("workspace"), py::arg("workspace_bytes"), py::arg("device") = py::none());
  m.def("device_obstacle", &device_obstacle, py::arg("program"));
  m.def("elementary", &elementary, py::arg("name"), py::arg("is_double"), py::arg("x"), py::arg("y"), py::arg("n"));
  m.def("build_info", &build_info);
#ifdef METAFAST_EMULATED
  bind_faults(m);
#endif
}
