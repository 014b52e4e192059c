// Fits of small tables to embeddings: word2ketXS and MorphTE.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>

#include "lcomp/core/rng.h"
#include "lcomp/lowrank/embedding.h"
#include "lcomp/lowrank/kronecker.h"
#include "lcomp/lowrank/kronecker_sum_weight.h"
#include "lcomp/lowrank/morpheme_weight.h"
#include "lcomp/lowrank/morphte.h"
#include "lcomp/lowrank/word2ketxs.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::lowrank;
using lcomp::ThreadPool;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

double weighted_error(const at::Tensor& table, const at::Tensor& fitted, const at::Tensor& weights = {}) {
  const at::Tensor w = weights.defined() ? weights.to(at::kDouble) : at::ones({table.size(0)}, at::kDouble);
  const at::Tensor e = table.to(at::kDouble);
  return std::sqrt(((w * (e - fitted).square().sum(1)).sum() / (w * e.square().sum(1)).sum()).item<double>());
}

at::Tensor ket_table(const at::Tensor& table, const Word2KetXsFit& fit) {
  return KroneckerSumWeight(table.size(0), table.size(1), fit.leaf.to(at::kFloat)).dense();
}

at::Tensor row_weights(int64_t rows) {
  return 1 / (1 + at::arange(rows, at::kDouble));
}

/// Three morphemes a word, the first one out of many, the last ones out of few; never one twice.
at::Tensor word_index(int64_t words, int64_t stems, int64_t affixes) {
  lcomp::Rng rng(5, "words");
  const auto draw = [&](int64_t from, int64_t count) {
    return static_cast<int32_t>(from + static_cast<int64_t>(rng.below(static_cast<uint64_t>(count))));
  };
  at::Tensor index = at::empty({words, 3}, at::kInt);
  for (int64_t i = 0; i < words; ++i) {
    auto* row = index.data_ptr<int32_t>() + 3 * i;
    row[0] = draw(2 * affixes, stems);
    row[1] = draw(0, affixes);
    row[2] = draw(affixes, affixes);
  }
  return index;
}

at::Tensor morpheme_table(const MorphteFit& fit, const at::Tensor& index, int64_t in) {
  return MorphemeWeight(fit.tables, index, in).dense();
}

void require_falling(const std::vector<double>& errors) {
  for (size_t i = 1; i < errors.size(); ++i) REQUIRE(errors[i] <= errors[i - 1] * (1 + 1e-6) + 1e-6);
}

}  // namespace

TEST_CASE("the smallest base reaches a number, and the one before does not", "[lowrank][ket]") {
  for (const int64_t n : {1, 2, 27, 28, 576, 30522, 49152, 1 << 20}) {
    for (const int64_t order : {1, 2, 3, 4}) {
      const int64_t base = smallest_base(n, order);
      CAPTURE(n, order, base);
      CHECK(std::pow(static_cast<double>(base), order) >= static_cast<double>(n));
      CHECK(std::pow(static_cast<double>(base - 1), order) < static_cast<double>(n));
    }
  }
}

TEST_CASE("word2ketXS of order 2 is the nearest Kronecker sum", "[lowrank][ket]") {
  const at::Tensor table = normal_matrix(36, 16, "table");
  const Word2KetXsFit fit = fit_word2ketxs(table, {.order = 2, .rank = 5});
  const KroneckerSum sum = kronecker_sum(table, {6, 4, 6, 4}, 5);
  CHECK(fit.leaf.sizes() == at::IntArrayRef({2, 5, 6, 4}));
  CHECK(relative_difference(ket_table(table, fit), sum.full()) < 1e-5);
  CHECK(fit.relative_error == Approx(sum.relative_error).epsilon(1e-6));
  CHECK(fit_word2ketxs(table, {.order = 2, .rank = 24}).relative_error < 1e-6);
  CHECK(fit_word2ketxs(table, {.order = 2, .rank = 40}).leaf.size(1) == 40);
}

TEST_CASE("word2ketXS: errors never rise, and padding and weights count as they should", "[lowrank][ket]") {
  const at::Tensor table = normal_matrix(50, 20, "table");
  for (const int64_t order : {2, 3, 4}) {
    for (const bool weighted : {false, true}) {
      CAPTURE(order, weighted);
      const at::Tensor w = weighted ? row_weights(50) : at::Tensor();
      const Word2KetXsFit fit = fit_word2ketxs(table, {.order = order, .rank = 4, .sweeps = 15}, w);
      require_falling(fit.sweep_errors);
      CHECK(fit.relative_error == fit.sweep_errors.back());
      CHECK(fit.relative_error < fit.sweep_errors.front());
      CHECK(fit.relative_error < 1);
      CHECK(fit.relative_error == Approx(weighted_error(table, ket_table(table, fit), w)).epsilon(1e-5));
    }
  }
  // Weights move the error to where they are small.
  const at::Tensor w = row_weights(50);
  const auto plain = fit_word2ketxs(table, {.order = 2, .rank = 4, .sweeps = 50});
  const auto weighted = fit_word2ketxs(table, {.order = 2, .rank = 4, .sweeps = 50}, w);
  CHECK(weighted.relative_error < weighted_error(table, ket_table(table, plain), w));
  // Padding rows and columns that count for nothing leave more for the table.
  CHECK(plain.relative_error < kronecker_sum(table, {8, 5, 8, 5}, 4).relative_error);
}

TEST_CASE("word2ketXS finds a table that is one", "[lowrank][ket]") {
  const at::Tensor leaf = normal_matrix(3 * 2, 12, "leaf").reshape({3, 2, 4, 3}).to(at::kFloat);
  const at::Tensor table = KroneckerSumWeight(50, 20, leaf).dense();
  CHECK(fit_word2ketxs(table, {.order = 3, .rank = 2, .sweeps = 300, .tolerance = 1e-9}).relative_error <
        1e-3);
}

TEST_CASE("word2ketXS is the same in every run", "[lowrank][ket]") {
  const at::Tensor table = normal_matrix(50, 20, "table");
  const Word2KetXsOptions options{.order = 3, .rank = 3, .sweeps = 5, .seed = 4};
  CHECK(fit_word2ketxs(table, options).leaf.equal(fit_word2ketxs(table, options).leaf));
  CHECK(fit_word2ketxs(at::zeros({9, 4}), {.order = 2, .rank = 2}).relative_error == 0);
  CHECK(fit_word2ketxs(at::zeros({9, 4}), {.order = 3, .rank = 2}).relative_error == 0);
}

TEST_CASE("word2ketXS: what does not fit is refused", "[lowrank][ket]") {
  const at::Tensor table = normal_matrix(50, 20, "table");
  CHECK_THAT(error_text([&] { fit_word2ketxs(table.flatten(), {}); }),
             Catch::Contains("a floating-point matrix"));
  CHECK_THAT(error_text([&] { fit_word2ketxs(table, {.order = 1}); }),
             Catch::Contains("the order must lie in [2, 8]; it is 1"));
  CHECK_THAT(error_text([&] { fit_word2ketxs(table, {.rank = 0}); }),
             Catch::Contains("the rank must be at least 1"));
  CHECK_THAT(error_text([&] { fit_word2ketxs(table, {.order = 3, .t = 3}); }),
             Catch::Contains("t and q must be at least 4 and 3 at order 3; they are 3 and 0"));
  CHECK_THAT(error_text([&] { fit_word2ketxs(table, {}, at::ones({49})); }),
             Catch::Contains("there must be 50 row weights; there are 49"));
  CHECK_THAT(error_text([&] { fit_word2ketxs(table, {}, at::zeros({50})); }),
             Catch::Contains("row weights must be finite, not negative and not all 0"));
  CHECK_THAT(error_text([&] {
               fit_morphte(table * NAN, at::zeros({50, 2}, at::kInt), 3, {.rank = 2});
             }),
             Catch::Contains("all elements of the table must be finite; some are not"));
  CHECK_THAT(error_text([&] { fit_word2ketxs(table, {}, -at::ones({50})); }),
             Catch::Contains("not negative"));
}

TEST_CASE("MorphTE finds a table that is one", "[lowrank][morphte]") {
  const at::Tensor index = word_index(400, 40, 6);
  const at::Tensor tables = normal_matrix(2 * 52, 3, "tables").reshape({2, 52, 3}).to(at::kFloat);
  for (const int64_t in : {27, 20}) {
    const at::Tensor table = MorphemeWeight(tables, index, in).dense();
    double best = 1;
    for (const uint64_t seed : {0, 1, 2}) {
      const MorphteFit fit =
          fit_morphte(table, index, 52, {.rank = 2, .sweeps = 200, .tolerance = 1e-9, .seed = seed});
      CHECK(fit.tables.sizes() == at::IntArrayRef({2, 52, 3}));
      require_falling(fit.sweep_errors);
      best = std::min(best, fit.relative_error);
    }
    CHECK(best < 1e-2);
  }
}

TEST_CASE("MorphTE: errors never rise and are those of the tables, cut and weighted or not",
          "[lowrank][morphte]") {
  const at::Tensor index = word_index(300, 60, 5);
  const at::Tensor table = 0.05 * normal_matrix(300, 20, "table");
  for (const bool weighted : {false, true}) {
    const at::Tensor w = weighted ? row_weights(300) : at::Tensor();
    const MorphteFit fit = fit_morphte(table, index, 70, {.rank = 4, .sweeps = 25, .tolerance = 0}, w);
    require_falling(fit.sweep_errors);
    CHECK(fit.relative_error < 0.95);
    CHECK(fit.relative_error ==
          Approx(weighted_error(table, morpheme_table(fit, index, 20), w)).epsilon(1e-4));
  }
  // A step is a least-squares step: no other vectors of the one morpheme of a word of its own are better.
  const at::Tensor alone = at::tensor({0, 1, 2}, at::kInt).reshape({1, 3});
  const at::Tensor row = normal_matrix(1, 27, "row");
  CHECK(fit_morphte(row, alone, 3, {.rank = 9, .sweeps = 5}).relative_error < 1e-3);
}

TEST_CASE("MorphTE: rows of weight 0 do not matter", "[lowrank][morphte]") {
  const at::Tensor index = word_index(100, 20, 4);
  const at::Tensor table = normal_matrix(100, 27, "table");
  at::Tensor other = table.clone(), w = at::ones({100});
  other.narrow(0, 50, 50).mul_(100);
  w.narrow(0, 50, 50).zero_();
  const MorphteOptions options{.rank = 3, .sweeps = 5};
  CHECK(fit_morphte(table, index, 28, options, w)
            .tables.equal(fit_morphte(other, index, 28, options, w).tables));
}

TEST_CASE("MorphTE: words may have a morpheme twice, and any order will do", "[lowrank][morphte]") {
  lcomp::Rng rng(3, "twice");
  for (const int64_t order : {1, 2, 3, 4}) {
    at::Tensor index = at::empty({80, order}, at::kInt);
    for (int64_t i = 0; i < index.numel(); ++i)
      index.data_ptr<int32_t>()[i] = static_cast<int32_t>(rng.below(6));
    const at::Tensor table = normal_matrix(80, 16, "table");
    const MorphteFit fit = fit_morphte(table, index, 6, {.rank = 3, .sweeps = 20, .tolerance = -1});
    CAPTURE(order);
    CHECK(fit.sweep_errors.size() == 21);
    CHECK(fit.relative_error == *std::min_element(fit.sweep_errors.begin(), fit.sweep_errors.end()));
    CHECK(fit.relative_error < 1.001);
    CHECK(fit.relative_error == Approx(weighted_error(table, morpheme_table(fit, index, 16))).epsilon(1e-4));
  }
}

TEST_CASE("MorphTE: a word that is one morpheme again and again is found", "[lowrank][morphte]") {
  for (const int64_t order : {2, 3}) {
    CAPTURE(order);
    const at::Tensor vector = normal_matrix(1, 4, "vector").reshape({1, 1, 4}).to(at::kFloat);
    const at::Tensor index = at::zeros({1, order}, at::kInt);
    const at::Tensor table = MorphemeWeight(vector, index, order == 2 ? 16 : 64).dense();
    const MorphteFit fit = fit_morphte(table, index, 1, {.rank = 1, .sweeps = 300, .tolerance = 1e-12});
    require_falling(fit.sweep_errors);
    CHECK(fit.relative_error < 1e-3);
  }
}

TEST_CASE("MorphTE is the same at any number of threads", "[lowrank][morphte]") {
  const at::Tensor index = word_index(500, 80, 7);
  const at::Tensor table = normal_matrix(500, 25, "table");
  const MorphteOptions options{.rank = 5, .sweeps = 4, .seed = 9};
  const MorphteFit alone = fit_morphte(table, index, 94, options);
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    const MorphteFit fit = fit_morphte(table, index, 94, options, {}, &pool);
    CHECK(fit.tables.equal(alone.tables));
    CHECK(fit.sweep_errors == alone.sweep_errors);
  }
}

TEST_CASE("fits tell of their progress and can be stopped", "[lowrank][morphte][ket]") {
  struct Stopper final : lcomp::Observer {
    int calls = 0;
    void progress(const lcomp::Progress& p) override {
      calls += p.phase == "morpheme vectors" || p.phase == "Kronecker factors";
    }
    bool cancelled() override { return calls == 3; }
  };
  const at::Tensor index = word_index(50, 10, 3), table = normal_matrix(50, 20, "table");
  Stopper of_morphemes, of_factors;
  CHECK_THAT(
      error_text([&] { fit_morphte(table, index, 16, {.tolerance = -1}, {}, nullptr, &of_morphemes); }),
      Catch::Contains("stopped between two sweeps"));
  CHECK_THAT(error_text([&] { fit_word2ketxs(table, {.tolerance = -1}, {}, &of_factors); }),
             Catch::Contains("stopped between two factors, as asked"));
  CHECK(of_morphemes.calls == 3);
  CHECK(of_factors.calls == 3);
}

TEST_CASE("MorphTE: what does not fit is refused", "[lowrank][morphte]") {
  const at::Tensor index = word_index(50, 10, 3), table = normal_matrix(50, 20, "table");
  CHECK_THAT(error_text([&] { fit_morphte(table[0], index, 16, {}); }),
             Catch::Contains("a floating-point matrix"));
  CHECK_THAT(error_text([&] { fit_morphte(table, index.narrow(0, 0, 9), 16, {}); }),
             Catch::Contains("the index must be int32 [50, 1 to 8]; it has 27 elements"));
  CHECK_THAT(error_text([&] { fit_morphte(table, index, 5, {}); }), Catch::Contains("must lie in [0, 5)"));
  CHECK_THAT(error_text([&] { fit_morphte(table, index, 16, {.rank = 0}); }),
             Catch::Contains("the rank must be at least 1 and sweeps at least 0; they are 0 and 40"));
  CHECK_THAT(error_text([&] { fit_morphte(table, index, 16, {.q = 2}); }),
             Catch::Contains("q must be at least 3; it is 2"));
  CHECK_THAT(error_text([&] { fit_morphte(table, index, 16, {}, at::ones({2})); }),
             Catch::Contains("there must be 50 row weights; there are 2"));
  at::Tensor bad = table.clone();
  bad[3][3] = std::numeric_limits<double>::quiet_NaN();
  CHECK_THAT(error_text([&] { fit_morphte(bad, index, 16, {}); }), Catch::Contains("must be finite"));
  CHECK(fit_morphte(at::zeros({50, 20}), index, 16, {.sweeps = 1}).relative_error == 0);
}

TEST_CASE("embeddings: options that do not fit are refused", "[lowrank][embedding]") {
  const at::Tensor table = normal_matrix(50, 16, "table");
  EmbeddingOptions options;
  const auto text = [&] {
    return error_text([&] { fit_embedding(table, options, {}, nullptr, at::kFloat); });
  };
  options.order = 1;
  CHECK(text() == "[embedding] order must be 0 or from 2 up; it is 1");
  options.order = 0;
  options.ratio = 2;
  options.method = EmbeddingMethod::kMorphTe;
  CHECK(text() == "[embedding] morphte must be given the tokens' morphemes; there are none");
  options.method = EmbeddingMethod::kLowRank;
  options.exceptions = 3;
  CHECK(text() ==
        "[embedding] exceptions need counts that tell the frequent tokens; there are none for 3 of them");
  const auto before = [&] { return error_text([&] { embedding_numbers(options, 50, 16, true, nullptr); }); };
  options.exceptions = 50;
  CHECK(before() == "[embedding] exceptions must be fewer than the 50 rows; they are 50");
  options.exceptions = 22;
  CHECK(before() ==
        "[embedding] ratio and exceptions must leave 66 numbers at least for low_rank; they leave 48");
  options.method = EmbeddingMethod::kTensorTrain;
  options.ratio = 100;
  options.exceptions = 0;
  CHECK_THAT(before(), Catch::Contains("for tensor_train of order 3; they leave 8"));
}
