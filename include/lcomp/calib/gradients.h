#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lcomp/calib/activation_cache.h"
#include "lcomp/core/threads.h"
#include "lcomp/linalg/gemm.h"
#include "lcomp/model/model.h"

namespace lcomp::calib {

/// Which derivatives of the loss are wanted.
struct GradientNeeds {
  bool squares = false;   ///< sum over samples of g_s^2, per weight (the Fisher information's diagonal)
  bool products = false;  ///< w times the sum over samples of g_s, per weight (first-order Taylor)
  bool masks = false;     ///< per sample, of a factor of each attention head and feed-forward channel
  bool moments = false;   ///< sums over tokens with squared gradients by the operators' outputs

  bool any() const { return squares || products || masks || moments; }
};

/// The derivatives for one block. Tensors that were not asked for are undefined.
struct BlockGradients {
  std::vector<at::Tensor> squares;   ///< per operator, float32 `[out, in]`
  std::vector<at::Tensor> products;  ///< per operator, float32 `[out, in]`
  at::Tensor heads;                  ///< float32 `[samples, heads]`
  at::Tensor channels;               ///< float32 `[samples, intermediate]`
  /// Of what each group of operators reads, float32 `[in, in]`: sum over tokens of |g|^2 x x^T, with the
  /// gradients g of the loss by the outputs of all its operators.
  std::vector<at::Tensor> moments;
  std::vector<at::Tensor> outputs;  ///< per operator, float32 `[out]`: sum over tokens of g_o^2
};

struct GradientOptions {
  /// Where the inputs of all blocks are kept: on disk (at `directory`), or in memory, which then grows with
  /// the number of blocks.
  ActivationCache::Storage storage = ActivationCache::Storage::kDisk;
  std::filesystem::path directory = {};
  /// Of the forward sweep and the head. The backward sweep is float32.
  linalg::Precision precision = linalg::Precision::kF32;
  /// Tokens that pass the head together; bounds the memory for them.
  int64_t head_tokens = 8192;
  /// Of the probes of an encoder's embeddings.
  uint64_t seed = 0;
};

/// Derivatives of the loss with one block in memory at a time.
///
/// A forward sweep keeps each block's input, the head gives the loss and its derivative by the last hidden
/// states, and then the blocks come once more, from last to first: each is run again under automatic
/// differentiation, takes the derivative by its output and leaves that by its input. Costs about 4 forward
/// passes in arithmetic: one for the inputs, and per block one again and two for the products of the backward
/// pass.
///
/// The loss of a sample is the sum of -log p over its predicted tokens, divided by the mean number of
/// predicted tokens per sample. So for samples of one length it is the usual mean over tokens; the mean over
/// the samples is the mean over all tokens whatever their lengths; and g_s, the gradient of one sample's
/// loss, weighs each token alike. Squares are taken per sample, before the sum over samples.
///
/// Encoders have no such loss. That of a sample is then its sentence embedding times a normal random vector
/// of its own, so that the mean of g_s^2 over these vectors is the diagonal of the Gauss-Newton matrix of
/// half the squared error of the embedding, which is the Fisher information of a unit Gaussian around it.
///
/// Samples run in parallel, each on one thread, and enter the sums in their order: the result does not depend
/// on the number of threads, nor on where the inputs are kept.
class GradientSweep {
 public:
  /// Every sequence must have at least 2 tokens (InvalidArgument).
  GradientSweep(const model::Model& model, const std::vector<std::vector<int64_t>>& sequences,
                const GradientOptions& options, ThreadPool& pool);
  ~GradientSweep();
  GradientSweep(const GradientSweep&) = delete;
  GradientSweep& operator=(const GradientSweep&) = delete;

  /// Embeds the samples; they stand at the input of block 0.
  void start();
  /// Takes the samples through block `i`, keeping its input. For i = 0, 1, ... in order.
  void forward(int64_t i);
  /// After the last block: the loss, and its derivative by the last block's output.
  void head();
  /// Mean over the samples of their loss: the mean of -log p over all predicted tokens, or of the projected
  /// embeddings.
  double loss() const;

  /// The derivatives for block `i`, after those of block i + 1. `needs` may differ from block to block; with
  /// none the block only hands on the derivative by its input. That by the input of block `last` is not made.
  BlockGradients backward(int64_t i, const GradientNeeds& needs, int64_t last = 0);

  /// The derivative by the input of the block that `backward` did last, so that a later sweep can go on from
  /// there after its own forward part; returns the hash of the file. `restore` throws CorruptFile when the
  /// file has another size.
  std::string save(const std::filesystem::path& file) const;
  std::string restore(const std::filesystem::path& file);

  /// Floating-point operations so far, counted from the shapes, and the processor seconds they took.
  double flops() const;
  double cpu_seconds() const;

  /// Bytes that the kept inputs take, wherever they are.
  static uint64_t cache_bytes(const model::Architecture& architecture, const std::vector<int64_t>& lengths);
  /// Floating-point operations of a whole sweep.
  static double planned_flops(const model::Architecture& architecture, const std::vector<int64_t>& lengths);
  /// Estimated bytes in memory that do not depend on the number of samples or blocks: what one block's
  /// backward pass takes on `threads` samples of `length` tokens, and the head.
  static uint64_t working_bytes(const model::Architecture& architecture, int64_t length, int threads,
                                const GradientOptions& options);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The derivatives of every block at once, for models that fit in memory with all of them.
struct ModelGradients {
  double loss = 0;
  std::vector<BlockGradients> blocks;
};
ModelGradients model_gradients(const model::Model& model, const std::vector<std::vector<int64_t>>& sequences,
                               const GradientNeeds& needs, const GradientOptions& options, ThreadPool& pool);

}  // namespace lcomp::calib
