#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "lcomp/core/threads.h"
#include "lcomp/linalg/gemm.h"
#include "lcomp/model/model.h"

namespace lcomp::calib {

/// The language-model loss of some samples and its derivative by the states in front of the final norm.
///
/// The vocabulary passes in tiles, once: with z the logits of a tile, m their running maximum and
/// W its rows of the head, sum_v exp(z_v - m) and sum_v exp(z_v - m) W_v are carried along and rescaled when
/// m grows (online softmax), so that no logits of more than a tile and a chunk of tokens exist.
class LossHead {
 public:
  LossHead(const model::Model& model, linalg::Precision precision, ThreadPool& pool);

  /// states[i] `[tokens_i, hidden]` becomes the derivative of scale * sum_t -log p(ids_i[t + 1] | ids_i[..t])
  /// by it; -log p of all predicted tokens is added to `loss` token by token, in the order given.
  void replace_by_gradient(std::vector<at::Tensor>& states,
                           const std::vector<const std::vector<int64_t>*>& ids, double scale, double& loss);

 private:
  /// Up to a kernel's chunk of consecutive predicting positions of one sample.
  struct Chunk {
    size_t sample = 0;
    int64_t begin = 0;
    int64_t count = 0;
  };
  struct Sums;

  void add_tile(int64_t first_id, int64_t count, const std::vector<Chunk>& chunks,
                const std::vector<at::Tensor>& normalized,
                const std::vector<const std::vector<int64_t>*>& ids, std::vector<Sums>& sums);
  void finish(const std::vector<const std::vector<int64_t>*>& ids, double scale, std::vector<Sums>& sums,
              double& loss);

  const model::Model& model_;
  linalg::Precision precision_;
  ThreadPool& pool_;
  at::Tensor norm_;
  std::vector<linalg::Scratch> scratch_;  // per thread
};

}  // namespace lcomp::calib
