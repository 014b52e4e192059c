#include "pipeline/pass_order.h"

#include <fmt/format.h>

#include <optional>
#include <set>

#include "pipeline/json_document.h"

namespace lcomp::pipeline {
namespace {

Effect effect_of(const MethodInfo& method, const PassOptions& settings) {
  return method.effect ? method.effect(settings) : Effect{};
}

std::string kind_of(const std::string& name) {
  return name.substr(name.rfind('.') + 1);
}

/// Walks through the passes and remembers what they did to each operator.
class OrderCheck {
 public:
  OrderCheck(const Job& job, const MethodTable& methods, const model::Model& model)
      : job_(job), methods_(methods), model_(model) {
    for (int64_t block = 0; block < model.size(); ++block) {
      for (const model::OperatorInfo& op : model.architecture().operators(block)) names_.push_back(op.name);
    }
    quantized_by_.resize(names_.size());
    became_.resize(names_.size());
    transformed_by_.resize(names_.size());
    pruned_by_.resize(names_.size());
    narrowed_by_.resize(names_.size());
  }

  void add_pass(size_t p, const OperatorSettings& settings) {
    pass_ = p;
    said_.clear();
    method_ = &methods_.find(job_.passes[p].method);
    for (size_t i = 0; i < names_.size(); ++i) {
      if (!settings[i]) continue;
      refuse_quantized(i, "");
      const Effect effect = effect_of(*method_, *settings[i]);
      if (effect.reads_gradients) refuse_transformed(i);
      if (!effect.keeps_zeros || effect.deletes_in_steps > 0) refuse_pruned(i);
      if (effect.deletes_in_steps > 0 || effect.reads_gradients) refuse_narrowed(i);
    }
    size_t first = 0;
    for (int64_t block = 0; block < model_.size(); ++block) {
      for (const model::GroupInfo& group : model_.architecture().groups(block))
        check_transform(group, first, settings);
      first += model_.architecture().operators(block).size();
    }
    for (size_t i = 0; i < names_.size(); ++i) {
      if (!settings[i]) continue;
      const Effect effect = effect_of(*method_, *settings[i]);
      if ((effect.quantizes || effect.factors) && !quantized_by_[i]) {
        quantized_by_[i] = p;
        became_[i] = effect.factors ? "factored" : "quantized";
      }
      if (effect.prunes) pruned_by_[i] = p;
      if (effect.deletes_in_steps > 0) narrowed_by_[i] = p;
    }
  }

  const Problems& problems() const { return problems_; }

 private:
  void complain(const std::string& message) {
    // One line per kind of operator: the same mistake in 80 blocks is one mistake.
    if (said_.insert(message).second) problems_.push_back({child("/passes", pass_), message});
  }

  void refuse_quantized(size_t op, const std::string& reason) {
    if (!quantized_by_[op]) return;
    complain(fmt::format("an operator must not be changed after it is {}; {} is {} by \"{}\" (/passes/{}){}",
                         became_[op], kind_of(names_[op]), became_[op],
                         job_.passes[*quantized_by_[op]].method, *quantized_by_[op], reason));
  }

  void refuse_transformed(size_t op) {
    if (!transformed_by_[op]) return;
    complain(
        fmt::format("gradients are taken before any pass, by the weights of the model as it is; {} is "
                    "transformed by \"{}\" (/passes/{}) before",
                    kind_of(names_[op]), job_.passes[*transformed_by_[op]].method, *transformed_by_[op]));
  }

  void refuse_pruned(size_t op) {
    if (!pruned_by_[op]) return;
    complain(fmt::format(
        "{} must keep what is 0 after \"{}\" (/passes/{}) has pruned it; \"{}\" with these settings "
        "does not",
        kind_of(names_[op]), job_.passes[*pruned_by_[op]].method, *pruned_by_[op], method_->name));
  }

  void refuse_narrowed(size_t op) {
    if (!narrowed_by_[op]) return;
    complain(fmt::format(
        "what is deleted and what gradients are taken by are chosen in the model as it came; units of {} "
        "are deleted by \"{}\" (/passes/{}) before",
        kind_of(names_[op]), job_.passes[*narrowed_by_[op]].method, *narrowed_by_[op]));
  }

  /// `first`: position of the block's first operator in the list of all.
  void check_transform(const model::GroupInfo& group, size_t first, const OperatorSettings& settings) {
    std::vector<std::string> given, missing;
    for (const size_t op : group.operators) {
      const auto& options = settings[first + op];
      const bool transformed = options && effect_of(*method_, *options).transforms;
      (transformed ? given : missing).push_back(kind_of(names_[first + op]));
    }
    if (given.empty() || group.absorber.empty()) return;
    for (const size_t op : group.operators) transformed_by_[first + op] = pass_;
    if (!missing.empty()) {
      complain(
          fmt::format("a scale of what {} reads changes all that reads it; {} must be transformed in the "
                      "same pass, or none of them",
                      fmt::join(given, ", "), fmt::join(missing, ", ")));
    }
    const auto producer = std::find(names_.begin(), names_.end(), group.absorber);
    if (producer == names_.end()) return;
    const auto position = static_cast<size_t>(producer - names_.begin());
    transformed_by_[position] = pass_;
    refuse_quantized(
        position, fmt::format(", and the scale of what {} reads goes into its rows", fmt::join(given, ", ")));
    if (!model_.checkpoint().contains(*producer + ".weight")) {
      complain(
          fmt::format("the scale of what {} reads goes into the rows of {}, which must be dense; it is "
                      "stored packed",
                      fmt::join(given, ", "), kind_of(*producer)));
    }
  }

  const Job& job_;
  const MethodTable& methods_;
  const model::Model& model_;
  std::vector<std::string> names_;
  std::vector<std::optional<size_t>> quantized_by_;  // or factored
  std::vector<std::string> became_;
  std::vector<std::optional<size_t>> transformed_by_;
  std::vector<std::optional<size_t>> pruned_by_;
  std::vector<std::optional<size_t>> narrowed_by_;
  size_t pass_ = 0;
  const MethodInfo* method_ = nullptr;
  std::set<std::string> said_;
  Problems problems_;
};

}  // namespace

void check_pass_order(const Job& job, const MethodTable& methods, const model::Model& model,
                      const std::vector<OperatorSettings>& settings) {
  OrderCheck check(job, methods, model);
  for (size_t p = 0; p < job.passes.size(); ++p) check.add_pass(p, settings[p]);
  throw_problems("job", check.problems());
}

}  // namespace lcomp::pipeline
