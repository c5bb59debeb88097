// What metafast/planning/repeat.py asks at every call, of many small objects that the arithmetic has driven out of the caches: in Python
// this took a twelfth of a Hessian-vector product of two milliseconds, and more than the arithmetic of a very small meta-gradient.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <tuple>
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

// A call that a session has served, for other tensors of the same kind, in the thread that makes this. Borrows as Contents do.
class RepeatedCall {
 public:
  // (which tensor, number of classes, what to call with it); with classes, called for labels alone that do not look like
  // 0 .. classes - 1.
  using Check = std::tuple<size_t, int64_t, pybind11::handle>;
  // `metadata`: of the tensors that each call brings; see python/tensors.h. `places`: where among these each of the session's
  // inputs is, or -1 for one that stays `own`. A call comes to the same if `contents` hold or else is_unchanged() is true, and
  // threads() is what it was. workspace(bytes).address is where to work.
  RepeatedCall(Prepared& prepared, std::string metadata, std::vector<int> places, std::vector<pybind11::handle> own,
               std::vector<Check> checks, const Contents& contents, pybind11::handle is_unchanged,
               pybind11::handle threads, pybind11::handle workspace);
  // Whether a call with these tensors would come to the same. Throws what a check does.
  bool fits(const pybind11::tuple& tensors) const;
  // What the session writes, or None where the call might come to something else.
  pybind11::object run(const pybind11::tuple& tensors) const;

 private:
  bool is_like(const std::vector<pybind11::handle>& tensors) const;
  std::optional<std::string> metadata_of_own() const;

  Prepared& prepared_;
  std::string metadata_;
  std::vector<int> places_;
  std::vector<pybind11::handle> own_;
  std::vector<Check> checks_;
  const Contents& contents_;
  pybind11::handle is_unchanged_, threads_, workspace_;
  pybind11::object thread_count_;
  std::string own_metadata_;
  unsigned long thread_;
};

}  // namespace metafast
