#include "lcomp/eval/embeddings.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "lcomp/core/error.h"
#include "lcomp/eval/evaluate.h"
#include "lcomp/io/safetensors.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/test_data.h"
#include "support/tiny_bert.h"
#include "support/tiny_llama.h"
#include "support/toy_tokenizer.h"

using namespace lcomp;

namespace {

constexpr auto kF32 = linalg::Precision::kF32;

/// Pearson's correlation of ranks that are counted one by one.
double naive_spearman(const std::vector<double>& a, const std::vector<double>& b) {
  const auto ranks = [](const std::vector<double>& values) {
    std::vector<double> out;
    for (const double v : values) {
      double below = 0, equal = 0;
      for (const double w : values) {
        below += w < v ? 1 : 0;
        equal += w == v ? 1 : 0;
      }
      out.push_back(below + (equal + 1) / 2);
    }
    return at::tensor(out, at::kDouble);
  };
  const at::Tensor x = ranks(a) - ranks(a).mean(), y = ranks(b) - ranks(b).mean();
  return (at::dot(x, y) / (x.norm() * y.norm())).item<double>();
}

std::vector<double> rounded_numbers(const std::string& stream) {
  const at::Tensor x = (test::normal_matrix(1, 60, stream) * 3).round().contiguous();  // with ties
  return {x.data_ptr<double>(), x.data_ptr<double>() + x.numel()};
}

eval::EvaluationText toy_sentences() {
  eval::EvaluationText text;
  text.of_sentences = true;
  text.windows = {{1, 2, 3}, {4, 5}, {6, 7, 8, 9, 10}, {11, 2}};
  return text;
}

void write(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file) << text;
}

}  // namespace

TEST_CASE("rank correlation is Pearson's of the ranks, ties included", "[eval][embeddings]") {
  const auto a = rounded_numbers("a"), b = rounded_numbers("b");
  REQUIRE(*eval::rank_correlation(a, b) == Approx(naive_spearman(a, b)).epsilon(1e-12));
  const std::vector<double> x = {1, 2, 5}, cubes = {1, 8, 125}, falling = {3, 2, 1}, flat = {4, 4, 4};
  REQUIRE(*eval::rank_correlation(x, cubes) == Approx(1.0));
  REQUIRE(*eval::rank_correlation(x, falling) == Approx(-1.0));
  REQUIRE_FALSE(eval::rank_correlation(x, flat));
  const std::vector<double> two = {1, 2};
  REQUIRE(test::error_text([&] { eval::rank_correlation(x, two); }) ==
          "[rank_correlation] both must be of one length; they have 3 and 2 values");
}

TEST_CASE("embeddings are compared sentence by sentence and pair by pair", "[eval][embeddings]") {
  const auto unit = [](const std::string& stream) {
    const at::Tensor rows = test::normal_matrix(7, 9, stream);
    return (rows / rows.norm(2, 1, true)).to(at::kFloat);
  };
  const at::Tensor a = unit("a"), b = unit("b");
  const auto scores = eval::compare_embeddings(a, b);
  std::vector<double> cosines, of_a, of_b;
  for (int64_t i = 0; i < 7; ++i) {
    cosines.push_back(at::dot(a[i], b[i]).item<double>());
    for (int64_t j = i + 1; j < 7; ++j) {
      of_a.push_back(at::dot(a[i], a[j]).item<double>());
      of_b.push_back(at::dot(b[i], b[j]).item<double>());
    }
  }
  const at::Tensor all = at::tensor(cosines, at::kDouble);
  REQUIRE(scores.cosine_mean == Approx(all.mean().item<double>()).epsilon(1e-6));
  REQUIRE(scores.cosine_min == Approx(all.min().item<double>()).epsilon(1e-6));
  REQUIRE(scores.pairs == 21);
  REQUIRE(*scores.rank_correlation == Approx(naive_spearman(of_a, of_b)).epsilon(1e-9));
  REQUIRE(test::error_text([&] { eval::compare_embeddings(a, b.slice(0, 1)); }) ==
          "[compare_embeddings] both must be of one shape; they are [7, 9] and [6, 9]");
  REQUIRE(test::error_text([&] { eval::compare_embeddings(a * NAN, b); }) ==
          "[compare_embeddings] embeddings must be finite; their mean cosine is nan");
}

TEST_CASE("an encoder beside itself has cosine and rank correlation 1, and the drift of each block is 0",
          "[eval][embeddings]") {
  const auto model = test::TinyBert().model();
  const auto other = test::TinyBert("bert.", 2).model();
  ThreadPool one(1), three(3);
  Observer silent;
  const auto same = eval::evaluate(model, &model, toy_sentences(), kF32, one, silent);
  REQUIRE_FALSE(same.perplexity);
  REQUIRE(same.embedding->cosine_min == Approx(1.0));
  REQUIRE(*same.embedding->rank_correlation == Approx(1.0));
  REQUIRE(same.output_drift == std::vector<double>{0, 0});
  REQUIRE(same.tokens == 12);
  REQUIRE(same.windows == 4);
  const auto apart = eval::evaluate(other, &model, toy_sentences(), kF32, one, silent);
  REQUIRE(apart.embedding->cosine_mean < 0.9);
  REQUIRE(apart.output_drift.at(1) > 0.1);
  const auto again = eval::evaluate(other, &model, toy_sentences(), kF32, three, silent);
  REQUIRE(again.embedding->cosine_mean == apart.embedding->cosine_mean);
  REQUIRE(again.embedding->rank_correlation == apart.embedding->rank_correlation);
  REQUIRE(again.output_drift == apart.output_drift);
}

TEST_CASE("text, model and reference that do not fit each other are refused", "[eval][embeddings]") {
  const auto bert = test::TinyBert().model();
  const auto llama = test::TinyLlama().model();
  ThreadPool pool(1);
  Observer silent;
  const auto error = [&](const model::Model& model, const model::Model* reference,
                         const eval::EvaluationText& text) {
    const auto call = [&] { eval::evaluate(model, reference, text, kF32, pool, silent); };
    REQUIRE_THROWS_AS(call(), InvalidArgument);
    return test::error_text(call);
  };
  const auto windows = eval::make_evaluation_text({1, 2, 3, 4}, {.window = 2}, "ids");
  REQUIRE(error(bert, &bert, windows) ==
          "[evaluate] the text must be sentences for an encoder; it is windows");
  REQUIRE(error(llama, nullptr, toy_sentences()) ==
          "[evaluate] the text must be windows of a running text for a language model; it is sentences");
  REQUIRE(
      error(bert, nullptr, toy_sentences()) ==
      "[evaluate] an encoder is measured by its embeddings beside those of the dense model, which must be "
      "given as reference; there is none");
  REQUIRE(error(bert, &llama, toy_sentences()) ==
          "[evaluate] model and reference must be of one kind; they are bert and llama");
  const auto wide = test::TinyBert("", 1, 32).model();
  REQUIRE(error(bert, &wide, toy_sentences()) ==
          "[evaluate] embeddings must be of one width to be compared; they have 16 and 32 values");
}

TEST_CASE("sentences are lines, framed by special tokens and cut to the window", "[eval][embeddings]") {
  const test::TempDir dir;
  const auto tokenizer = test::load(test::word_pieces_document());
  write(dir / "s.txt", "unaffable\r\n\n  \nnot\rdo not do not\nunable");
  const auto text = eval::read_sentences(dir / "s.txt", tokenizer, {.window = 5});
  using Windows = std::vector<std::vector<int64_t>>;
  REQUIRE(text.windows == Windows{{1, 3, 4, 5, 2}, {1, 8, 2}, {1, 7, 8, 7, 2}, {1, 3, 5, 2}});
  REQUIRE((text.of_sentences && text.truncated == 1 && text.window == 5));
  REQUIRE(eval::read_sentences(dir / "s.txt", tokenizer, {.max_windows = 3}).windows.size() == 3);
  const auto error = [&](const eval::WindowOptions& options) {
    const auto call = [&] { eval::read_sentences(dir / "s.txt", tokenizer, options); };
    REQUIRE_THROWS_AS(call(), CorruptFile);
    return test::error_text(call);
  };
  REQUIRE_THAT(error({.window = 2}),
               Catch::EndsWith("the window must have room for a token beside the 2 special "
                               "ones; it has 2 tokens"));
  REQUIRE_THAT(error({.max_windows = 2}),
               Catch::EndsWith("the text must have 3 to 4096 sentences, one a line; it has 2"));
}

TEST_CASE("the embeddings of MiniLM are those of the reference, from its ids and from our own",
          "[eval][embeddings][golden]") {
  const auto directory = test::shared_data("models/minilm-l6");
  if (!directory) {
    WARN("skipped: models/minilm-l6 is not in LCOMP_TEST_DATA");
    return;
  }
  const model::Model model = model::Model::open(*directory);
  const io::SafetensorsFile reference(*directory / "reference.safetensors");
  const at::Tensor ids = reference.read("input_ids").to(at::kLong);
  const at::Tensor lengths = reference.read("lengths").to(at::kLong);
  std::vector<std::vector<int64_t>> sentences;
  for (int64_t s = 0; s < ids.size(0); ++s) {
    const at::Tensor row = ids[s].slice(0, 0, lengths[s].item<int64_t>()).contiguous();
    sentences.emplace_back(row.data_ptr<int64_t>(), row.data_ptr<int64_t>() + row.numel());
  }
  const auto tokenizer = io::Tokenizer::from_file(*directory / "tokenizer.json");
  const auto text = eval::read_evaluation_text(model, *directory / "sentences.txt", tokenizer, {});
  REQUIRE(text.windows == sentences);
  ThreadPool pool(2);
  const at::Tensor ours = eval::embed_sentences(model, sentences, kF32, pool);
  REQUIRE((ours - reference.read("embeddings")).abs().max().item<double>() < 1e-5);
}
