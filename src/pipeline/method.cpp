#include "lcomp/pipeline/method.h"

#include <fmt/format.h>

#include "lcomp/core/error.h"
#include "lcomp/core/nearest.h"

namespace lcomp::pipeline {

MethodCost larger_of(const MethodCost& a, const MethodCost& b) {
  return {.flops_per_weight = std::max(a.flops_per_weight, b.flops_per_weight),
          .cubic = std::max(a.cubic, b.cubic),
          .result_bytes = std::max(a.result_bytes, b.result_bytes),
          .moment_bytes = std::max(a.moment_bytes, b.moment_bytes),
          .weight_bytes = std::max(a.weight_bytes, b.weight_bytes)};
}

std::function<MethodCost(const PassOptions&)> constant_cost(const MethodCost& cost) {
  return [cost](const PassOptions&) { return cost; };
}

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
