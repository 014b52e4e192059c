#include "lcomp/calib/sample_runner.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "support/error_text.h"
#include "support/matrices.h"
#include "support/test_data.h"
#include "support/tiny_llama.h"

using namespace lcomp;
using calib::ActivationCache;
using calib::InputStats;
using calib::SampleRunner;
using Storage = ActivationCache::Storage;

namespace {

const calib::Needs kAll{.second_moment = true, .abs_mean = true, .abs_max = true};

/// Samples of several lengths in front of the first block.
struct Setup {
  Setup(const model::Model& model, std::vector<int64_t> sample_lengths, int threads, Storage storage,
        const test::TempDir& dir, int64_t batch_tokens)
      : lengths(std::move(sample_lengths)),
        pool(threads),
        hidden(lengths, 16, storage, dir / "hidden"),
        work(lengths, 32, storage, dir / "work"),
        runner(pool, model.architecture(), hidden, &work, batch_tokens) {
    for (size_t i = 0; i < lengths.size(); ++i) hidden.store(static_cast<int64_t>(i), start(model, i));
  }

  at::Tensor start(const model::Model& model, size_t sample) const {
    std::vector<int64_t> ids;
    for (int64_t t = 0; t < lengths[sample]; ++t)
      ids.push_back((7 * t + 3 * static_cast<int64_t>(sample)) % 40);
    return model.embed(ids);
  }

  std::vector<int64_t> lengths;
  ThreadPool pool;
  ActivationCache hidden;
  ActivationCache work;
  SampleRunner runner;
};

/// Group by group, with `finish`: the samples end at the block's output.
std::vector<InputStats> run_staged(SampleRunner& runner, const model::Block& block) {
  std::vector<InputStats> stats;
  for (size_t g = 0; g < block.groups().size(); ++g) stats.push_back(runner.advance(block, g, kAll));
  runner.finish(block);
  return stats;
}

/// The inputs of all groups, all samples below each other, by way of Block::forward.
std::vector<at::Tensor> inputs_by_hand(const model::Model& model, const Setup& setup, model::Block& block) {
  std::vector<std::vector<at::Tensor>> seen(block.groups().size());
  linalg::Scratch scratch;
  for (size_t i = 0; i < setup.lengths.size(); ++i) {
    model::SampleState state{setup.start(model, i), {}};
    block.forward(state, scratch, [&](size_t g, const at::Tensor& x) { seen[g].push_back(x.clone()); });
  }
  std::vector<at::Tensor> out;
  for (const auto& parts : seen) out.push_back(at::cat(parts, 0));
  return out;
}

void require_same(const std::vector<InputStats>& a, const std::vector<InputStats>& b) {
  REQUIRE(a.size() == b.size());
  for (size_t g = 0; g < a.size(); ++g) {
    CAPTURE(g);
    REQUIRE(a[g].tokens == b[g].tokens);
    REQUIRE(a[g].second_moment.equal(b[g].second_moment));
    REQUIRE(a[g].abs_mean.equal(b[g].abs_mean));
    REQUIRE(a[g].abs_max.equal(b[g].abs_max));
  }
}

}  // namespace

TEST_CASE("staged statistics are those of the inputs that each group reads", "[calib][runner]") {
  const test::TempDir dir;
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  test::prepare_all(block);
  Setup setup(model, {5, 9, 1, 3}, 2, Storage::kMemory, dir, 10);
  const auto inputs = inputs_by_hand(model, setup, block);
  const auto stats = run_staged(setup.runner, block);
  for (size_t g = 0; g < stats.size(); ++g) {
    CAPTURE(g);
    const at::Tensor x = inputs[g].to(at::kDouble);
    REQUIRE(stats[g].tokens == 18);
    REQUIRE(test::relative_difference(stats[g].second_moment, at::matmul(x.t(), x)) < 1e-5);
    REQUIRE(test::relative_difference(stats[g].abs_mean, x.abs().mean(0)) < 1e-5);
    REQUIRE(test::relative_difference(stats[g].abs_max, x.abs().amax(0)) < 1e-5);
  }
}

TEST_CASE("the staged pass, the observing pass and the plain forward agree bit for bit", "[calib][runner]") {
  const test::TempDir dir;
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(1);
  test::prepare_all(block);
  Setup staged(model, {5, 9, 1}, 1, Storage::kMemory, dir, 64);
  Setup plain(model, {5, 9, 1}, 1, Storage::kMemory, dir, 64);
  const auto observed = plain.runner.observe(block, kAll);
  for (size_t i = 0; i < 3; ++i)  // observing moves nothing
    REQUIRE(plain.hidden.load(static_cast<int64_t>(i), 16).equal(plain.start(model, i)));
  plain.runner.forward(block);
  require_same(run_staged(staged.runner, block), observed);
  for (int64_t i = 0; i < 3; ++i) REQUIRE(staged.hidden.load(i, 16).equal(plain.hidden.load(i, 16)));
}

TEST_CASE("neither threads nor batches nor the place of the cache change a bit", "[calib][runner]") {
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  test::prepare_all(block);
  // Long and short samples, more than 2048 tokens in all.
  const std::vector<int64_t> lengths = {900, 40, 700, 600, 30, 20, 800};
  std::vector<InputStats> expected;
  at::Tensor expected_output;
  for (const int threads : {1, 3}) {
    for (const Storage storage : {Storage::kMemory, Storage::kDisk}) {
      for (const int64_t batch : {2048, 4096}) {
        CAPTURE(threads, batch, static_cast<int>(storage));
        const test::TempDir dir;
        Setup setup(model, lengths, threads, storage, dir, batch);
        const auto stats = run_staged(setup.runner, block);
        const at::Tensor output = setup.hidden.load(6, 16).clone();
        if (expected.empty()) {
          expected = stats;
          expected_output = output;
        }
        require_same(stats, expected);
        REQUIRE(output.equal(expected_output));
      }
    }
  }
}

namespace {

const calib::Needs kMismatch{.second_moment = true, .mismatch = true, .halves = true};

/// Statistics of a changed block beside the block as it was, with both streams at the end of it.
struct TwoStreams {
  TwoStreams(const model::Model& model, const std::vector<int64_t>& lengths, int threads, Storage storage,
             const test::TempDir& dir, bool change)
      : setup(model, lengths, threads, storage, dir, 2048),
        hidden(lengths, 16, storage, dir / "reference"),
        work(lengths, 32, storage, dir / "reference work") {
    model::Block block = model.load_block(0), dense = model.load_block(0);
    if (change) {
      for (size_t op = 0; op < block.ops().size(); ++op) {
        const at::Tensor weight = block.ops()[op].weight->dense();
        block.replace(op, std::make_shared<DenseWeight>((weight * 4).round() / 4));
      }
    }
    test::prepare_all(block);
    test::prepare_all(dense);
    for (size_t i = 0; i < lengths.size(); ++i) hidden.store(static_cast<int64_t>(i), setup.start(model, i));
    const calib::SampleStream reference{&hidden, &work};
    for (size_t g = 0; g < block.groups().size(); ++g)
      stats.push_back(setup.runner.advance(block, dense, reference, g, kMismatch));
    setup.runner.finish(block, dense, reference);
  }

  Setup setup;
  ActivationCache hidden;
  ActivationCache work;
  std::vector<InputStats> stats;
};

const std::vector<int64_t> kManyLengths = {900, 40, 700, 600, 30, 20, 800, 1500};

}  // namespace

TEST_CASE("a second stream goes through its own block, and the mismatch is that of the two",
          "[calib][runner]") {
  const test::TempDir dir;
  const auto model = test::TinyLlama().model();
  TwoStreams both(model, kManyLengths, 2, Storage::kMemory, dir, true);
  model::Block block = model.load_block(0), changed = model.load_block(0);
  for (size_t op = 0; op < block.ops().size(); ++op) {
    changed.replace(op, std::make_shared<DenseWeight>((block.ops()[op].weight->dense() * 4).round() / 4));
  }
  test::prepare_all(block);
  test::prepare_all(changed);
  const auto dense = inputs_by_hand(model, both.setup, block),
             now = inputs_by_hand(model, both.setup, changed);
  for (size_t g = 0; g < both.stats.size(); ++g) {
    CAPTURE(g);
    const at::Tensor x = dense[g].to(at::kDouble), y = now[g].to(at::kDouble);
    REQUIRE(test::relative_difference(both.stats[g].second_moment, at::matmul(y.t(), y)) < 1e-5);
    if (g == 0) {
      REQUIRE(both.stats[g].mismatch.abs().max().item<float>() == 0);
      continue;
    }
    REQUIRE(test::relative_difference(both.stats[g].mismatch, at::matmul((x - y).t(), y)) < 1e-4);
    REQUIRE(both.stats[g].half_moment[1].abs().max().item<float>() > 0);
    REQUIRE(both.stats[g].mismatch.equal(both.stats[g].half_mismatch[0] + both.stats[g].half_mismatch[1]));
  }
  Setup alone(model, kManyLengths, 1, Storage::kMemory, dir, 2048);
  alone.runner.forward(block);
  for (int64_t i = 0; i < 3; ++i) REQUIRE(both.hidden.load(i, 16).equal(alone.hidden.load(i, 16)));
}

TEST_CASE("a block that has not changed has no mismatch at all", "[calib][runner]") {
  const test::TempDir dir;
  const TwoStreams same(test::TinyLlama().model(), kManyLengths, 1, Storage::kMemory, dir, false);
  for (const InputStats& stats : same.stats) REQUIRE(stats.mismatch.abs().max().item<float>() == 0);
}

TEST_CASE("neither threads nor the place of the caches change a bit of the mismatch", "[calib][runner]") {
  const auto model = test::TinyLlama().model();
  std::vector<at::Tensor> expected;
  for (const int threads : {1, 3}) {
    for (const Storage storage : {Storage::kMemory, Storage::kDisk}) {
      const test::TempDir dir;
      const TwoStreams run(model, kManyLengths, threads, storage, dir, true);
      for (size_t g = 0; g < run.stats.size(); ++g) {
        if (expected.size() <= g) expected.push_back(run.stats[g].mismatch);
        REQUIRE(run.stats[g].mismatch.equal(expected[g]));
      }
    }
  }
}

TEST_CASE("the mismatch without a second stream is refused", "[calib][runner]") {
  const test::TempDir dir;
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  test::prepare_all(block);
  Setup setup(model, {5}, 1, Storage::kMemory, dir, 64);
  REQUIRE(
      test::error_text([&] { setup.runner.advance(block, 0, kMismatch); }) ==
      "[SampleRunner::advance] the mismatch must have a second stream of samples to compare with; there is "
      "none");
  REQUIRE(test::error_text([&] { setup.runner.observe(block, kMismatch); }) ==
          "[SampleRunner::observe] the mismatch must be taken group by group; use advance with a second "
          "stream");
}

TEST_CASE("the work is counted from the shapes", "[calib][runner]") {
  const test::TempDir dir;
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  test::prepare_all(block);
  Setup setup(model, {5, 9}, 1, Storage::kMemory, dir, 64);
  run_staged(setup.runner, block);
  const auto& count = setup.runner.work_count();
  // q 16x16, k and v 8x16, o 16x16, gate, up and down 32x16; attention 4 T (T + 1) / 2 d per sample.
  const double linear = 2.0 * 14 * (256 + 128 + 128 + 256 + 3 * 512);
  const double attention = 4.0 * 16 * (5 * 6 + 9 * 10) / 2;
  REQUIRE(count.forward_flops == Approx(linear + attention));
  REQUIRE(count.statistics_flops == Approx(14.0 * (3 * 256 + 1024)));
}

TEST_CASE("statistics that nobody needs are not taken", "[calib][runner]") {
  const test::TempDir dir;
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  test::prepare_all(block);
  Setup setup(model, {5}, 1, Storage::kMemory, dir, 64);
  const auto stats = setup.runner.advance(block, 0, {});
  REQUIRE_FALSE(stats.second_moment.defined());
  REQUIRE(setup.runner.work_count().statistics_flops == 0);
}
