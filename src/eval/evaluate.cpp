#include "lcomp/eval/evaluate.h"

#include <malloc.h>

#include "core/stopwatch.h"
#include "eval/logit_sums.h"
#include "lcomp/calib/sample_runner.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"
#include "lcomp/io/text.h"

namespace lcomp::eval {
namespace {

using calib::ActivationCache;
using model::Model;

constexpr int64_t kVocabularyTile = 2048;
constexpr int64_t kTokenChunk = linalg::PackedMatrix::kRowChunk;
enum Slot : size_t { kModelLogits = linalg::kFirstFreeSlot, kReferenceLogits };

void check_cancelled(Observer& observer) {
  if (observer.cancelled()) throw Interrupted("evaluate", "the run was asked to stop");
}

/// The hidden states of one model on all windows, block after block.
class Stream {
 public:
  Stream(const Model& model, const EvaluationText& text, ThreadPool& pool)
      : model_(model),
        hidden_(std::vector<int64_t>(text.windows.size(), text.window), model.architecture().hidden_size,
                ActivationCache::Storage::kMemory),
        runner_(pool, model.architecture(), hidden_, nullptr, text.window) {
    for (size_t i = 0; i < text.windows.size(); ++i)
      hidden_.store(static_cast<int64_t>(i), model.embed(text.windows[i]));
  }

  void pass_block(int64_t i, linalg::Precision precision) {
    model::Block block = model_.load_block(i);
    for (size_t g = 0; g < block.groups().size(); ++g) block.prepare(g, precision);
    runner_.forward(block);
  }

  void final_norm() {
    for (int64_t i = 0; i < hidden_.samples(); ++i) {
      at::Tensor states = hidden_.load(i, hidden_.width());
      model_.final_norm(states);
      hidden_.store(i, states);
    }
  }

  const Model& model() const { return model_; }
  int64_t windows() const { return hidden_.samples(); }
  int64_t values_per_window() const { return hidden_.length(0) * hidden_.width(); }
  const float* states(int64_t window) const {
    return hidden_.load(window, hidden_.width()).data_ptr<float>();
  }

 private:
  const Model& model_;
  ActivationCache hidden_;
  calib::SampleRunner runner_;
};

/// |Y - Y'|_F / |Y|_F over all windows: Y the hidden states of `reference`, Y' those of `model`.
double drift(const Stream& model, const Stream& reference, ThreadPool& pool) {
  struct Squares {
    double difference = 0;
    double reference = 0;
  };
  std::vector<Squares> of_window(static_cast<size_t>(model.windows()));
  pool.parallel_for(model.windows(), [&](int64_t w, int) {
    const float* ours = model.states(w);
    const float* dense = reference.states(w);
    Squares sum;
    for (int64_t i = 0; i < model.values_per_window(); ++i) {
      const double difference = double{dense[i]} - double{ours[i]};
      sum.difference += difference * difference;
      sum.reference += double{dense[i]} * double{dense[i]};
    }
    of_window[static_cast<size_t>(w)] = sum;
  });
  Squares sum;
  for (const Squares& window : of_window) {
    sum.difference += window.difference;
    sum.reference += window.reference;
  }
  return std::sqrt(sum.difference / sum.reference);
}

/// Whether the hidden states of two models behind each block can be compared.
bool same_shape(const Model& a, const Model& b) {
  return a.size() == b.size() && a.architecture().hidden_size == b.architecture().hidden_size;
}

/// Up to kTokenChunk scored positions of one window.
struct Chunk {
  int64_t window = 0;
  int64_t position = 0;
  int64_t count = 0;
  int64_t first_result = 0;  ///< index of its first token among all scored tokens
};

std::vector<Chunk> scored_chunks(const EvaluationText& text) {
  std::vector<Chunk> chunks;
  int64_t scored = 0;
  for (size_t w = 0; w < text.windows.size(); ++w) {
    for (int64_t p = text.first_scored(w); p < text.window - 1; p += kTokenChunk) {
      const int64_t count = std::min(kTokenChunk, text.window - 1 - p);
      chunks.push_back({static_cast<int64_t>(w), p, count, scored});
      scored += count;
    }
  }
  return chunks;
}

struct TokenSums {
  LogitSums model;
  ReferenceSums reference;
};

/// Passes one tile of the vocabulary over one chunk of tokens.
class HeadPass {
 public:
  HeadPass(const EvaluationText& text, const Stream& model, const Stream* reference, ThreadPool& pool)
      : text_(text), model_(model), reference_(reference), chunks_(scored_chunks(text)) {
    sums_.resize(
        static_cast<size_t>(chunks_.empty() ? 0 : chunks_.back().first_result + chunks_.back().count));
    for (int t = 0; t < pool.size(); ++t) scratch_.emplace_back();
  }

  void add_vocabulary_tile(int64_t first_id, int64_t count, linalg::Precision precision, ThreadPool& pool) {
    const linalg::PackedMatrix head({model_.model().head_rows(first_id, count)}, precision);
    std::optional<linalg::PackedMatrix> reference_head;
    if (reference_ != nullptr)
      reference_head.emplace(std::vector{reference_->model().head_rows(first_id, count)}, precision);
    pool.parallel_for(static_cast<int64_t>(chunks_.size()), [&](int64_t c, int worker) {
      const Chunk& chunk = chunks_[static_cast<size_t>(c)];
      linalg::Scratch& scratch = scratch_[static_cast<size_t>(worker)];
      float* q = scratch.floats(kModelLogits, kTokenChunk * count);
      multiply(model_, head, chunk, q, scratch);
      float* p = nullptr;
      if (reference_head) {
        p = scratch.floats(kReferenceLogits, kTokenChunk * count);
        multiply(*reference_, *reference_head, chunk, p, scratch);
      }
      for (int64_t t = 0; t < chunk.count; ++t) {
        add_token(chunk, t, first_id, count, q + t * count, p == nullptr ? nullptr : p + t * count);
      }
    });
  }

  const std::vector<TokenSums>& sums() const { return sums_; }

 private:
  static void multiply(const Stream& stream, const linalg::PackedMatrix& head, const Chunk& chunk,
                       float* logits, linalg::Scratch& scratch) {
    const float* states = stream.states(chunk.window) + chunk.position * head.in_features();
    head.multiply(states, chunk.count, logits, false, scratch);
  }

  void add_token(const Chunk& chunk, int64_t t, int64_t first_id, int64_t count, const float* q,
                 const float* p) {
    TokenSums& sums = sums_[static_cast<size_t>(chunk.first_result + t)];
    const int64_t target =
        text_.windows[static_cast<size_t>(chunk.window)][static_cast<size_t>(chunk.position + t + 1)];
    const bool here = target >= first_id && target < first_id + count;
    add_tile(q, first_id, count, sums.model);
    if (here) sums.model.target = q[target - first_id];
    if (p == nullptr) return;
    add_tile(p, q, first_id, count, sums.reference);
    if (here) sums.reference.own.target = p[target - first_id];
  }

  const EvaluationText& text_;
  const Stream& model_;
  const Stream* reference_;
  std::vector<Chunk> chunks_;
  std::vector<TokenSums> sums_;
  std::vector<linalg::Scratch> scratch_;
};

Evaluation summarize(const std::vector<TokenSums>& sums, bool with_reference) {
  Evaluation out;
  double loss = 0;
  double reference_loss = 0;
  double divergence = 0;
  int64_t agreements = 0;
  for (const TokenSums& token : sums) {
    loss += token.model.log_normalizer() - token.model.target;
    if (!with_reference) continue;
    reference_loss += token.reference.own.log_normalizer() - token.reference.own.target;
    divergence += token.reference.divergence(token.model);
    agreements += token.reference.own.best == token.model.best ? 1 : 0;
  }
  if (!std::isfinite(loss) || !std::isfinite(reference_loss) || !std::isfinite(divergence)) {
    throw NumericalError("evaluate",
                         fmt::format("the loss must be finite; the sums over {} tokens are {} (model), {} "
                                     "(reference) and {} (divergence)",
                                     sums.size(), loss, reference_loss, divergence));
  }
  const auto count = static_cast<double>(sums.size());
  out.tokens = static_cast<int64_t>(sums.size());
  out.perplexity = std::exp(loss / count);
  if (with_reference) {
    out.reference_perplexity = std::exp(reference_loss / count);
    out.kl_mean = divergence / count;
    out.top1_agreement = static_cast<double>(agreements) / count;
  }
  return out;
}

}  // namespace

EvaluationText make_evaluation_text(const std::vector<int64_t>& ids, const WindowOptions& options,
                                    const std::string& where) {
  if (options.window < 2)
    throw ConfigError(where,
                      fmt::format("the window must have at least 2 tokens; received {}", options.window));
  const int64_t stride = options.stride == 0 ? options.window : options.stride;
  if (stride < 1 || stride > options.window) {
    throw ConfigError(
        where, fmt::format("the stride must lie in [1, window = {}]; received {}", options.window, stride));
  }
  EvaluationText text;
  text.window = options.window;
  text.stride = stride;
  text.file = where;
  const auto total = static_cast<int64_t>(ids.size());
  for (int64_t begin = 0; begin + options.window <= total; begin += stride) {
    if (options.max_windows > 0 && static_cast<int64_t>(text.windows.size()) == options.max_windows) break;
    text.windows.emplace_back(ids.begin() + begin, ids.begin() + begin + options.window);
  }
  if (text.windows.empty()) {
    throw ConfigError(where,
                      fmt::format("the evaluation text must have at least one window of {} tokens; it has {}",
                                  options.window, total));
  }
  return text;
}

EvaluationText read_evaluation_text(const std::filesystem::path& text, const io::Tokenizer& tokenizer,
                                    const WindowOptions& options) try {
  const std::string content = io::read_file(text);
  io::require_utf8(content, text.string());
  EvaluationText out =
      make_evaluation_text(tokenizer.encode(io::with_unix_line_ends(content)), options, text.string());
  out.text_hash = io::hash_of(content);
  out.tokenizer_hash = tokenizer.hash();
  return out;
} catch (const ConfigError& error) {  // of what the file holds, not of the job
  throw CorruptFile(error);
}

Evaluation evaluate(const Model& model, const Model* reference, const EvaluationText& text,
                    linalg::Precision precision, ThreadPool& pool, Observer& observer) {
  const int64_t vocabulary = model.architecture().vocab_size;
  if (reference != nullptr && reference->architecture().vocab_size != vocabulary) {
    throw InvalidArgument(
        "evaluate",
        fmt::format("model and reference must share their vocabulary; they have {} and {} entries",
                    vocabulary, reference->architecture().vocab_size));
  }
  const Stopwatch watch;
  Stream stream(model, text, pool);
  std::optional<Stream> reference_stream;
  if (reference != nullptr) reference_stream.emplace(*reference, text, pool);
  const int64_t blocks = std::max(model.size(), reference == nullptr ? 0 : reference->size());
  const int64_t tiles = (vocabulary + kVocabularyTile - 1) / kVocabularyTile;
  std::vector<double> drifts;
  for (int64_t i = 0; i < blocks; ++i) {
    check_cancelled(observer);
    if (i < model.size()) stream.pass_block(i, precision);
    if (reference_stream && i < reference->size()) reference_stream->pass_block(i, precision);
    if (reference_stream && same_shape(model, *reference))
      drifts.push_back(drift(stream, *reference_stream, pool));
    malloc_trim(0);  // the pages of the blocks just freed
    observer.progress({"evaluate", i + 1, blocks + tiles, fmt::format("block {} of {}", i + 1, blocks)});
  }
  stream.final_norm();
  if (reference_stream) reference_stream->final_norm();

  HeadPass head(text, stream, reference_stream ? &*reference_stream : nullptr, pool);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    check_cancelled(observer);
    const int64_t first = tile * kVocabularyTile;
    head.add_vocabulary_tile(first, std::min(kVocabularyTile, vocabulary - first), precision, pool);
    observer.progress({"evaluate", blocks + tile + 1, blocks + tiles, "head"});
  }
  Evaluation out = summarize(head.sums(), reference != nullptr);
  out.output_drift = std::move(drifts);
  out.windows = static_cast<int64_t>(text.windows.size());
  out.seconds = watch.seconds();
  return out;
}

std::string protocol(const EvaluationText& text, linalg::Precision precision) {
  const std::string scored =
      text.stride == text.window
          ? fmt::format("the last {} tokens of each", text.window - 1)
          : fmt::format("all of the first and the last {} tokens of each other", text.stride);
  return fmt::format(
      "text tokenized whole without special tokens, {} windows of {} tokens every {} tokens, mean loss over "
      "{}; {} "
      "arithmetic on the stored weights",
      text.windows.size(), text.window, text.stride, scored,
      precision == linalg::Precision::kBf16 ? "bfloat16 (sums in float32)" : "float32");
}

}  // namespace lcomp::eval
