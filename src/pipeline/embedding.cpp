#include "pipeline/embedding.h"

#include <ATen/ATen.h>

#include "core/stopwatch.h"
#include "lcomp/core/error.h"
#include "lcomp/io/checkpoint.h"
#include "lcomp/io/segmentations.h"
#include "model/weight_formats.h"
#include "pipeline/run.h"

/// The token embedding of a run. It is compressed before the blocks, so that they are calibrated on what they
/// will read.
namespace lcomp::pipeline {
namespace {

using lowrank::EmbeddingMethod;

/// The tokens of a vocabulary by number; names of its own for numbers that no token has.
struct TokenTexts {
  std::vector<std::string> texts;
  std::vector<int64_t> specials;
};

TokenTexts token_texts(const io::Tokenizer& tokenizer, int64_t vocabulary) {
  TokenTexts tokens;
  for (int64_t id = 0; id < vocabulary; ++id) {
    try {
      tokens.texts.push_back(tokenizer.id_to_token(id));
      if (tokenizer.decode({id}, true).empty() && !tokenizer.decode({id}).empty())
        tokens.specials.push_back(id);
    } catch (const InvalidArgument&) {
      tokens.texts.push_back(fmt::format("[unused-{}]", id));
    }
  }
  return tokens;
}

}  // namespace

lowrank::MorphemeIndex token_morphemes(const std::filesystem::path& model, int64_t vocabulary,
                                       const lowrank::EmbeddingOptions& options) {
  lowrank::SegmenterPtr words;
  if (options.segments.empty()) {
    words = std::make_shared<lowrank::AffixSegmenter>();
  } else {
    words = std::make_shared<lowrank::TableSegmenter>(io::read_segmentations(options.segments).words);
  }
  const lowrank::MarkerSegmenter segmenter(words);
  const TokenTexts tokens = token_texts(io::Tokenizer::from_file(model / "tokenizer.json"), vocabulary);
  return lowrank::morpheme_index(tokens.texts, segmenter, options.settled_order(), tokens.specials);
}

std::string embedding_summary(const lowrank::EmbeddingOptions& options) {
  std::string text = fmt::format("{}, {:.4g} times smaller", name_of(options.method), options.ratio);
  if (options.exceptions > 0) text += fmt::format(", {} tokens exact", options.exceptions);
  return text;
}

/// int64 [vocabulary]; undefined without a calibration text.
at::Tensor Run::token_counts() const {
  if (samples_.tokens.sequences.empty()) return {};
  at::Tensor counts = at::zeros({model_.architecture().vocab_size}, at::kLong);
  for (const auto& sequence : samples_.tokens.sequences) {
    for (const int64_t id : sequence) ++counts.data_ptr<int64_t>()[id];
  }
  return counts;
}

lowrank::EmbeddingFit Run::fit_embedding_table() {
  const PhaseClock::Scope scope(clock_, "embedding");
  step("embedding", 0, 1);
  const model::OperatorInfo info = model_.embedding();
  const at::Tensor table = model_.read_finite(info.name + ".weight");
  const auto& morphemes = plan_.morphemes;
  if (morphemes) {
    observer_.note(fmt::format("{} morphemes; {} of {} tokens share theirs with others",
                               morphemes->morphemes.size(), morphemes->collisions, info.out_features));
  }
  lowrank::EmbeddingFit fit =
      lowrank::fit_embedding(table, *job_.embedding, token_counts(), morphemes ? &*morphemes : nullptr,
                             model_.dtype(), static_cast<uint64_t>(job_.seed), &pool_, &observer_);
  step("embedding", 1, 1);
  return fit;
}

/// The compressed table, or null. A resumed run fits it again where it needs it, to the same numbers.
const Weight* Run::embedding_table() {
  if (!job_.embedding) return nullptr;
  if (!embedding_) embedding_ = fit_embedding_table().weight;
  return embedding_.get();
}

void Run::store_embedding(BlockRecord& record) {
  const Stopwatch watch;
  const model::OperatorInfo info = model_.embedding();
  const std::string tensor = info.name + ".weight";
  const lowrank::EmbeddingFit fit = fit_embedding_table();
  embedding_ = fit.weight;
  OperatorRow row;
  row.name = info.name;
  row.kind = info.kind;
  row.pass = static_cast<int64_t>(job_.passes.size());
  row.method = name_of(job_.embedding->method);
  row.scheme = fit.weight->describe();
  row.out_features = info.out_features;
  row.in_features = info.in_features;
  row.bytes_before = static_cast<int64_t>(model_.checkpoint().info(tensor).bytes());
  row.weight_error = fit.relative_error;
  if (job_.write.format == WriteFormat::kDense) {
    const at::Tensor dense = fit.weight->dense().to(model_.dtype());
    writer_->add(tensor, dense);
    record.changed[tensor] = io::MemoryCheckpoint({{tensor, dense}}).hash_of_tensor(tensor);
    describe_as_dense(row, static_cast<int64_t>(dense.nbytes()));
  } else {
    fit.weight->save(*writer_, info.name);
    record.groups[info.name] = model::storage_group(*fit.weight).value();
    record.decoded[info.name] = decoded_hash_of_rows(*fit.weight);
    row.bytes_after = fit.weight->bytes();
    row.bits_per_weight = 8.0 * static_cast<double>(row.bytes_after) /
                          static_cast<double>(info.out_features * info.in_features);
    row.parameters = fit.weight->parameters();
    row.macs = fit.weight->macs_per_token();
  }
  row.seconds = watch.seconds();
  record.operators.push_back(std::move(row));
}

void Run::take_embedding(const BlockRecord& record) {
  record_.copied.erase(model_.embedding().name + ".weight");
  record_.decoded.insert(record.decoded.begin(), record.decoded.end());
  record_.changed.insert(record.changed.begin(), record.changed.end());
  groups_.insert(record.groups.begin(), record.groups.end());
  for (const OperatorRow& row : record.operators) {
    record_.described[row.name] = row.scheme;
    report_.operators.push_back(row);
  }
}

}  // namespace lcomp::pipeline
