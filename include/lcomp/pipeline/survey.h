#pragma once

#include <map>
#include <string>
#include <vector>

#include "lcomp/calib/input_stats.h"
#include "lcomp/io/safetensors_writer.h"
#include "lcomp/model/block.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/pipeline/planner.h"

namespace lcomp::pipeline {

/// Numbers per operator, by its name.
using SurveyNumbers = std::map<std::string, std::vector<double>>;

/// What a method looks at in the whole model before anything of it is changed, and the settings that it
/// chooses by that: bits under a size budget, for example. The survey streams the dense model block by block
/// like the compression itself; it changes nothing.
class Survey {
 public:
  virtual ~Survey() = default;

  /// Statistics that `measure` reads.
  virtual calib::Needs needs() const = 0;

  /// Before any weight is read: throws InvalidArgument when the settings cannot be met, such as a budget
  /// below the least possible size. `settings` is in the order of `operators`, null where the pass leaves an
  /// operator alone.
  virtual void check(const std::vector<OperatorPlan>& operators, const OperatorSettings& settings) const = 0;

  /// Before anything is read: throws InvalidArgument when that many calibration samples do not do.
  virtual void check_samples(int64_t /*samples*/) const {}

  /// Numbers of those operators of a group that `context.settings` knows. `stats` are of the dense model.
  virtual SurveyNumbers measure(const model::Block& block, size_t group, const calib::InputStats& stats,
                                PassContext& context) = 0;

  /// What `measure` has added up over the blocks besides, for surveys that keep more than numbers: saved
  /// behind every block, and set again in a run that goes on there. Set to nothing to free it.
  virtual io::NamedTensors sums() const { return {}; }
  virtual void set_sums(const io::NamedTensors& /*sums*/) {}
  /// Bytes that the sums will take.
  virtual uint64_t planned_sums(const std::vector<OperatorPlan>& /*operators*/,
                                const OperatorSettings& /*settings*/) const {
    return 0;
  }

  /// The settings that the compression will use, from the numbers of all operators and the sums. Depends on
  /// nothing else. What is decided must show in the fields of the settings, in `PassOptions::chosen`, or in
  /// the sums: blocks that were finished by the same decision are not done again. `decision` gets one line
  /// for people.
  virtual OperatorSettings decide(const SurveyNumbers& numbers, const std::vector<OperatorPlan>& operators,
                                  const OperatorSettings& settings, std::string& decision) const = 0;
};

}  // namespace lcomp::pipeline
