// What must hold for every method: the same bytes however it is run, and on bad calibration data either a
// finite model whose report tells of it, or one clear error and nothing written.
#include <ATen/ATen.h>

#include <cmath>
#include <set>

#include "lcomp/core/error.h"
#include "lcomp/linalg/gemm.h"
#include "lcomp/model/model.h"
#include "pipeline/edit_model.h"
#include "pipeline/job_runs.h"
#include "torture/jobs.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;
using test::NamedJob;

namespace {

/// The job on the bundled model, or another, with one thread and no evaluation.
Json without_evaluation(const NamedJob& named, const fs::path& output) {
  Json job = named.job;
  job["output"] = output.string();
  job["threads"] = 1;
  job.erase("evaluate");
  job.erase("write");
  return job;
}

/// The jobs on the bundled model.
std::vector<NamedJob> bundled_jobs() {
  std::vector<NamedJob> jobs = test::torture_jobs();
  std::erase_if(jobs, [](const NamedJob& job) { return job.is_tiny; });
  return jobs;
}

/// Of its first pass; empty without any.
std::string method_of(const NamedJob& named) {
  const Json passes = named.job.value("passes", Json());
  return passes.is_array() && passes[0].is_object() ? passes[0].value("method", "") : "";
}

void require_finite(const fs::path& output) {
  const auto model = model::Model::open(output);
  for (int64_t i = 0; i < model.size(); ++i) {
    const model::Block block = model.load_block(i);
    for (const model::LinearOp& op : block.ops()) {
      CAPTURE(op.info.name);
      REQUIRE(at::isfinite(op.weight->dense()).all().item<bool>());
    }
  }
}

void require_sound(const pipeline::RunReport& report, const fs::path& output) {
  REQUIRE(report.verification->passed);
  for (const auto& row : report.operators) {
    CAPTURE(row.name, row.method);
    for (const auto& number : {row.weight_error, row.activation_error, row.loss, row.max_abs_error})
      REQUIRE((!number || std::isfinite(*number)));
  }
  require_finite(output);
}

/// Whether an operator's row tells of numerical trouble.
bool tells_of_trouble(const pipeline::RunReport& report) {
  return std::any_of(report.operators.begin(), report.operators.end(),
                     [](const auto& row) { return row.rung_index > 0 || row.fell_back; });
}

/// A text of the same words over and over.
fs::path monotonous_text(const test::TempDir& dir, const std::string& words) {
  std::string text;
  while (text.size() < 40'000) text += words;
  test::write_text(dir / "text.txt", text);
  return dir / "text.txt";
}

/// A copy of the bundled model whose norms are `factor` times as large.
fs::path scaled_model(const test::TempDir& dir, double factor) {
  const fs::path model = test::copy_of_model(dir);
  test::edit_tensors(model, [&](io::NamedTensors& tensors) {
    for (auto& [name, tensor] : tensors) {
      if (name.find("layernorm") != std::string::npos) tensor.mul_(factor);
    }
  });
  return model;
}

}  // namespace

TEST_CASE("there is a job for every method", "[every]") {
  std::set<std::string> tortured;
  for (const NamedJob& named : bundled_jobs()) {
    for (const Json& pass : named.job.value("passes", Json::array())) tortured.insert(pass.at("method"));
  }
  for (const std::string& method : pipeline::builtin_methods().names()) CHECK(tortured.contains(method));
}

TEST_CASE("every method gives the same bytes at any number of threads, with the samples in memory or on disk",
          "[every][determinism][slow]") {
  for (const NamedJob& named : bundled_jobs()) {
    CAPTURE(named.name);
    const test::TempDir dir;
    const auto hash_of = [&](const std::string& name, int threads, const char* cache) {
      Json job = without_evaluation(named, dir / name);
      job["threads"] = threads;
      job["calibration"]["cache"] = cache;
      test::run(job);
      return test::weights_hash(dir / name);
    };
    const std::string expected = hash_of("one", 1, "memory");
    REQUIRE(hash_of("two", 2, "memory") == expected);
    REQUIRE(hash_of("three", 3, "disk") == expected);
    REQUIRE(hash_of("eight", 8, "memory") == expected);
  }
}

TEST_CASE("what every method reports of its operators is what its output holds", "[every][verify][slow]") {
  const std::set<std::string> moves_or_deletes = {"awq", "smoothquant", "fisher_mask", "llm_pruner"};
  const std::set<std::string> rounding = {"smoothquant", "int8", "llm_int8"};
  for (const NamedJob& named : bundled_jobs()) {
    for (const char* format : {"compressed-tensors", "dense"}) {
      const bool rounds_inputs = rounding.contains(method_of(named));
      if (rounds_inputs && format == std::string("dense")) continue;  // refused
      CAPTURE(named.name, format);
      const test::TempDir dir;
      Json job = without_evaluation(named, dir / "out");
      job["write"] = {{"format", format}};
      const pipeline::RunReport report = test::run(job);
      Observer silent;
      const pipeline::OutputCheck check = pipeline::verify(dir / "out", silent);
      CHECK(check.message == "");
      REQUIRE(check.not_compared.empty());
      std::set<std::string> reported;
      for (const auto& row : report.operators) reported.insert(row.name);
      CHECK(check.errors_compared + check.errors_left == static_cast<int64_t>(reported.size()));
      INFO(check.errors_compared << " of " << reported.size());
      const bool is_moved = std::any_of(report.passes.begin(), report.passes.end(), [&](const auto& pass) {
        return moves_or_deletes.contains(pass.method);
      });
      CHECK((is_moved || check.errors_left == 0));
    }
  }
}

TEST_CASE("products in bfloat16 give the same bytes at any number of threads", "[every][determinism][slow]") {
  if (!linalg::has_native_bf16()) {
    WARN("skipped: this processor has no bfloat16 products");
    return;
  }
  for (const NamedJob& named : bundled_jobs()) {
    if (named.name != "gptq in two streams" && named.name != "svd_llm under a budget") continue;
    CAPTURE(named.name);
    const test::TempDir dir;
    const auto hash_of = [&](const std::string& name, int threads) {
      Json job = without_evaluation(named, dir / name);
      job["compute"] = "bf16";
      job["threads"] = threads;
      test::run(job);
      return test::weights_hash(dir / name);
    };
    const std::string expected = hash_of("one", 1);
    REQUIRE(hash_of("two", 2) == expected);
    REQUIRE(hash_of("eight", 8) == expected);
  }
}

TEST_CASE("every method makes a finite model of samples that are all alike; strict refuses what needed help",
          "[every][ladder][slow]") {
  for (const char* words : {"the the ", "In the beginning God created the heaven and the earth. "}) {
    for (const NamedJob& named : bundled_jobs()) {
      CAPTURE(words, named.name);
      const test::TempDir dir;
      Json job = without_evaluation(named, dir / "out");
      job["calibration"]["text"] = monotonous_text(dir, words).string();
      const auto report = test::run(job);
      require_sound(report, dir / "out");
      Json strict = job;
      strict["output"] = (dir / "strict").string();
      strict["strict"] = true;
      if (!tells_of_trouble(report)) {
        test::run(strict);
        REQUIRE(test::weights_hash(dir / "strict") == test::weights_hash(dir / "out"));
        continue;
      }
      REQUIRE_THROWS_AS(test::run(strict), NumericalError);
      REQUIRE_FALSE(fs::exists(dir / "strict"));
    }
  }
}

TEST_CASE("every method makes a finite model where inputs are huge, or says that they are too large",
          "[every][ladder][slow]") {
  for (const double factor : {1e6, 1e25}) {
    const test::TempDir models;
    const fs::path model = scaled_model(models, factor);
    for (const NamedJob& named : bundled_jobs()) {
      CAPTURE(factor, named.name);
      const test::TempDir dir;
      Json job = without_evaluation(named, dir / "out");
      job["model"] = model.string();
      try {
        require_sound(test::run(job), dir / "out");
      } catch (const Error& error) {
        CAPTURE(error.what());
        REQUIRE(error.kind() == ErrorKind::kNumerical);
        REQUIRE_FALSE(fs::exists(dir / "out"));
        REQUIRE(factor > 1e6);
      }
    }
  }
}
