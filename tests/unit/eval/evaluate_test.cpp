#include "lcomp/eval/evaluate.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"
#include "support/error_text.h"
#include "support/test_data.h"
#include "support/tiny_llama.h"
#include "support/toy_tokenizer.h"

using namespace lcomp;
using eval::Evaluation;
using eval::EvaluationText;
using eval::make_evaluation_text;

namespace {

std::vector<int64_t> ids(int64_t count) {
  std::vector<int64_t> out;
  for (int64_t t = 0; t < count; ++t) out.push_back((t * t + 5 * t) % 40);
  return out;
}

/// Log-probabilities [tokens, vocabulary] of a window, in double.
at::Tensor log_probabilities(const model::Model& model, const std::vector<int64_t>& window) {
  return test::logits_of(model, window).to(at::kDouble).log_softmax(1);
}

/// The scores by their definitions, a window at a time.
Evaluation oracle(const model::Model& model, const model::Model& reference, const EvaluationText& text) {
  Evaluation out;
  double loss = 0;
  double reference_loss = 0;
  double divergence = 0;
  double agreements = 0;
  for (size_t w = 0; w < text.windows.size(); ++w) {
    const at::Tensor q = log_probabilities(model, text.windows[w]);
    const at::Tensor p = log_probabilities(reference, text.windows[w]);
    // The first window scores all its predictions, each other one those of its last `stride` tokens.
    const int64_t first = w == 0 ? 0 : std::max<int64_t>(0, text.window - 1 - text.stride);
    for (int64_t t = first; t + 1 < text.window; ++t) {
      const int64_t next = text.windows[w][static_cast<size_t>(t + 1)];
      loss -= q[t][next].item<double>();
      reference_loss -= p[t][next].item<double>();
      divergence += (p[t].exp() * (p[t] - q[t])).sum().item<double>();
      agreements += p[t].argmax().item<int64_t>() == q[t].argmax().item<int64_t>() ? 1 : 0;
      ++out.tokens;
    }
  }
  const auto n = static_cast<double>(out.tokens);
  out.perplexity = std::exp(loss / n);
  out.reference_perplexity = std::exp(reference_loss / n);
  out.kl_mean = divergence / n;
  out.top1_agreement = agreements / n;
  return out;
}

Evaluation evaluate(const model::Model& model, const model::Model* reference, const EvaluationText& text,
                    int threads = 1) {
  ThreadPool pool(threads);
  Observer silent;
  return eval::evaluate(model, reference, text, linalg::Precision::kF32, pool, silent);
}

}  // namespace

TEST_CASE("perplexity, KL and agreement equal a softmax in double", "[eval]") {
  const auto model = test::TinyLlama(1).model();
  const auto reference = test::TinyLlama(2).model();
  for (const int64_t stride : {0, 4, 11}) {
    CAPTURE(stride);
    const auto text = make_evaluation_text(ids(50), {.window = 12, .stride = stride}, "text");
    const auto expected = oracle(model, reference, text);
    const auto scores = evaluate(model, &reference, text);
    REQUIRE(scores.tokens == expected.tokens);
    REQUIRE(*scores.perplexity == Approx(*expected.perplexity).epsilon(1e-5));
    REQUIRE(*scores.reference_perplexity == Approx(*expected.reference_perplexity).epsilon(1e-5));
    REQUIRE(*scores.kl_mean == Approx(*expected.kl_mean).epsilon(1e-4));
    REQUIRE(*scores.kl_mean > 0.1);
    REQUIRE(*scores.top1_agreement == Approx(*expected.top1_agreement));
  }
}

TEST_CASE("a model differs from itself by nothing", "[eval]") {
  const auto model = test::TinyLlama().model();
  const auto scores = evaluate(model, &model, make_evaluation_text(ids(60), {.window = 20}, "text"));
  REQUIRE(*scores.kl_mean == Approx(0).margin(1e-9));
  REQUIRE(*scores.top1_agreement == 1.0);
  REQUIRE(*scores.perplexity == *scores.reference_perplexity);
  REQUIRE(scores.output_drift == std::vector<double>{0, 0});
}

TEST_CASE("the drift is the relative difference of the hidden states behind each block", "[eval]") {
  const auto model = test::TinyLlama(1).model();
  const auto reference = test::TinyLlama(2).model();
  const auto text = make_evaluation_text(ids(50), {.window = 12}, "text");
  const auto states = [&](const model::Model& of, int64_t blocks) {
    std::vector<at::Tensor> windows;
    for (const auto& window : text.windows) windows.push_back(test::states_of(of, window, blocks));
    return at::cat(windows).to(at::kDouble);
  };
  const auto scores = evaluate(model, &reference, text);
  REQUIRE(scores.output_drift.size() == 2);
  for (int64_t i = 0; i < 2; ++i) {
    const at::Tensor dense = states(reference, i + 1);
    const double expected = ((dense - states(model, i + 1)).norm() / dense.norm()).item<double>();
    REQUIRE(scores.output_drift[static_cast<size_t>(i)] == Approx(expected).epsilon(1e-6));
    REQUIRE(expected > 0.1);
  }
}

TEST_CASE("models of different depth have no drift", "[eval]") {
  const auto model = test::TinyLlama().model();
  test::TinyLlama deeper;
  deeper.config["num_hidden_layers"] = 1;
  const auto reference = deeper.model();
  const auto scores = evaluate(model, &reference, make_evaluation_text(ids(60), {.window = 20}, "text"));
  REQUIRE(scores.output_drift.empty());
  REQUIRE(scores.kl_mean);
}

TEST_CASE("without a reference only the perplexity is measured", "[eval]") {
  const auto model = test::TinyLlama().model();
  const auto scores = evaluate(model, nullptr, make_evaluation_text(ids(60), {.window = 20}, "text"));
  REQUIRE(scores.windows == 3);
  REQUIRE(scores.tokens == 57);
  REQUIRE_FALSE(scores.kl_mean);
  REQUIRE_FALSE(scores.top1_agreement);
  REQUIRE_FALSE(scores.reference_perplexity);
  REQUIRE(scores.output_drift.empty());
}

TEST_CASE("scores do not depend on the number of threads", "[eval]") {
  const auto model = test::TinyLlama(1).model();
  const auto reference = test::TinyLlama(2).model();
  const auto text = make_evaluation_text(ids(400), {.window = 50}, "text");
  const auto one = evaluate(model, &reference, text, 1);
  const auto three = evaluate(model, &reference, text, 3);
  REQUIRE(one.perplexity == three.perplexity);
  REQUIRE(*one.kl_mean == *three.kl_mean);
  REQUIRE(one.output_drift == three.output_drift);
}

TEST_CASE("windows and strides score each token of the text once", "[eval][windows]") {
  const auto text = [](int64_t count, const eval::WindowOptions& options) {
    return make_evaluation_text(ids(count), options, "text");
  };
  REQUIRE(text(25, {.window = 10}).windows.size() == 2);  // the last, shorter one is left out
  REQUIRE(text(25, {.window = 10}).windows[1][0] == ids(25)[10]);
  REQUIRE(text(25, {.window = 10, .stride = 5}).windows.size() == 4);
  REQUIRE(text(25, {.window = 10, .stride = 5}).windows[3][0] == ids(25)[15]);
  REQUIRE(text(100, {.window = 10, .max_windows = 3}).windows.size() == 3);
  const auto strided = text(25, {.window = 10, .stride = 5});
  REQUIRE(strided.first_scored(0) == 0);
  REQUIRE(strided.first_scored(1) == 4);  // predictions of tokens 5 to 9 of the window
  REQUIRE(text(30, {.window = 10}).first_scored(1) == 0);
}

TEST_CASE("windows that cannot be are refused", "[eval][windows]") {
  const auto message = [](int64_t count, const eval::WindowOptions& options) {
    REQUIRE_THROWS_AS(make_evaluation_text(ids(count), options, "text"), ConfigError);
    return test::error_text([&] { make_evaluation_text(ids(count), options, "text"); });
  };
  REQUIRE(message(10, {.window = 1}) == "[text] the window must have at least 2 tokens; received 1");
  REQUIRE(message(10, {.window = 4, .stride = 5}) ==
          "[text] the stride must lie in [1, window = 4]; received 5");
  REQUIRE(message(10, {.window = 4, .stride = -1}) ==
          "[text] the stride must lie in [1, window = 4]; received -1");
  REQUIRE(message(10, {.window = 11}) ==
          "[text] the evaluation text must have at least one window of 11 tokens; it has 10");
}

TEST_CASE("a text is identified by the hashes of itself and of its tokenizer", "[eval][windows]") {
  const test::TempDir dir;
  io::write_file_atomic(dir / "text.txt", "abcabab");  // 4 3 3
  io::write_file_atomic(dir / "tokenizer.json", test::abc_document().dump());
  const auto tokenizer = io::Tokenizer::from_file(dir / "tokenizer.json");
  const auto text = eval::read_evaluation_text(dir / "text.txt", tokenizer, {.window = 3});
  REQUIRE(text.windows == std::vector<std::vector<int64_t>>{{4, 3, 3}});
  REQUIRE(text.text_hash == io::hash_of("abcabab"));
  REQUIRE(text.tokenizer_hash == tokenizer.hash());
  REQUIRE(text.file == (dir / "text.txt").string());
}

TEST_CASE("models of different vocabularies cannot be compared", "[eval]") {
  test::TinyLlama other;
  other.config["vocab_size"] = 39;
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight"})
    other.tensors[name] = other.tensors[name].slice(0, 0, 39).contiguous();
  const auto model = test::TinyLlama().model();
  const auto reference = other.model();
  const auto text = make_evaluation_text({1, 2, 3}, {.window = 3}, "text");
  REQUIRE_THROWS_AS(evaluate(model, &reference, text), InvalidArgument);
  REQUIRE(test::error_text([&] { evaluate(model, &reference, text); }) ==
          "[evaluate] model and reference must share their vocabulary; they have 40 and 39 entries");
}

TEST_CASE("an evaluation reports its progress and can be stopped", "[eval]") {
  struct Stopper final : Observer {
    std::vector<Progress> steps;
    bool stop = false;
    void progress(const Progress& step) override { steps.push_back(step); }
    bool cancelled() override { return stop; }
  } observer;
  const auto model = test::TinyLlama().model();
  const auto text = make_evaluation_text(ids(20), {.window = 10}, "text");
  ThreadPool pool(1);
  eval::evaluate(model, nullptr, text, linalg::Precision::kF32, pool, observer);
  REQUIRE(observer.steps.size() == 3);  // two blocks, one tile of the head
  REQUIRE(observer.steps.back().done == observer.steps.back().total);
  REQUIRE(observer.steps.back().phase == "evaluate");
  observer.stop = true;
  const auto call = [&] { eval::evaluate(model, nullptr, text, linalg::Precision::kF32, pool, observer); };
  REQUIRE_THROWS_AS(call(), Interrupted);
  REQUIRE(test::error_text(call) == "[evaluate] the run was asked to stop");
}

TEST_CASE("the protocol says how the windows were cut and scored, and the arithmetic", "[eval]") {
  const auto plain = make_evaluation_text(ids(25), {.window = 10}, "text");
  REQUIRE(
      eval::protocol(plain, linalg::Precision::kF32) ==
      "text tokenized whole without special tokens, 2 windows of 10 tokens every 10 tokens, mean loss over "
      "the last 9 tokens of each; float32 arithmetic on the stored weights");
  const auto strided = make_evaluation_text(ids(25), {.window = 10, .stride = 5}, "text");
  REQUIRE(
      eval::protocol(strided, linalg::Precision::kBf16) ==
      "text tokenized whole without special tokens, 4 windows of 10 tokens every 5 tokens, mean loss over "
      "all of the first and the last 5 tokens of each other; bfloat16 (sums in float32) arithmetic on the "
      "stored weights");
}
