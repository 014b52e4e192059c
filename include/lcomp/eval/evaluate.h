#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "lcomp/core/observer.h"
#include "lcomp/core/threads.h"
#include "lcomp/eval/embeddings.h"
#include "lcomp/io/tokenizer.h"
#include "lcomp/linalg/gemm.h"
#include "lcomp/model/model.h"

namespace lcomp::eval {

/// How a text becomes windows. The text is tokenized whole, without special tokens, and cut into windows of
/// `window` tokens that begin every `stride` tokens; a last, shorter window is left out.
struct WindowOptions {
  int64_t window = 2048;
  int64_t stride = 0;       ///< 0: `window`, no overlap (the protocol of the GPTQ paper)
  int64_t max_windows = 0;  ///< 0: all
};

/// A text as token windows, with what identifies it.
struct EvaluationText {
  std::vector<std::vector<int64_t>> windows;
  bool of_sentences = false;  ///< each window is a sentence of its own length, for encoders
  int64_t truncated = 0;      ///< sentences that were cut
  int64_t window = 0;         ///< tokens in each; in the longest sentence
  int64_t stride = 0;
  std::string file;
  std::string text_hash;
  std::string tokenizer_hash;

  /// Predictions that are scored: all of the first window, the last `stride` ones of each other.
  int64_t first_scored(size_t index) const {
    return index == 0 ? 0 : std::max<int64_t>(0, window - 1 - stride);
  }
};

/// Reads a UTF-8 text; line ends of every kind count as "\n". Throws CorruptFile when the text
/// cannot be read, is not UTF-8, or does not fit the options.
EvaluationText read_evaluation_text(const std::filesystem::path& text, const io::Tokenizer& tokenizer,
                                    const WindowOptions& options);
/// The same from token ids; ConfigError when they are fewer than a window, or the options make no sense.
EvaluationText make_evaluation_text(const std::vector<int64_t>& ids, const WindowOptions& options,
                                    const std::string& where);

/// Reads a text of sentences, one a line; empty lines are skipped. Each is tokenized by itself, with special
/// tokens, and cut at its end to `options.window` tokens, the special ones included; `max_windows` is the
/// number of sentences to take, `stride` has no meaning. Errors as above.
EvaluationText read_sentences(const std::filesystem::path& text, const io::Tokenizer& tokenizer,
                              const WindowOptions& options);

/// The text as models of this kind are measured on it: windows of a running text for language models,
/// sentences of at most as many tokens as there are positions for encoders.
EvaluationText read_evaluation_text(const model::Model& model, const std::filesystem::path& text,
                                    const io::Tokenizer& tokenizer, const WindowOptions& options);

/// Scores of a model on a text. Sums are in double, in the order of the tokens.
struct Evaluation {
  /// exp of the mean negative log-likelihood of the scored tokens; of a language model.
  std::optional<double> perplexity;
  std::optional<EmbeddingScores> embedding;  ///< of an encoder
  int64_t tokens = 0;                        ///< scored tokens; all of the sentences
  int64_t windows = 0;
  double seconds = 0;
  std::optional<double> reference_perplexity;
  std::optional<double> kl_mean;         ///< mean over scored tokens of KL(reference || model), in nats
  std::optional<double> top1_agreement;  ///< share of scored tokens where both rank the same token first
  /// For each block |Y - Y'|_F / |Y|_F of the hidden states behind it on all windows, Y of the reference and
  /// Y' of the model; the errors of all earlier blocks are part of it. Empty without a reference, or when the
  /// two differ in the number of blocks or in width.
  std::vector<double> output_drift;
};

/// Runs `model`, and `reference` beside it when given, over all windows. Both are streamed: one block of each
/// is in memory at a time, the head is read in tiles, and no logits of a whole window exist. An encoder is
/// measured by its sentence embeddings beside those of `reference`, which it must have. Throws
/// InvalidArgument when text and models do not fit each other.
Evaluation evaluate(const model::Model& model, const model::Model* reference, const EvaluationText& text,
                    linalg::Precision precision, ThreadPool& pool, Observer& observer);

/// One sentence that says how the numbers were made, to be printed beside them.
std::string protocol(const EvaluationText& text, linalg::Precision precision);

}  // namespace lcomp::eval
