#include "pipeline/method_cost.h"

#include <map>

namespace lcomp::pipeline {

MethodCost cost_of(const std::string& method) {
  static const std::map<std::string, MethodCost> kCosts = {
      {"rtn", {5'000, 0}},
      {"int8", {5'000, 0}},
      {"llm_int8", {5'000, 0}},
      {"smoothquant", {5'000, 0}},
      {"squeezellm", {85'000, 0}},
      {"awq", {42'000, 55}},
      {"mixed_precision", {150'000, 30}},
      {"magnitude", {14'000, 0}},
      {"wanda", {19'000, 1}},
      {"ria", {19'000, 1}},
      {"obd", {14'000, 0}},
      {"wrp", {23'000, 1}},
      {"sparsegpt", {40'000, 8, 8, 40}},
      {"fisher_mask", {12'000, 5}},
      {"llm_pruner", {12'000, 5}},
      {"svd", {24'000, 60}},
      {"fwsvd", {24'000, 60}},
      {"asvd", {24'000, 60}},
      {"svd_llm", {12'000, 38}},
      {"pca", {24'000, 60}},
      {"lqer", {100'000, 75}},
      {"oats", {100'000, 600}},
  };
  const auto found = kCosts.find(method);
  return found == kCosts.end() ? MethodCost{} : found->second;
}

double solver_flops(const MethodCost& cost, const model::Architecture& architecture) {
  double flops = 0;
  for (int64_t block = 0; block < architecture.layers; ++block) {
    const auto operators = architecture.operators(block);
    for (const auto& op : operators) {
      const auto out = static_cast<double>(op.out_features), in = static_cast<double>(op.in_features);
      flops += out * in * (cost.flops_per_weight + cost.cubic * in);
    }
    for (const auto& group : architecture.groups(block)) {
      const auto in = static_cast<double>(operators[group.operators[0]].in_features);
      flops += cost.cubic * in * in * in;
    }
  }
  return flops;
}

}  // namespace lcomp::pipeline
