#include "lcomp/pipeline/method.h"

#include <fmt/format.h>

#include "lcomp/core/error.h"
#include "lcomp/core/nearest.h"

namespace lcomp::pipeline {

void MethodTable::add(MethodInfo method) {
  if (lookup(method.name) != nullptr) {
    throw InvalidArgument("MethodTable::add",
                          fmt::format("method names must differ; \"{}\" is taken", method.name));
  }
  methods_.push_back(std::move(method));
}

const MethodInfo* MethodTable::lookup(std::string_view name) const {
  for (const MethodInfo& method : methods_) {
    if (method.name == name) return &method;
  }
  return nullptr;
}

const MethodInfo& MethodTable::find(std::string_view name) const {
  if (const MethodInfo* method = lookup(name)) return *method;
  throw InvalidArgument("MethodTable::find",
                        fmt::format("the method must be one of {}; got \"{}\"{}", fmt::join(names(), ", "),
                                    name, did_you_mean(name, names())));
}

std::vector<std::string> MethodTable::names() const {
  std::vector<std::string> result;
  for (const MethodInfo& method : methods_) result.push_back(method.name);
  return result;
}

}  // namespace lcomp::pipeline
