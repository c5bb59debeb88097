#include "python/links.h"

#include <algorithm>
#include <stdexcept>

#include "rules/list.h"

namespace metafast {
namespace {

using namespace METAFAST_ISA;

LinkKind kind(const std::string& name) {
  for (const LinkInfo& info : kLinks)
    if (name == info.name && !info.scales) return info.kind;
  throw std::invalid_argument("no link of elements is called " + name);
}

template <class Link>
LinkSettings<double, Link> settings(int flags, int k, const std::vector<double>& hypers) {
  LinkSettings<double, Link> s{};
  if (hypers.size() != size_t(Link::kHypers)) throw std::invalid_argument("another number of hyper-parameters");
  std::copy(hypers.begin(), hypers.end(), s.hyper);
  s.flags = flags, s.k = k;
  Link::derive(s);
  return s;
}

template <class Link>
LinkElement<double, Link> from_list(const std::vector<double>& list) {
  if (list.size() != size_t(3 + Link::kStates)) throw std::invalid_argument("another number of states");
  LinkElement<double, Link> e{};
  e.theta = list[0], e.g = list[1], e.start = list[2];
  std::copy(list.begin() + 3, list.end(), e.state);
  return e;
}

template <class Link>
std::vector<double> to_list(const LinkElement<double, Link>& e) {
  std::vector<double> list{e.theta, e.g, e.start};
  list.insert(list.end(), e.state, e.state + Link::kStates);
  return list;
}

}  // namespace

std::vector<double> link_step(const std::string& name, int flags, int k, const std::vector<double>& hypers,
                              const std::vector<double>& element) {
  std::vector<double> out;
  with_link(kind(name), [&](auto is) {
    using Link = typename decltype(is)::Type;
    if constexpr (!Link::kScales) {
      auto e = from_list<Link>(element);
      Link::step(settings<Link>(flags, k, hypers), e);
      out = to_list<Link>(e);
    }
  });
  return out;
}

std::vector<double> link_bars(const std::string& name, int flags, int k, const std::vector<double>& hypers,
                              const std::vector<double>& element, const std::vector<double>& bars, bool by_duals) {
  std::vector<double> out;
  with_link(kind(name), [&](auto is) {
    using Link = typename decltype(is)::Type;
    if constexpr (!Link::kScales) {
      const auto s = settings<Link>(flags, k, hypers);
      const auto before = from_list<Link>(element);
      auto after = before, bar = from_list<Link>(bars);
      Link::step(s, after);
      std::vector<double> hyper_bar(hypers.size() + 1, 0.0);
      if (by_duals)
        adjoint_by_duals<Link>(s, before, bar, hyper_bar.data());
      else
        link_adjoint<Link>(s, before, after.state, bar, hyper_bar.data());
      out = to_list<Link>(bar);
      out.insert(out.end(), hyper_bar.begin(), hyper_bar.end() - 1);
    }
  });
  return out;
}

}  // namespace metafast
