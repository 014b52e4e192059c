#include "pipeline/pass_order.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <optional>
#include <set>

#include "lcomp/pipeline/survey.h"
#include "model/weight_formats.h"
#include "pipeline/json_document.h"

namespace lcomp::pipeline {
namespace {

Effect effect_of(const MethodInfo& method, const PassOptions& settings) {
  return method.effect ? method.effect(settings) : Effect{};
}

std::string kind_of(const std::string& name) {
  return name.substr(name.rfind('.') + 1);
}

/// Whether what a pass finds in this storage was pruned: sparse matrices, and sums of nothing else.
bool is_sparse(const model::StorageGroup& group) {
  if (!group.parts.empty())
    return group.format == "lcomp-sum" && std::all_of(group.parts.begin(), group.parts.end(), is_sparse);
  const model::WeightFormat* format = model::find_weight_format(group.format);
  return format != nullptr && !format->number_format;
}

/// Whether the pass chooses its settings by a look at the whole model as it came. Settings that no survey can
/// be made of are the planner's to refuse.
bool has_survey(const MethodInfo& method, const PassOptions& entry, const model::Model& model) {
  try {
    return method.make_survey && method.make_survey(entry, model) != nullptr;
  } catch (const InvalidArgument&) {
    return false;
  }
}

/// Operators of the model that read a factor which is stored with another one: by position, and whose it is.
std::vector<std::pair<size_t, size_t>> shared_factors(const model::Model& model,
                                                      const std::vector<std::string>& operators) {
  const auto operator_of = [&](const std::string& tensor) -> std::optional<size_t> {
    for (size_t i = 0; i < operators.size(); ++i) {
      if (tensor.starts_with(operators[i] + ".")) return i;
    }
    return {};
  };
  std::vector<std::pair<size_t, size_t>> shared;
  for (const std::string& name : model.checkpoint().names()) {
    if (!name.ends_with(".weight_shared_with")) continue;
    const at::Tensor text = model.checkpoint().read_codes(name);
    const auto sharer = operator_of(name);
    const auto owner = operator_of(
        {reinterpret_cast<const char*>(text.data_ptr<uint8_t>()), static_cast<size_t>(text.numel())});
    if (sharer && owner && *sharer != *owner) shared.emplace_back(*sharer, *owner);
  }
  return shared;
}

/// Walks through the passes and remembers what they did to each operator.
class OrderCheck {
 public:
  OrderCheck(const Job& job, const MethodTable& methods, const model::Model& model)
      : job_(job), methods_(methods), model_(model) {
    for (int64_t block = 0; block < model.size(); ++block) {
      for (const model::OperatorInfo& op : model.architecture().operators(block)) {
        const model::StorageGroup* group = model.group_of(op);
        names_.push_back(op.name);
        stored_sparse_.push_back(group != nullptr && is_sparse(*group) ? group->format : "");
      }
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
    const bool surveys = has_survey(*method_, *job_.passes[p].options, model_);
    for (size_t i = 0; i < names_.size(); ++i) {
      if (!settings[i]) continue;
      refuse_quantized(i, "");
      const Effect effect = effect_of(*method_, *settings[i]);
      if (effect.reads_gradients) refuse_transformed(i, "gradients are");
      if (effect.reads_all_weights) refuse_transformed(i, "common bases are");
      if (!effect.keeps_zeros || effect.deletes_in_steps > 0) refuse_pruned(i);
      if (!effect.keeps_zeros) refuse_stored_sparse(i);
      if (effect.deletes_in_steps > 0 || effect.reads_gradients || surveys) refuse_narrowed(i);
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

  /// After the last pass. `changed`: by any of them.
  void refuse_orphans(const std::vector<bool>& changed) {
    for (const auto& [sharer, owner] : shared_factors(model_, names_)) {
      if (!changed[owner] || changed[sharer]) continue;
      complain(
          fmt::format("{} is stored with a factor that {} shares in this model; both must be changed, or "
                      "neither",
                      kind_of(names_[owner]), kind_of(names_[sharer])));
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

  void refuse_transformed(size_t op, const char* what) {
    if (!transformed_by_[op]) return;
    complain(fmt::format(
        "{} taken before any pass, by the weights of the model as it is; {} is transformed by "
        "\"{}\" (/passes/{}) before",
        what, kind_of(names_[op]), job_.passes[*transformed_by_[op]].method, *transformed_by_[op]));
  }

  void refuse_pruned(size_t op) {
    if (!pruned_by_[op]) return;
    complain(fmt::format(
        "{} must keep what is 0 after \"{}\" (/passes/{}) has pruned it; \"{}\" with these settings "
        "does not",
        kind_of(names_[op]), job_.passes[*pruned_by_[op]].method, *pruned_by_[op], method_->name));
  }

  void refuse_stored_sparse(size_t op) {
    if (stored_sparse_[op].empty()) return;
    complain(fmt::format(
        "{} must keep what is 0 in the model, which was pruned and is stored {}; \"{}\" with these settings "
        "does not",
        kind_of(names_[op]), stored_sparse_[op], method_->name));
  }

  void refuse_narrowed(size_t op) {
    if (!narrowed_by_[op]) return;
    complain(fmt::format(
        "what is deleted, what gradients are taken by and what is shared out over the operators are chosen "
        "in "
        "the model as it came; units of {} are deleted by \"{}\" (/passes/{}) before (a second job on the "
        "output can)",
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
  std::vector<std::string> stored_sparse_;           // the format of those whose zeros the model came with
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
  std::vector<bool> changed(job.passes.empty() ? 0 : settings[0].size());
  for (size_t p = 0; p < job.passes.size(); ++p) {
    check.add_pass(p, settings[p]);
    for (size_t i = 0; i < changed.size(); ++i) changed[i] = changed[i] || settings[p][i] != nullptr;
  }
  if (!job.passes.empty()) check.refuse_orphans(changed);
  throw_problems("job", check.problems());
}

}  // namespace lcomp::pipeline
