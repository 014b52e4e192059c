#include "lcomp/pipeline/planner.h"

#include <set>

#include "lcomp/core/error.h"
#include "lcomp/core/threads.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/pipeline/survey.h"
#include "pipeline/block_record.h"
#include "pipeline/embedding.h"
#include "pipeline/estimates.h"
#include "pipeline/options_json.h"
#include "pipeline/pass_order.h"

namespace lcomp::pipeline {
namespace {

/// Tokens whose inputs are gathered before they enter a statistic: enough for the products to run at full
/// speed.
constexpr int64_t kBatchTokens = 2048;

linalg::Precision resolve_compute(Compute compute) {
  if (compute == Compute::kF32) return linalg::Precision::kF32;
  if (linalg::has_native_bf16()) return linalg::Precision::kBf16;
  if (compute == Compute::kBf16) {
    throw Unsupported("job: /compute",
                      "\"bf16\" needs a processor with AVX-512 BF16 or AMX; this one has neither (use "
                      "\"auto\" or \"f32\")");
  }
  return linalg::Precision::kF32;
}

std::vector<OperatorPlan> list_operators(const model::Model& model) {
  std::vector<OperatorPlan> out;
  for (int64_t block = 0; block < model.size(); ++block) {
    const std::vector<std::string> tensors = model.block_tensors(block);
    const std::vector<model::OperatorInfo> operators = model.architecture().operators(block);
    const std::vector<model::GroupInfo> groups = model.architecture().groups(block);
    for (size_t i = 0; i < operators.size(); ++i) {
      const model::OperatorInfo& op = operators[i];
      OperatorPlan plan;
      plan.name = op.name;
      plan.block = block;
      for (size_t g = 0; g < groups.size(); ++g) {
        if (std::count(groups[g].operators.begin(), groups[g].operators.end(), i) > 0)
          plan.group = static_cast<int64_t>(g);
      }
      plan.out_features = op.out_features;
      plan.in_features = op.in_features;
      for (const std::string& name : tensors) {
        if (name.starts_with(op.name + ".weight"))
          plan.bytes_before += static_cast<int64_t>(model.checkpoint().info(name).bytes());
      }
      plan.bytes_after = plan.bytes_before;
      const auto* group = model.group_of(op);
      plan.scheme = group == nullptr ? "as stored" : fmt::format("{} as stored", group->format);
      out.push_back(std::move(plan));
    }
  }
  return out;
}

/// What a pass makes of its operators, from what it makes of each: "50 % zeros, bitmask (24 of 28
/// operators)".
std::string summary_of(const std::vector<std::string>& schemes) {
  std::string most;
  std::ptrdiff_t count = 0;
  for (const std::string& scheme : schemes) {
    const std::ptrdiff_t same = std::count(schemes.begin(), schemes.end(), scheme);
    if (same > count) {
      most = scheme;
      count = same;
    }
  }
  const auto all = static_cast<std::ptrdiff_t>(schemes.size());
  return count == all ? most : fmt::format("{} ({} of {} operators, others differ)", most, count, all);
}

/// "/overrides/2" where the settings are those of an override; "" where they are the pass's own.
std::string override_of(const PassSpec& pass, const PassOptions& settings) {
  for (size_t o = 0; o < pass.overrides.size(); ++o) {
    if (pass.overrides[o].options.get() == &settings) return fmt::format("/overrides/{}", o);
  }
  return "";
}

/// The text with the first mention of `part` cut out.
std::string without(std::string text, const std::string& part) {
  const size_t at = text.find(part);
  return at == std::string::npos ? text : text.erase(at, part.size());
}

/// Of how many input columns an operator's inputs are left in multiples, when units are deleted: 0 where it
/// keeps them all.
int64_t input_step(const model::Architecture& architecture, const OperatorPlan& op, int64_t channel_step) {
  const auto operators = architecture.operators(op.block);
  for (const model::DependencyGroup& units : architecture.dependency_groups(op.block)) {
    if (operators[units.closing().op].name != op.name) continue;
    return units.closing().per_unit * (units.kind == model::UnitKind::kChannel ? channel_step : 1);
  }
  return 0;
}

bool belongs_to_attention(const model::Architecture& architecture, const OperatorPlan& op) {
  using model::OperatorRole;
  for (const model::OperatorInfo& info : architecture.operators(op.block)) {
    if (info.name != op.name) continue;
    return info.role != OperatorRole::kGate && info.role != OperatorRole::kUp &&
           info.role != OperatorRole::kDown;
  }
  return false;
}

/// Counts the operator's matrix, of which a share of the weights is left, in place of what stands for it.
void count_as_dense(OperatorPlan& op, at::ScalarType dtype, double left = 1) {
  op.bytes_after = static_cast<int64_t>(static_cast<double>(op.out_features * op.in_features) * left) *
                   static_cast<int64_t>(c10::elementSize(dtype));
  op.scheme = written_dense(op.scheme);
}

/// Applies each pass's `plan_weight` to the operators it changes; gathers what does not fit, a line for each
/// pass.
void plan_weights(const Job& job, const MethodTable& methods, const model::Model& model, Plan& plan) {
  std::string place;  // of the first misfit
  std::string errors;
  std::vector<double> left(plan.operators.size(), 1.0);  // of each operator's weights
  std::vector<int64_t> steps(plan.operators.size(), 0);  // of its inputs
  for (size_t p = 0; p < job.passes.size(); ++p) {
    const MethodInfo& method = methods.find(job.passes[p].method);
    std::set<std::string> said;
    std::vector<std::string> schemes;
    for (size_t i = 0; i < plan.operators.size(); ++i) {
      const auto& settings = plan.settings[p][i];
      if (!settings) continue;
      OperatorPlan& op = plan.operators[i];
      op.methods.push_back(method.name);
      try {
        PlannedOperator shape{op.name, op.out_features, op.in_features, model.dtype(),
                              belongs_to_attention(model.architecture(), op)};
        const PlannedWeight planned = method.plan_weight(*settings, shape);
        if (steps[i] > 0) {
          shape.in_features = steps[i];
          try {
            method.plan_weight(*settings, shape);
          } catch (const InvalidArgument& misfit) {
            throw InvalidArgument(
                method.name,
                fmt::format("{}; {} of its inputs, or a multiple (channel_step), are left where units "
                            "are deleted before",
                            without(misfit.what(), fmt::format("[{}] ", method.name)), steps[i]));
          }
        }
        op.scheme = planned.scheme;
        op.is_estimate = op.is_estimate || planned.is_estimate;
        schemes.push_back(planned.scheme);
        op.bytes_after = static_cast<int64_t>(static_cast<double>(planned.bytes_after) * left[i]);
        left[i] *= planned.kept;
        const int64_t step = method.effect ? method.effect(*settings).deletes_in_steps : 0;
        if (step > 0) steps[i] = input_step(model.architecture(), op, step);
        plan.rounds_inputs = plan.rounds_inputs || planned.rounds_input;
        if (job.write.format == WriteFormat::kDense) {
          if (planned.rounds_input) {
            throw InvalidArgument(
                method.name,
                "write.format must be compressed-tensors where inputs are rounded, which dense files cannot "
                "say; received dense");
          }
          count_as_dense(op, model.dtype(), left[i]);
        }
      } catch (const Error& misfit) {
        if (misfit.kind() != ErrorKind::kInvalidArgument && misfit.kind() != ErrorKind::kUnsupported) throw;
        // One line for the same misfit of many operators, by the name of the first.
        if (!said.insert(without(misfit.what(), op.name)).second) continue;
        const std::string here = fmt::format("job: /passes/{}{}", p, override_of(job.passes[p], *settings));
        if (place.empty()) {
          place = here;
        } else {
          errors += fmt::format("\n[{}] ", here);
        }
        errors += misfit.what();
      }
    }
    plan.summaries.push_back(summary_of(schemes));
  }
  if (!errors.empty()) throw ConfigError(place, errors);
  for (size_t i = 0; i < left.size(); ++i) {
    const OperatorPlan& op = plan.operators[i];
    plan.parameters_after -=
        std::llround(static_cast<double>(op.out_features * op.in_features) * (1 - left[i]));
  }
}

/// Methods that never do without a text are refused when the job is parsed; others depend on their settings.
void check_text(const Job& job, const std::string& method, const calib::Needs& needs) {
  if ((!needs.any() && !needs.gradients()) || !job.calibration.text.empty()) return;
  throw ConfigError("job: /calibration/text",
                    fmt::format("must name a text, which the method {} takes its statistics from with these "
                                "settings; it is missing or empty",
                                method));
}

/// `[in, in]` matrices among the statistics of a group.
double matrices_of(const calib::Needs& needs) {
  const double whole = (needs.second_moment ? 1 : 0) + (needs.mismatch ? 1 : 0);
  return whole * (needs.halves ? 3 : 1) + (needs.gradient_moments ? 1 : 0);
}

/// Lets the methods that will choose settings for the whole model check what they are given to choose from,
/// and takes up what they need to know.
calib::Needs plan_surveys(const Job& job, const MethodTable& methods, const model::Model& model, Plan& plan) {
  calib::Needs all;
  for (size_t p = 0; p < job.passes.size(); ++p) {
    const MethodInfo& method = methods.find(job.passes[p].method);
    if (!method.make_survey) continue;
    try {
      const auto survey = method.make_survey(*job.passes[p].options, model);
      if (!survey) continue;
      plan.needs_samples = plan.needs_samples || survey->needs().any();
      plan.needs_gradients = plan.needs_gradients || survey->needs().gradients();
      all = all | survey->needs();
      check_text(job, method.name, survey->needs());
      survey->check(plan.operators, plan.settings[p]);
      survey->check_samples(job.calibration.samples);
      plan.survey_bytes += survey->planned_sums(plan.operators, plan.settings[p]);
    } catch (const InvalidArgument& misfit) {
      throw ConfigError(fmt::format("job: /passes/{}", p), misfit.what());
    }
  }
  return all;
}

/// The second stream moves on with the first, group by group, so only the last pass can have it, and staged;
/// which statistics it takes is one decision for all operators.
void check_mismatch(const PassSpec& pass, const std::string& where, const MethodInfo& method, bool is_last) {
  const PassChain chain = method.make_passes(*pass.options);
  for (size_t o = 0; o < pass.overrides.size(); ++o) {
    const PassChain changed = method.make_passes(*pass.overrides[o].options);
    for (size_t i = 0; i < std::min(chain.size(), changed.size()); ++i) {
      const calib::Needs needs = chain[i]->needs(), wanted = changed[i]->needs();
      if ((needs.mismatch || !wanted.mismatch) && (needs.halves || !wanted.halves)) continue;
      throw ConfigError(
          fmt::format("{}/overrides/{}/mismatch", where, o),
          "an override may turn the correction off, or its split; the pass itself must turn it on");
    }
  }
  for (size_t i = 0; i < chain.size(); ++i) {
    if (!chain[i]->needs().mismatch || (is_last && i + 1 == chain.size() && chain[i]->sequential())) continue;
    throw ConfigError(where + "/mismatch",
                      "the mismatch of the inputs is measured group by group as the samples move on, so the "
                      "pass must be the last one and have \"true_sequential\": true");
  }
}

/// Statistics and the order of work are those of the pass: overrides may leave nothing out of them, nor
/// change what holds for all operators.
void check_overrides(const PassSpec& pass, const std::string& where, const MethodInfo& method) {
  const Json whole = settings_to_json(*pass.options);
  const PassChain chain = method.make_passes(*pass.options);
  for (size_t o = 0; o < pass.overrides.size(); ++o) {
    const std::string here = fmt::format("{}/overrides/{}", where, o);
    const Json changed = settings_to_json(*pass.overrides[o].options);
    for (const std::string& name : method.pass_settings) {
      if (whole.at(name) == changed.at(name)) continue;
      throw ConfigError(
          fmt::format("{}/{}", here, name),
          fmt::format("must be as in the pass, since it holds for all of its operators: {}; it is {}",
                      whole.at(name).dump(), changed.at(name).dump()));
    }
    const PassChain own = method.make_passes(*pass.overrides[o].options);
    for (size_t i = 0; i < std::min(chain.size(), own.size()); ++i) {
      const calib::Needs needs = chain[i]->needs(), wanted = own[i]->needs();
      if (needs.covers_gradients(wanted) && needs.covers(wanted)) continue;
      throw ConfigError(
          here,
          "the settings must not need statistics that those of the pass do not; give the operators a "
          "pass of their own");
    }
  }
}

/// Takes up the operators of a pass that takes second moments.
void note_moments(Plan& plan, size_t pass) {
  for (size_t i = 0; i < plan.operators.size(); ++i) {
    if (plan.settings[pass][i] != nullptr) plan.moments.insert(i);
  }
}

/// What becomes of the token embedding; throws ConfigError where it cannot be compressed.
void plan_embedding(const Job& job, const model::Model& model, Plan& plan) {
  const lowrank::EmbeddingOptions& options = *job.embedding;
  if (model.compressed_embedding())
    throw ConfigError("job: /embedding", "the model must have a plain embedding table; it is compressed");
  const model::OperatorInfo table = model.embedding();
  if (!model.checkpoint().contains(table.name + ".weight")) {
    throw ConfigError("job: /embedding",
                      fmt::format("the model must have the tensor '{}.weight'; it has none", table.name));
  }
  int64_t numbers = 0;
  try {
    if (options.method == lowrank::EmbeddingMethod::kMorphTe)
      plan.morphemes = token_morphemes(job.model, table.out_features, options);
    numbers = lowrank::embedding_numbers(options, table.out_features, table.in_features,
                                         !job.calibration.text.empty(),
                                         plan.morphemes ? &*plan.morphemes : nullptr);
  } catch (const InvalidArgument& misfit) {
    throw ConfigError("job: /embedding", without(misfit.what(), "[embedding] "));
  }
  OperatorPlan& row = plan.embedding.emplace();
  row.name = table.name;
  row.block = -1;
  row.out_features = table.out_features;
  row.in_features = table.in_features;
  row.methods = {std::string(kEmbeddingPass)};
  row.scheme = embedding_summary(options);
  row.bytes_before = static_cast<int64_t>(model.checkpoint().info(table.name + ".weight").bytes());
  row.bytes_after = numbers * static_cast<int64_t>(c10::elementSize(model.dtype()));
  if (job.write.format == WriteFormat::kDense) count_as_dense(row, model.dtype());
  plan.bytes_after -= static_cast<uint64_t>(row.bytes_before - row.bytes_after);
}

/// Operators that take more than the matrices they stand for; not where sizes are estimates.
void warn_of_growth(const model::Model& model, Plan& plan) {
  int64_t count = 0;
  const OperatorPlan* worst = nullptr;
  const auto element = static_cast<int64_t>(c10::elementSize(model.dtype()));
  const auto growth = [element](const OperatorPlan& op) {
    return static_cast<double>(op.bytes_after) /
           static_cast<double>(op.out_features * op.in_features * element);
  };
  for (const OperatorPlan& op : plan.operators) {
    if (op.methods.empty() || op.is_estimate || growth(op) <= 1) continue;
    ++count;
    if (worst == nullptr || growth(op) > growth(*worst)) worst = &op;
  }
  if (worst == nullptr) return;
  plan.warnings.push_back(
      fmt::format("{} of {} operators become larger than their matrices: {}, to {:.1f} % ({})", count,
                  plan.operators.size(), worst->name, 100 * growth(*worst), worst->scheme));
}

void warn_of_length(const char* field, int64_t length, const model::Model& model, Plan& plan) {
  const std::string warning = model::beyond_positions(model.architecture(), length);
  if (!warning.empty()) plan.warnings.push_back(fmt::format("{}: {}", field, warning));
}

/// What a job must have where the model has no language-model head and a position embedding for each token.
void check_encoder(const Job& job, const model::Model& model, const Plan& plan) {
  if (plan.needs_calibration)
    model::require_positions(model.architecture(), job.calibration.length, "job: /calibration/length");
  if (model.architecture().is_language_model() || !job.evaluate) return;
  if (!job.evaluate->reference) {
    throw ConfigError(
        "job: /evaluate/reference",
        "must be true: an encoder is measured by its embeddings beside those of the dense model; "
        "it is false");
  }
  if (job.evaluate->stride != 0) {
    throw ConfigError("job: /evaluate/stride",
                      fmt::format("must be 0 for an encoder, which is measured on sentences; it is {}",
                                  job.evaluate->stride));
  }
}

void check_budget(const Job& job, const Plan& plan) {
  if (job.max_memory <= 0 || plan.memory.peak() <= static_cast<uint64_t>(job.max_memory)) return;
  std::string parts;
  for (const auto& [part, bytes] : plan.memory.parts()) {
    if (bytes > 0) parts += fmt::format("{}{} {}", parts.empty() ? "" : ", ", part, bytes / 1'000'000);
  }
  throw ResourceError(
      "job: /max_memory",
      fmt::format("the budget must cover the estimated peak of {} MB ({} MB); it is {} MB. Fewer or shorter "
                  "calibration samples, fewer threads or evaluation windows need less",
                  plan.memory.peak() / 1'000'000, parts, job.max_memory / 1'000'000));
}

/// Of one long sample, or of short ones that enter a statistic together: threads then wait for each other.
int64_t smallest_batch(const Job& job) {
  return std::max(kBatchTokens, job.calibration.length);
}

/// Keeps the activations in memory when the job says so, or when it leaves the choice and the budget allows
/// it; makes the batches smaller where that is not enough.
void place_activations(const Job& job, const MethodTable& methods, const model::Model& model, Plan& plan) {
  plan.activations_on_disk = job.calibration.cache == CachePlace::kDisk;
  plan.memory = estimate_memory(job, methods, model, plan);
  const auto is_over = [&] {
    return job.max_memory > 0 && plan.needs_samples &&
           plan.memory.peak() > static_cast<uint64_t>(job.max_memory);
  };
  if (job.calibration.cache == CachePlace::kAuto && is_over()) {
    plan.activations_on_disk = true;
    plan.memory = estimate_memory(job, methods, model, plan);
  }
  if (is_over()) {
    plan.batch_tokens = smallest_batch(job);
    plan.memory = estimate_memory(job, methods, model, plan);
  }
  check_budget(job, plan);
}

}  // namespace

Plan make_plan(const Job& job, const MethodTable& methods, const model::Model& model) {
  Plan plan;
  plan.parameters_after = plan.parameters = model.parameters();
  plan.operators = list_operators(model);
  std::vector<std::string> names;
  for (const OperatorPlan& op : plan.operators) names.push_back(op.name);
  plan.settings = resolve_targets(job, "job", names, {"lm_head", "model.embed_tokens"});
  check_pass_order(job, methods, model, plan.settings);
  plan_weights(job, methods, model, plan);
  calib::Needs needs = plan_surveys(job, methods, model, plan);
  bool staged_needs = false;
  for (const PassSpec& pass : job.passes) {
    for (const auto& instance : methods.find(pass.method).make_passes(*pass.options)) {
      // Of those that take statistics, only the last can be staged.
      plan.observes_blocks = plan.observes_blocks || staged_needs;
      plan.needs_samples = plan.needs_samples || instance->needs().any();
      plan.needs_gradients = plan.needs_gradients || instance->needs().gradients();
      needs = needs | instance->needs();
      check_text(job, pass.method, instance->needs());
      staged_needs = instance->needs().any() && instance->sequential();
      plan.observes_blocks = plan.observes_blocks || (instance->needs().any() && !instance->sequential());
      plan.compares_streams = plan.compares_streams || instance->needs().mismatch;
      if (instance->needs().second_moment) note_moments(plan, static_cast<size_t>(&pass - job.passes.data()));
    }
    const std::string where = fmt::format("job: /passes/{}", &pass - job.passes.data());
    check_mismatch(pass, where, methods.find(pass.method), &pass == &job.passes.back());
    check_overrides(pass, where, methods.find(pass.method));
  }
  const bool counts_tokens = job.embedding && !job.calibration.text.empty();
  plan.needs_calibration = plan.needs_samples || plan.needs_gradients || counts_tokens;
  // Those by units are vectors.
  plan.gradient_matrices =
      (needs.gradient_squares ? 1 : 0) + (needs.gradient_products ? 1 : 0) + (needs.gradient_moments ? 1 : 0);
  plan.moment_matrices = matrices_of(needs);
  plan.compute = resolve_compute(job.compute);
  plan.evaluation_compute = job.compute == Compute::kBf16 ? plan.compute : linalg::Precision::kF32;
  plan.threads = thread_count(static_cast<int>(job.threads));
  plan.batch_tokens =
      std::max(smallest_batch(job), static_cast<int64_t>(plan.threads) * job.calibration.length);
  plan.bytes_before = model.stored_bytes();
  plan.bytes_after = plan.bytes_before;
  for (const OperatorPlan& op : plan.operators) {
    plan.bytes_after += static_cast<uint64_t>(op.bytes_after) - static_cast<uint64_t>(op.bytes_before);
  }
  if (job.embedding) plan_embedding(job, model, plan);
  plan.warnings = model.warnings();
  warn_of_growth(model, plan);
  check_encoder(job, model, plan);
  if (plan.needs_calibration) warn_of_length("calibration.length", job.calibration.length, model, plan);
  if (job.evaluate) warn_of_length("evaluate.window", evaluation_window(job, model), model, plan);
  place_activations(job, methods, model, plan);
  plan.disk_bytes = estimate_disk(job, model, plan);
  plan.work = count_work(job, methods, model, plan);
  return plan;
}

Plan plan(const Job& job, const MethodTable& methods) {
  Plan plan = make_plan(job, methods, model::Model::open(job.model));
  const std::string few = few_tokens(plan, job.calibration.samples * job.calibration.length);
  if (!few.empty()) plan.warnings.push_back(few);
  return plan;
}

std::string few_tokens(const Plan& plan, int64_t tokens) {
  int64_t count = 0;
  const OperatorPlan* widest = nullptr;
  for (const size_t i : plan.moments) {
    const OperatorPlan& op = plan.operators[i];
    if (tokens >= op.in_features) continue;
    ++count;
    if (widest == nullptr || op.in_features > widest->in_features) widest = &op;
  }
  if (count == 0) return "";
  return fmt::format(
      "calibration: {} tokens are fewer than the inputs of {} operators ({} of {}), whose second "
      "moments are singular then; more samples, or longer ones, tell more",
      tokens, count, widest->in_features, widest->name);
}

void check_evaluation_budget(const Job& job, const model::Model& model, Plan& plan, int64_t tokens) {
  plan.memory.evaluation = evaluation_bytes(job, model, plan, tokens);
  check_budget(job, plan);
}

}  // namespace lcomp::pipeline
