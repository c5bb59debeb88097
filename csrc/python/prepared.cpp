#include "python/prepared.h"

#include <memory>
#include <stdexcept>

#include "python/tensors.h"

namespace py = pybind11;

namespace metafast {

py::list Prepared::run(const std::vector<py::handle>& given, Address workspace, Address stream,
                       const std::function<void(const py::list&)>& overlapped) {
  if (given.size() != inputs.size()) throw std::invalid_argument("native call: inconsistent number of tensors");
  std::vector<py::object> copies;  // of what is not contiguous, until the call is over
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (given[i].is_none()) throw std::invalid_argument("native call: a tensor is absent");
    *inputs[i] = address(given[i], copies);
  }
  py::list written(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto& [place, like, zeros] = outputs[i];
    py::object made = new_like(like, zeros, place);
    if (!made) {
      made = owned(PyObject_CallOneArg((zeros ? zeros_like : empty_like).ptr(), like.ptr()));
      *place = address(made, copies);
    }
    PyList_SET_ITEM(written.ptr(), Py_ssize_t(i), made.release().ptr());
  }
  std::unique_ptr<py::gil_scoped_release> others_may_run;
  session->run(workspace, reinterpret_cast<void*>(stream), [&] {
    if (overlapped) overlapped(written);
    others_may_run = std::make_unique<py::gil_scoped_release>();
  });
  others_may_run.reset();
  return written;
}

}  // namespace metafast
