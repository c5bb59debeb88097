// What metafast/planning/repeat.py asks at every call, of many small objects that the arithmetic has driven out of the caches: in Python
// this took a twelfth of a Hessian-vector product of two milliseconds.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "python/prepared.h"

namespace metafast {

// What dictionaries held and what some tensors were like when this was made. All of it is borrowed: whoever makes this keeps
// it alive, in Python, whose garbage collector would not see a circle through here.
class Contents {
 public:
  Contents(const std::vector<pybind11::dict>& dictionaries, std::vector<pybind11::handle> tensors);
  // Do the dictionaries certainly hold the very same objects, in the same order, and have the tensors the same metadata
  // (python/tensors.h) and requires_grad? Runs no Python code.
  bool hold() const;

 private:
  struct Dictionary {
    PyObject* live;
    size_t end;  // of its items
  };
  std::vector<Dictionary> dictionaries_;
  std::vector<std::pair<PyObject*, PyObject*>> items_;
  std::vector<pybind11::handle> tensors_;
  std::optional<std::string> metadata_;
  std::vector<bool> requires_grad_;
};

// A Hessian-vector product of dictionaries of tensors and a batch, for others of the same kind, in the thread that makes this.
class RepeatedHvp {
 public:
  // `metadata`: of the tensors of both dictionaries and the batch; see python/tensors.h. `places`: where among these each of the call's
  // inputs is, or -1 for one that stays `own`. `written`: names and places of the results. `check`: None, or called with labels
  // that do not look like 0 .. classes - 1. `check_weights`: None, or called with the batch's weights. The product is only
  // worth something if `contents` hold or else `is_unchanged()` is true, and threads() what it was. workspace(bytes).address is where
  // to work.
  RepeatedHvp(pybind11::object session, const pybind11::tuple& names, std::string metadata, std::vector<int> places,
              std::vector<pybind11::object> own, std::vector<std::pair<pybind11::str, size_t>> written,
              pybind11::object check, int64_t classes, pybind11::object check_weights, const Contents& contents,
              pybind11::object holds, pybind11::object threads, pybind11::object workspace);
  // The results by name, or None where these are not of the same kind.
  pybind11::object run(pybind11::handle params, pybind11::handle batch, pybind11::handle v);

 private:
  std::optional<std::string> metadata_of_own() const;

  pybind11::object session_;
  Prepared& prepared_;
  pybind11::tuple names_[2];
  std::string metadata_;
  std::vector<int> places_;
  std::vector<pybind11::object> own_;
  std::vector<std::pair<pybind11::str, size_t>> written_;
  pybind11::object check_;
  int64_t classes_;
  pybind11::object check_weights_;
  const Contents& contents_;
  pybind11::object is_unchanged_, threads_, workspace_;
  pybind11::object thread_count_;
  std::string own_metadata_;
  unsigned long thread_;
};

}  // namespace metafast
