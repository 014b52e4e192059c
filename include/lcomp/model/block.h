#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "lcomp/core/weight.h"
#include "lcomp/linalg/gemm.h"
#include "lcomp/model/architecture.h"

namespace lcomp::model {

/// A linear operator of a loaded block: what the architecture says of it and the weight it has now.
struct LinearOp {
  OperatorInfo info;
  WeightPtr weight;
  at::Tensor bias;  ///< float32 `[out]`, undefined when the operator has none
};

/// One sample on its way through a block. `hidden` `[tokens, hidden_size]` float32 is what the block adds to,
/// changed in place; `work` is what the next group reads when it cannot be had from `hidden` alone.
struct SampleState {
  at::Tensor hidden;
  at::Tensor work;
};

/// Sees the input `[tokens, in]` of each group once per sample; valid only during the call.
using Tap = std::function<void(size_t group, const at::Tensor& input)>;

/// One transformer block with its weights in memory.
///
/// A sample passes its groups of operators in data-flow order. `advance` takes it to the input of one group,
/// using the weights that the groups before have *now*: a caller that replaces weights between the groups
/// gets "true sequential" compression, and the compressed output of the block, out of one pass over the
/// samples. The const methods may run on several threads at once, each with its own Scratch.
class Block {
 public:
  Block(const Architecture& architecture, int64_t index, std::vector<LinearOp> ops,
        std::map<std::string, at::Tensor> norms, std::map<std::string, at::ScalarType> stored_types = {});
  ~Block();
  Block(Block&&) noexcept;

  int64_t index() const { return index_; }
  const std::vector<LinearOp>& ops() const { return ops_; }
  const std::vector<GroupInfo>& groups() const { return groups_; }
  /// Norm weights and the like: everything of the block that is no linear operator, by full tensor name.
  const std::map<std::string, at::Tensor>& norms() const { return norms_; }

  /// Puts `weight` (same shape) in place of operator `op`'s.
  void replace(size_t op, WeightPtr weight);
  /// Deletes all units of a dependency group of these widths but `kept` (ascending, at least one): their
  /// rows, columns and biases. What the block computes is what it computed with these units masked, up to the
  /// order of the sums. Weights become dense in the type that they decode to. Throws InvalidArgument when
  /// `kept` is no such list.
  void keep_units(const DependencyGroup& units, const std::vector<int64_t>& kept);
  const BlockWidths& widths() const { return widths_; }
  /// The dependency groups of the block as it is now.
  std::vector<DependencyGroup> dependency_groups() const { return architecture_->dependency_groups(widths_); }
  /// Which columns of a group's input, as the block was loaded, are left: int64, undefined for all of them.
  const at::Tensor& kept_inputs(size_t group) const { return kept_inputs_.at(group); }

  /// Whether `replace` was called for it, or units of it were deleted.
  bool replaced(size_t op) const { return replaced_.at(op); }

  /// A norm or the bias of an operator, by full tensor name, float32; undefined when there is none.
  at::Tensor vector(const std::string& name) const;
  /// The type that such a tensor is stored in.
  at::ScalarType stored_type(const std::string& name) const;
  /// Puts `values` (same shape) in its place.
  void set_vector(const std::string& name, const at::Tensor& values);
  /// The norms and biases that were changed.
  const std::set<std::string>& changed_vectors() const { return changed_vectors_; }

  /// What the inputs of a group have been divided by since the block was loaded (`fold_input_scale`):
  /// float64 `[in]`, undefined when nothing was folded.
  const at::Tensor& input_scale(size_t group) const { return input_scales_.at(group); }
  void multiply_input_scale(size_t group, const at::Tensor& scale);

  /// Lays out the weights of a group for products. Needed before samples pass it; done again after `replace`.
  /// A weight that rounds its input (`Weight::quantizes_input`) is run by its own `apply` on whole samples,
  /// with its own arithmetic whatever `precision` says; one that takes fewer multiply-adds than its matrix in
  /// its factors (`Weight::macs_per_token`).
  void prepare(size_t group, linalg::Precision precision);
  /// Frees what `prepare` made for one group, or for all.
  void release(size_t group);
  void release();

  /// Takes a sample, which stands at the input of group `group - 1` (or at the block's input for group 0), to
  /// the input of `group` and returns it, `[tokens, in]`. The memory belongs to `state.work`, or, for groups
  /// whose input is not kept there, to the caller, who passes it as `input`. Needs the groups before `group`
  /// prepared.
  at::Tensor advance(size_t group, SampleState& state, linalg::Scratch& scratch, float* input) const;
  /// From the input of the last group to the block's output, left in `state.hidden`.
  void finish(SampleState& state, linalg::Scratch& scratch) const;
  /// All groups and `finish`: `state.hidden` becomes the block's output. Needs all groups prepared.
  void forward(SampleState& state, linalg::Scratch& scratch, const Tap& tap = {}) const;

 private:
  struct Kernels;

  void project_and_attend(SampleState& state, linalg::Scratch& scratch) const;
  void add_projection(size_t group, SampleState& state, linalg::Scratch& scratch) const;
  void finish_half(size_t group, SampleState& state, linalg::Scratch& scratch) const;
  void expand(SampleState& state, linalg::Scratch& scratch) const;
  void multiply_apart(size_t group, const at::Tensor& x, float* y, linalg::Scratch& scratch) const;
  void normalize(const float* x, const std::string& norm, int64_t rows, float* y) const;
  const float* read_by_half(const float* hidden, const std::string& norm, int64_t rows, float* room) const;
  at::Tensor input_of_half(const at::Tensor& hidden, const std::string& norm, float* out) const;
  const float* norm_values(const std::string& suffix) const;

  void measure();

  const Architecture* architecture_;
  int64_t index_;
  std::vector<LinearOp> ops_;
  BlockWidths widths_;
  std::vector<GroupInfo> groups_;
  std::map<std::string, at::Tensor> norms_;
  std::map<std::string, at::ScalarType> stored_types_;  // of norms and biases; float32 when absent
  std::vector<bool> replaced_;
  std::set<std::string> changed_vectors_;
  std::vector<at::Tensor> input_scales_;  // per group
  std::vector<at::Tensor> kept_inputs_;   // per group
  std::unique_ptr<Kernels> kernels_;
};

}  // namespace lcomp::model
