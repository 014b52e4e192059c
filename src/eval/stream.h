#pragma once

#include "lcomp/calib/activation_cache.h"
#include "lcomp/calib/sample_runner.h"
#include "lcomp/model/model.h"

namespace lcomp::eval {

/// The hidden states of one model on some sequences, block after block.
class Stream {
 public:
  Stream(const model::Model& model, const std::vector<std::vector<int64_t>>& sequences, ThreadPool& pool);

  void pass_block(int64_t i, linalg::Precision precision);
  void final_norm();
  /// The embedding of each sequence, `[sequences, hidden]`, of an encoder behind its last block.
  at::Tensor embeddings(ThreadPool& pool) const;

  const model::Model& model() const { return model_; }
  int64_t sequences() const { return hidden_.samples(); }
  int64_t values_of(int64_t sequence) const { return hidden_.length(sequence) * hidden_.width(); }
  const float* states(int64_t sequence) const {
    return hidden_.load(sequence, hidden_.width()).data_ptr<float>();
  }

 private:
  const model::Model& model_;
  calib::ActivationCache hidden_;
  calib::SampleRunner runner_;
};

/// |Y - Y'|_F / |Y|_F over all sequences: Y the hidden states of `reference`, Y' those of `model`.
double drift(const Stream& model, const Stream& reference, ThreadPool& pool);

/// Whether the hidden states of two models behind each block can be compared.
bool same_shape(const model::Model& a, const model::Model& b);

}  // namespace lcomp::eval
