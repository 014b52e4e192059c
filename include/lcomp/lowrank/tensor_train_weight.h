#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "lcomp/core/weight.h"
#include "lcomp/lowrank/tensor_train.h"

namespace lcomp::lowrank {

/// The tensors that a TensorTrainWeight is stored as.
struct TensorTrainParts {
  at::Tensor shape;  ///< `<name>.weight_tt_shape` int64 [2 + 2 d] = out, in, m_1 ... m_d, n_1 ... n_d
  std::vector<at::Tensor> cores;  ///< `<name>.weight_tt_core<k>` [r_k-1, m_k, n_k, r_k], k from 0
  at::Tensor input_scale;         ///< `<name>.weight_tt_input_scale` [in], undefined when there is none
};

/// A matrix as a tensor train over pairs of digits of its row and its column (tensor_train.h; Novikov et al.
/// 2015), with the columns scaled: W = TT diag(s), where s may be absent. Two cores are a sum of Kronecker
/// products. Embeddings (Khrulkov et al. 2019) look rows up without the table.
class TensorTrainWeight final : public Weight {
 public:
  /// cores: 1 to 16, [r_k-1, m_k, n_k, r_k], all float32, bfloat16 or float16, r_0 = r_d = 1. out and in are
  /// at most the products of m_k and n_k, and at least a 2^d-th of them. input_scale: undefined, or [in] of
  /// one of these types. Throws InvalidArgument otherwise.
  TensorTrainWeight(int64_t out, int64_t in, std::vector<at::Tensor> cores, at::Tensor input_scale = {});

  /// The cores of `matrix` in `type`.
  TensorTrainWeight(const TrainMatrix& matrix, at::ScalarType type, at::Tensor input_scale = {});

  /// How many cores a stored shape goes with; throws CorruptFile naming `<name>.weight_tt_shape` when it is
  /// no shape.
  static int64_t core_count(const at::Tensor& shape, const std::string& name);
  /// Takes what `save` wrote. Throws CorruptFile naming the tensor `<name>.weight_tt_...` that is wrong.
  static TensorTrainWeight from_stored(TensorTrainParts parts, const std::string& name);

  int64_t out_features() const override { return out_; }
  int64_t in_features() const override { return in_; }
  at::Tensor dense() const override;
  /// Contracts the cores one by one, from the side that costs less; the matrix is never formed.
  at::Tensor apply(const at::Tensor& x) const override;
  /// Products of the slices of the cores, from the first to the last. Throws InvalidArgument for ids outside
  /// of [0, out).
  at::Tensor rows(const at::Tensor& ids) const override;
  /// Elements of the cores and of the scale.
  int64_t parameters() const override;
  /// The cheaper of both directions (`train_cost`), and one multiplication per column when scaled.
  int64_t macs_per_token() const override;
  int64_t bytes() const override;
  std::string describe() const override;
  void save(TensorSink& sink, const std::string& name) const override;

  const std::vector<at::Tensor>& cores() const { return parts_.cores; }
  /// Undefined when there is none.
  const at::Tensor& input_scale() const { return parts_.input_scale; }
  const TrainCost& cost() const { return cost_; }

 private:
  explicit TensorTrainWeight(TensorTrainParts parts);

  at::Tensor contract_from_left(const at::Tensor& x) const;
  at::Tensor contract_from_right(const at::Tensor& x) const;

  TensorTrainParts parts_;
  int64_t out_ = 0;
  int64_t in_ = 0;
  std::vector<int64_t> row_shape_, col_shape_, ranks_;
  TrainCost cost_;
  int64_t largest_state_ = 0;         // elements per vector of the largest temporary
  std::vector<at::Tensor> matrices_;  // float32, each core as the contraction multiplies it
};

}  // namespace lcomp::lowrank
