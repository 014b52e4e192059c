#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "cli/command.h"
#include "lcomp/core/error.h"
#include "lcomp/eval/evaluate.h"

namespace lcomp::cli {
namespace {

struct EvalArguments {
  std::string directory;
  std::string text;
  std::string reference;
  std::string compute = "f32";
  eval::WindowOptions windows;
};

void declare(CLI::App& app, EvalArguments& arguments) {
  app.add_option("DIR", arguments.directory, "Model directory, dense or compressed")->required();
  app.add_option("--text", arguments.text, "UTF-8 text to measure on")->required()->type_name("FILE");
  app.add_option("--window", arguments.windows.window,
                 "Tokens per window; of an encoder, most tokens of a sentence")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 30).description(""))
      ->type_name("N");
  app.add_option("--stride", arguments.windows.stride, "Tokens between the starts of windows; 0: no overlap")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30).description(""))
      ->type_name("N");
  app.add_option("--max-windows", arguments.windows.max_windows, "Windows to measure, from the start; 0: all")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30).description(""))
      ->type_name("N");
  app.add_option("--reference", arguments.reference,
                 "Dense model: also KL divergence and top-1 agreement with it; encoders need it")
      ->type_name("DIR");
  app.add_option("--compute", arguments.compute, "Precision of the matrix products")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
}

/// What was measured, and on what.
struct Measured {
  eval::Evaluation scores;
  eval::EvaluationText text;
  linalg::Precision precision;
  uint64_t bytes = 0;
  int64_t parameters = 0;

  double bits_per_weight() const {
    return 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters);
  }
};

Measured measure(const EvalArguments& arguments, int threads, Observer& observer) {
  Measured result;
  result.precision = arguments.compute == "bf16" ? linalg::Precision::kBf16 : linalg::Precision::kF32;
  const model::Model model = model::Model::open(arguments.directory);
  std::optional<model::Model> reference;
  if (!arguments.reference.empty()) reference = model::Model::open(arguments.reference);
  for (const std::string& warning : model.warnings()) observer.warning(warning);
  const model::Architecture& architecture = model.architecture();
  const std::string beyond = model::beyond_positions(architecture, arguments.windows.window);
  if (!beyond.empty() && architecture.is_language_model()) observer.warning("--window: " + beyond);
  if (!reference && !architecture.is_language_model()) {
    throw ConfigError("--reference",
                      "an encoder is measured by its embeddings beside those of the dense model, which must "
                      "be named; it is not");
  }

  const auto tokenizer =
      io::Tokenizer::from_file(std::filesystem::path(arguments.directory) / "tokenizer.json");
  result.text = eval::read_evaluation_text(model, arguments.text, tokenizer, arguments.windows);
  ThreadPool pool(threads);
  result.scores =
      eval::evaluate(model, reference ? &*reference : nullptr, result.text, result.precision, pool, observer);
  result.bytes = model.stored_bytes();
  result.parameters = model.parameters();
  return result;
}

std::string text_of(const Measured& measured) {
  const eval::Evaluation& scores = measured.scores;
  std::string text;
  if (scores.perplexity) text += fmt::format("perplexity      {:.4f}\n", *scores.perplexity);
  if (scores.embedding) {
    text += fmt::format("embedding       cosine {:.5f} with the dense model's, smallest {:.5f}\n",
                        scores.embedding->cosine_mean, scores.embedding->cosine_min);
    if (scores.embedding->rank_correlation)
      text += fmt::format("rank correlation {:.5f} over {} pairs\n", *scores.embedding->rank_correlation,
                          scores.embedding->pairs);
  }
  if (scores.reference_perplexity)
    text += fmt::format("of the dense    {:.4f}\n", *scores.reference_perplexity);
  if (scores.kl_mean) text += fmt::format("KL              {:.5f} nats per token\n", *scores.kl_mean);
  if (scores.top1_agreement) text += fmt::format("same top token  {:.2f} %\n", 100 * *scores.top1_agreement);
  text += fmt::format("bits per weight {:.3f}\n", measured.bits_per_weight());
  return text + fmt::format("protocol        {}\n", eval::protocol(measured.text, measured.precision));
}

Json json_of(const Measured& measured) {
  const eval::Evaluation& scores = measured.scores;
  Json json = {{"tokens", scores.tokens},
               {"windows", scores.windows},
               {"window", measured.text.window},
               {"stride", measured.text.stride},
               {"text", measured.text.file},
               {"text_hash", measured.text.text_hash},
               {"tokenizer_hash", measured.text.tokenizer_hash},
               {"compute", measured.precision == linalg::Precision::kBf16 ? "bf16" : "f32"},
               {"parameters", measured.parameters},
               {"bytes", measured.bytes},
               {"bits_per_weight", measured.bits_per_weight()},
               {"seconds", scores.seconds},
               {"protocol", eval::protocol(measured.text, measured.precision)}};
  if (scores.perplexity) json["perplexity"] = *scores.perplexity;
  if (scores.embedding) {
    json["embedding_cosine"] = scores.embedding->cosine_mean;
    json["embedding_cosine_min"] = scores.embedding->cosine_min;
    json["pairs"] = scores.embedding->pairs;
    if (scores.embedding->rank_correlation) json["rank_correlation"] = *scores.embedding->rank_correlation;
  }
  if (scores.reference_perplexity) json["reference_perplexity"] = *scores.reference_perplexity;
  if (scores.kl_mean) json["kl_mean"] = *scores.kl_mean;
  if (scores.top1_agreement) json["top1_agreement"] = *scores.top1_agreement;
  if (!scores.output_drift.empty()) json["output_drift"] = scores.output_drift;
  return json;
}

}  // namespace

Command eval_command() {
  const auto arguments = std::make_shared<EvalArguments>();
  Command command;
  command.name = "eval";
  command.summary =
      "Measure the perplexity of a model on a text, or the embeddings of an encoder, and how far they are "
      "from "
      "the dense one's";
  command.declare = [arguments](CLI::App& app) { declare(app, *arguments); };
  command.run = [arguments](const CommonOptions& common, Observer& observer) {
    const Measured measured = measure(*arguments, common.threads.value_or(0), observer);
    return Answer{text_of(measured), json_of(measured)};
  };
  return command;
}

}  // namespace lcomp::cli
