#include "python/repeat.h"

#include <exception>
#include <stdexcept>

#include "python/tensors.h"

namespace py = pybind11;

namespace metafast {

bool requires_grad(py::handle tensor) {
  static PyObject* const name = PyUnicode_InternFromString("requires_grad");
  return owned(PyObject_GetAttr(tensor.ptr(), name)).ptr() == Py_True;
}

Contents::Contents(const std::vector<py::dict>& dictionaries, std::vector<py::handle> tensors)
    : tensors_(std::move(tensors)), metadata_(metadata(tensors_)) {
  for (py::handle tensor : tensors_) requires_grad_.push_back(requires_grad(tensor));
  for (const py::dict& live : dictionaries) {
    for (auto [key, value] : live) items_.emplace_back(key.ptr(), value.ptr());
    dictionaries_.push_back({live.ptr(), items_.size()});
  }
}

bool Contents::hold() const {
  size_t i = 0;
  for (const Dictionary& d : dictionaries_) {
    if (PyDict_GET_SIZE(d.live) != Py_ssize_t(d.end - i)) return false;
    Py_ssize_t at = 0;
    for (PyObject *key, *value; i < d.end && PyDict_Next(d.live, &at, &key, &value); ++i)
      if (items_[i] != std::pair(key, value)) return false;
  }
  if (!metadata_ || metadata(tensors_) != metadata_) return false;
  for (i = 0; i < tensors_.size(); ++i)
    if (requires_grad(tensors_[i]) != requires_grad_[i]) return false;
  return true;
}

RepeatedCall::RepeatedCall(Prepared& prepared, std::string metadata, std::vector<int> places,
                           std::vector<py::handle> own, std::vector<Check> checks, const Contents& contents,
                           py::handle is_unchanged, py::handle threads, py::handle workspace)
    : prepared_(prepared),
      metadata_(std::move(metadata)),
      places_(std::move(places)),
      own_(std::move(own)),
      checks_(std::move(checks)),
      contents_(contents),
      is_unchanged_(is_unchanged),
      threads_(threads),
      workspace_(workspace),
      thread_count_(threads_()),
      own_metadata_(metadata_of_own().value_or("")),
      thread_(PyThread_get_thread_ident()) {
  if (own_.size() != places_.size() || own_.size() != prepared_.inputs.size())
    throw std::invalid_argument("native call: inconsistent number of tensors");
}

std::optional<std::string> RepeatedCall::metadata_of_own() const { return metafast::metadata(own_); }

bool RepeatedCall::is_like(const std::vector<py::handle>& tensors) const {
  if (PyThread_get_thread_ident() != thread_ || metadata_of_own() != own_metadata_) return false;
  if (metafast::metadata(tensors) != metadata_) return false;
  for (const auto& [place, classes, check] : checks_)
    if (!classes || !holds_classes(tensors.at(place), classes)) check(tensors.at(place));
  return true;
}

bool RepeatedCall::fits(const py::tuple& tensors) const {
  return is_like({tensors.begin(), tensors.end()}) && (contents_.hold() || is_unchanged_().cast<bool>()) &&
         threads_().equal(thread_count_);
}

py::object RepeatedCall::run(const py::tuple& tensors) const {
  const std::vector<py::handle> given(tensors.begin(), tensors.end());
  if (!is_like(given)) return py::none();
  std::vector<py::handle> inputs;
  for (size_t i = 0; i < places_.size(); ++i) inputs.push_back(places_[i] < 0 ? own_[i] : given.at(size_t(places_[i])));
  const py::object workspace = workspace_(prepared_.session->bytes());
  // So far nothing can be read where it is not. Whether it is this model's call is found out while others are at work.
  bool same = false;
  std::exception_ptr failed;
  py::list made = prepared_.run(inputs, workspace.attr("address").cast<Address>(), 0, [&](const py::list&) {
    try {
      same = contents_.hold();
    } catch (...) {
      failed = std::current_exception();
    }
  });
  if (failed) std::rethrow_exception(failed);
  if ((!same && !is_unchanged_().cast<bool>()) || !threads_().equal(thread_count_)) return py::none();
  return std::move(made);
}

}  // namespace metafast
