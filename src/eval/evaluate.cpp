#include "lcomp/eval/evaluate.h"

#include <malloc.h>

#include <sstream>

#include "core/stopwatch.h"
#include "eval/logit_sums.h"
#include "eval/stream.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"
#include "lcomp/io/text.h"

namespace lcomp::eval {
namespace {

using model::Model;

constexpr int64_t kVocabularyTile = 2048;
constexpr int64_t kTokenChunk = linalg::PackedMatrix::kRowChunk;
enum Slot : size_t { kModelLogits = linalg::kFirstFreeSlot, kReferenceLogits };

void check_cancelled(Observer& observer) {
  if (observer.cancelled()) throw Interrupted("evaluate", "the run was asked to stop");
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

void summarize(const std::vector<TokenSums>& sums, bool with_reference, Evaluation& out) {
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
}

/// What the two models must have in common to be compared.
void check_comparable(const Model& model, const Model* reference, const EvaluationText& text) {
  const model::Architecture& a = model.architecture();
  if (a.is_language_model() == text.of_sentences) {
    throw InvalidArgument("evaluate",
                          fmt::format("the text must be {}; it is {}",
                                      text.of_sentences ? "windows of a running text for a language model"
                                                        : "sentences for an encoder",
                                      text.of_sentences ? "sentences" : "windows"));
  }
  if (reference == nullptr) {
    if (a.is_language_model()) return;
    throw InvalidArgument("evaluate",
                          "an encoder is measured by its embeddings beside those of the dense model, which "
                          "must be given as reference; there is none");
  }
  const model::Architecture& b = reference->architecture();
  if (a.is_language_model() != b.is_language_model()) {
    throw InvalidArgument(
        "evaluate",
        fmt::format("model and reference must be of one kind; they are {} and {}", a.family, b.family));
  }
  if (a.vocab_size != b.vocab_size) {
    throw InvalidArgument("evaluate",
                          fmt::format("model and reference must share their vocabulary; they have {} and {} "
                                      "entries",
                                      a.vocab_size, b.vocab_size));
  }
  if (!a.is_language_model() && a.hidden_size != b.hidden_size) {
    throw InvalidArgument("evaluate", fmt::format("embeddings must be of one width to be compared; they have "
                                                  "{} and {} values",
                                                  a.hidden_size, b.hidden_size));
  }
}

void require_room(const WindowOptions& options, const io::SpecialTokens& special, const std::string& where) {
  if (options.window > special.count()) return;
  throw ConfigError(where, fmt::format("the window must have room for a token beside the {} special ones; it "
                                       "has {} tokens",
                                       special.count(), options.window));
}

/// Similarities of all pairs are kept while they are ranked.
constexpr size_t kMostSentences = 4096;

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

EvaluationText read_sentences(const std::filesystem::path& text, const io::Tokenizer& tokenizer,
                              const WindowOptions& options) try {
  const std::string content = io::read_file(text);
  const std::string where = text.string();
  io::require_utf8(content, where);
  const io::SpecialTokens special = tokenizer.special_tokens();
  require_room(options, special, where);
  EvaluationText out;
  out.of_sentences = true;
  out.file = where;
  out.text_hash = io::hash_of(content);
  out.tokenizer_hash = tokenizer.hash();
  std::istringstream lines(io::with_unix_line_ends(content));
  for (std::string line; std::getline(lines, line);) {
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    if (options.max_windows > 0 && static_cast<int64_t>(out.windows.size()) == options.max_windows) break;
    std::vector<int64_t> ids = tokenizer.encode(line);
    const auto room = static_cast<size_t>(options.window - special.count());
    if (ids.size() > room) {
      ids.resize(room);
      ++out.truncated;
    }
    out.windows.push_back(special.around(ids));
    out.window = std::max(out.window, static_cast<int64_t>(out.windows.back().size()));
  }
  if (out.windows.size() < 3 || out.windows.size() > kMostSentences) {
    throw ConfigError(where, fmt::format("the text must have 3 to {} sentences, one a line; it has {}",
                                         kMostSentences, out.windows.size()));
  }
  return out;
} catch (const ConfigError& error) {  // of what the file holds, not of the job
  throw CorruptFile(error);
}

EvaluationText read_evaluation_text(const model::Model& model, const std::filesystem::path& text,
                                    const io::Tokenizer& tokenizer, const WindowOptions& options) {
  const model::Architecture& a = model.architecture();
  if (a.is_language_model()) return read_evaluation_text(text, tokenizer, options);
  WindowOptions within = options;
  within.window = std::min(options.window, a.max_positions);
  return read_sentences(text, tokenizer, within);
}

Evaluation evaluate(const Model& model, const Model* reference, const EvaluationText& text,
                    linalg::Precision precision, ThreadPool& pool, Observer& observer) {
  check_comparable(model, reference, text);
  const Stopwatch watch;
  Stream stream(model, text.windows, pool);
  std::optional<Stream> reference_stream;
  if (reference != nullptr) reference_stream.emplace(*reference, text.windows, pool);
  const int64_t blocks = std::max(model.size(), reference == nullptr ? 0 : reference->size());
  const int64_t vocabulary = model.architecture().vocab_size;
  const int64_t tiles = text.of_sentences ? 0 : (vocabulary + kVocabularyTile - 1) / kVocabularyTile;
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
  Evaluation out;
  out.output_drift = std::move(drifts);
  out.windows = static_cast<int64_t>(text.windows.size());
  if (text.of_sentences) {
    out.embedding = compare_embeddings(stream.embeddings(pool), reference_stream->embeddings(pool));
    for (const auto& ids : text.windows) out.tokens += static_cast<int64_t>(ids.size());
    out.seconds = watch.seconds();
    return out;
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
  summarize(head.sums(), reference != nullptr, out);
  out.seconds = watch.seconds();
  return out;
}

std::string protocol(const EvaluationText& text, linalg::Precision precision) {
  const std::string arithmetic =
      fmt::format("{} arithmetic on the stored weights",
                  precision == linalg::Precision::kBf16 ? "bfloat16 (sums in float32)" : "float32");
  if (text.of_sentences) {
    return fmt::format(
        "{} sentences of the text, each with the tokenizer's special tokens{}; pooled states of the last "
        "block, "
        "divided by their length; cosine with the dense model's, rank correlation over all pairs; {}",
        text.windows.size(),
        text.truncated > 0 ? fmt::format(", {} of them cut to {} tokens", text.truncated, text.window) : "",
        arithmetic);
  }
  const std::string scored =
      text.stride == text.window
          ? fmt::format("the last {} tokens of each", text.window - 1)
          : fmt::format("all of the first and the last {} tokens of each other", text.stride);
  return fmt::format(
      "text tokenized whole without special tokens, {} windows of {} tokens every {} tokens, mean loss over "
      "{}; {}",
      text.windows.size(), text.window, text.stride, scored, arithmetic);
}

}  // namespace lcomp::eval
