#pragma once

#include <c10/core/ScalarType.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <typeinfo>
#include <utility>
#include <vector>

#include "lcomp/core/error.h"
#include "lcomp/core/options.h"

namespace lcomp::model {
class Model;
}

namespace lcomp::pipeline {

/// The settings of one method, as a job file gives them.
struct PassOptions {
  virtual ~PassOptions() = default;
  /// Shows every field, by its name in job files.
  virtual void visit(FieldVisitor& v) = 0;
  virtual std::unique_ptr<PassOptions> clone() const = 0;
  /// Settings that have no effect as the others are. A job that changes one of them is refused.
  virtual std::vector<IdleSetting> idle() const { return {}; }
  /// What a survey chose that is no field, as text: settings whose fields and text are the same do the same.
  virtual std::string chosen() const { return {}; }

  /// The part of these settings that is a `Struct`, so that a pass works with the settings of every method
  /// whose chain it stands in. Throws InternalError when they have none.
  template <class Struct>
  const Struct& part() const {
    const void* found = find(typeid(Struct));
    if (found == nullptr)
      throw InternalError("PassOptions::part", "the settings must have the part asked for");
    return *static_cast<const Struct*>(found);
  }
  template <class Struct>
  Struct& part() {
    return const_cast<Struct&>(std::as_const(*this).part<Struct>());
  }

 protected:
  virtual const void* find(const std::type_info& /*type*/) const { return nullptr; }
};

/// Plain option structs (each with `void visit(FieldVisitor&)`, and perhaps `std::vector<IdleSetting> idle()
/// const` and `std::string chosen() const`) as the settings of a pass; their fields stand side by side in the
/// job file.
/// `PassOptionsOf<QuantScheme, GptqOptions>` needs no further code.
template <class... Structs>
struct PassOptionsOf : PassOptions {
  std::tuple<Structs...> values;

  template <class T>
  T& get() {
    return std::get<T>(values);
  }
  template <class T>
  const T& get() const {
    return std::get<T>(values);
  }

  void visit(FieldVisitor& v) override { (std::get<Structs>(values).visit(v), ...); }
  std::unique_ptr<PassOptions> clone() const override { return std::make_unique<PassOptionsOf>(*this); }
  std::vector<IdleSetting> idle() const override {
    std::vector<IdleSetting> all;
    (add_idle(std::get<Structs>(values), all), ...);
    return all;
  }
  std::string chosen() const override { return (chosen_of(std::get<Structs>(values)) + ...); }

 protected:
  const void* find(const std::type_info& type) const override {
    const void* found = nullptr;
    ((type == typeid(Structs) ? void(found = &std::get<Structs>(values)) : void()), ...);
    return found;
  }

 private:
  template <class Struct>
  static void add_idle(const Struct& part, std::vector<IdleSetting>& all) {
    if constexpr (requires { part.idle(); }) {
      for (const IdleSetting& setting : part.idle()) all.push_back(setting);
    }
  }
  template <class Struct>
  static std::string chosen_of(const Struct& part) {
    if constexpr (requires { part.chosen(); }) return part.chosen();
    return {};
  }
};

class Pass;
class Survey;

/// The passes of one method, in the order in which a block goes through them.
using PassChain = std::vector<std::unique_ptr<Pass>>;

/// What a method does to the operators that it is given. The planner refuses orders of passes that cannot
/// work by it (docs/jobs.md).
struct Effect {
  /// Moves scales between the operators of a group and what makes their input (a norm, or the operator in
  /// front), which keeps the function of the block: all operators of the group must be given together.
  bool transforms = false;
  /// Puts weights on a grid: no later pass may change them.
  bool quantizes = true;
  /// Leaves factors in place of the matrix: no later pass may change them.
  bool factors = false;
  /// Reads gradients of the loss by the weights as they are before any pass: no earlier pass may transform
  /// them.
  bool reads_gradients = false;
  /// Reads the weights of all blocks as they are before any pass: no earlier pass may transform them either.
  bool reads_all_weights = false;
  /// Removes weights: only methods that keep zeros may follow.
  bool prunes = false;
  /// Whether what is 0 stays 0.
  bool keeps_zeros = true;
  /// Above 0: deletes units, feed-forward channels in multiples of this. Not after pruning, whose patterns it
  /// would break, and not twice; gradients are read before.
  int64_t deletes_in_steps = 0;
};

/// An operator before anything of it is read.
struct PlannedOperator {
  std::string name;
  int64_t out_features = 0;
  int64_t in_features = 0;
  c10::ScalarType dtype = c10::ScalarType::Float;  ///< of the model's weights
  bool attends = false;                            ///< q, k, v or o
};

/// What a method will make of it.
struct PlannedWeight {
  std::string scheme;  ///< for people: "int4 symmetric, groups of 64"
  int64_t bytes_after = 0;
  bool rounds_input = false;  ///< what the operator reads is quantized as well
  double kept = 1;  ///< share of the weights that are not deleted: later passes find a smaller matrix
  bool is_estimate = false;  ///< of `bytes_after`: the run decides
};

/// What solving takes, for estimates before a run. The defaults are generous: they are for methods that do
/// not say (docs/adding_a_method.md has how to measure them).
struct MethodCost {
  /// Float operations per weight, at the speed of products of matrices: other work as those that take as
  /// long.
  double flops_per_weight = 40'000;
  /// Operations for each out * in^2 of an operator and in^3 of a group: factorisations, triangular products.
  double cubic = 3;
  /// Bytes for each weight of a block: what its operators become until they are written.
  double result_bytes = 10;
  /// Bytes while the operators of a group are solved, besides the statistics: for each element of the second
  /// moment, and for each weight of the largest operator.
  double moment_bytes = 24;
  double weight_bytes = 60;
};

/// The greater of each number.
MethodCost larger_of(const MethodCost& a, const MethodCost& b);

/// `MethodInfo::cost` of a method whose settings make no great difference.
std::function<MethodCost(const PassOptions&)> constant_cost(const MethodCost& cost);

/// One row of the table of methods.
struct MethodInfo {
  std::string name;     ///< as in job files: "gptq"
  std::string summary;  ///< one line for `lcomp list`
  /// Whether a job with this method must have a calibration text.
  bool needs_calibration = false;
  std::function<std::unique_ptr<PassOptions>()> default_options;
  /// Settles what a job leaves open, where the best value depends on other settings or on the place of the
  /// pass among the passes: `given` tells by name what the job's entry (or override) says itself. The
  /// resolved job spells it out.
  std::function<void(PassOptions&, const std::function<bool(std::string_view name)>& given, bool is_last)>
      settle = {};
  /// Size and description of one operator's result; throws InvalidArgument when the settings do not fit the
  /// shape.
  std::function<PlannedWeight(const PassOptions&, const PlannedOperator&)> plan_weight = {};
  /// The passes, from the settings of the job's entry (overrides reach them through `PassContext::settings`).
  /// Most methods are one pass; the passes of a chain share the entry, its operators and its settings.
  std::function<PassChain(const PassOptions&)> make_passes = {};
  /// What it does to an operator with these settings; without it, the method quantizes.
  std::function<Effect(const PassOptions&)> effect = {};
  /// Settings that hold for the whole pass, by name: `make_passes` reads them from the entry, so that
  /// overrides must not change them.
  std::vector<std::string> pass_settings = {};
  /// What solving takes with these settings, measured; without it, a generous guess.
  std::function<MethodCost(const PassOptions&)> cost = {};
  /// Files that the settings name: what is in them is part of what an output depends on.
  std::function<std::vector<std::string>(const PassOptions&)> files = {};
  /// For methods that choose settings for the whole model by what they see in it (pipeline/survey.h): from
  /// the settings of the job's entry and the model, whose survey must not outlive it. May return null where
  /// these settings leave nothing to choose.
  std::function<std::unique_ptr<Survey>(const PassOptions&, const model::Model& model)> make_survey = {};
};

/// The methods that job files can name, in the order in which they were added.
class MethodTable {
 public:
  /// Throws `InvalidArgument` when the name is taken.
  void add(MethodInfo method);

  /// Null when there is no such method.
  const MethodInfo* lookup(std::string_view name) const;

  /// Throws `InvalidArgument` with the known names, and the nearest of them, when there is no such method.
  const MethodInfo& find(std::string_view name) const;

  const std::vector<MethodInfo>& methods() const { return methods_; }
  std::vector<std::string> names() const;

 private:
  std::vector<MethodInfo> methods_;
};

}  // namespace lcomp::pipeline
