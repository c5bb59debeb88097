#include "python/repeat.h"

#include <exception>
#include <stdexcept>

#include "python/tensors.h"

namespace py = pybind11;

namespace metafast {

namespace {

// Appends the values of a dictionary with these keys, in this order; false where it is no such dictionary.
bool values(py::handle dictionary, const py::tuple& names, std::vector<py::object>& found) {
  if (!PyDict_CheckExact(dictionary.ptr()) || size_t(PyDict_GET_SIZE(dictionary.ptr())) != names.size()) return false;
  Py_ssize_t at = 0;
  PyObject *key, *value;
  for (size_t i = 0; PyDict_Next(dictionary.ptr(), &at, &key, &value); ++i) {
    PyObject* const name = PyTuple_GET_ITEM(names.ptr(), Py_ssize_t(i));
    if (key != name && !(PyUnicode_CheckExact(key) && PyUnicode_Compare(key, name) == 0)) return false;
    found.push_back(py::reinterpret_borrow<py::object>(value));
  }
  return true;
}

// Appends x, y and weights, or None.
bool values(py::handle batch, std::vector<py::object>& found) {
  if (!PyTuple_Check(batch.ptr()) && !PyList_Check(batch.ptr())) return false;
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(batch.ptr());
  if (size < 2 || size > 3) return false;
  for (Py_ssize_t i = 0; i < 3; ++i)
    found.push_back(py::reinterpret_borrow<py::object>(i < size ? PySequence_Fast_GET_ITEM(batch.ptr(), i) : Py_None));
  return true;
}

}  // namespace

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

RepeatedHvp::RepeatedHvp(py::object session, const py::tuple& names, std::string metadata, std::vector<int> places,
                         std::vector<py::object> own, std::vector<std::pair<py::str, size_t>> written, py::object check,
                         int64_t classes, py::object check_weights, const Contents& contents, py::object is_unchanged,
                         py::object threads, py::object workspace)
    : session_(std::move(session)),
      prepared_(session_.cast<Prepared&>()),
      names_{names[0], names[1]},
      metadata_(std::move(metadata)),
      places_(std::move(places)),
      own_(std::move(own)),
      written_(std::move(written)),
      check_(std::move(check)),
      classes_(classes),
      check_weights_(std::move(check_weights)),
      contents_(contents),
      is_unchanged_(std::move(is_unchanged)),
      threads_(std::move(threads)),
      workspace_(std::move(workspace)),
      thread_count_(threads_()),
      own_metadata_(metadata_of_own().value_or("")),
      thread_(PyThread_get_thread_ident()) {
  const int tensors = int(names_[0].size() + names_[1].size()) + 3;
  for (int place : places_)
    if (place >= tensors) throw std::invalid_argument("native product: no such tensor");
  for (const auto& [name, place] : written_)
    if (place >= prepared_.outputs.size()) throw std::invalid_argument("native product: no such output");
  if (own_.size() != places_.size()) throw std::invalid_argument("native product: inconsistent number of tensors");
}

std::optional<std::string> RepeatedHvp::metadata_of_own() const { return metadata({own_.begin(), own_.end()}); }

py::object RepeatedHvp::run(py::handle params, py::handle batch, py::handle v) {
  if (PyThread_get_thread_ident() != thread_ || metadata_of_own() != own_metadata_) return py::none();
  std::vector<py::object> held;  // for the dictionaries may lose them while the interpreter is free
  if (!values(params, names_[0], held) || !values(v, names_[1], held) || !values(batch, held)) return py::none();
  const std::vector<py::handle> tensors(held.begin(), held.end());
  if (metadata(tensors) != metadata_) return py::none();
  const py::handle y = tensors[tensors.size() - 2];
  if (!check_.is_none() && !holds_classes(y, classes_)) check_(y);
  if (!check_weights_.is_none()) check_weights_(tensors.back());
  std::vector<py::handle> inputs;
  for (size_t i = 0; i < places_.size(); ++i) inputs.push_back(places_[i] < 0 ? own_[i] : tensors[size_t(places_[i])]);
  const py::object workspace = workspace_(prepared_.session->bytes());
  // So far nothing can be read where it is not. Whether it is this model's product is found out while others are at work.
  bool same = false;
  py::dict results;
  std::exception_ptr failed;
  prepared_.run(inputs, workspace.attr("address").cast<Address>(), 0, [&](const py::list& made) {
    try {
      same = contents_.hold();
      for (const auto& [name, place] : written_) results[name] = made[place];
    } catch (...) {
      failed = std::current_exception();
    }
  });
  if (failed) std::rethrow_exception(failed);
  if ((!same && !is_unchanged_().cast<bool>()) || !threads_().equal(thread_count_)) return py::none();
  return std::move(results);
}

}  // namespace metafast
