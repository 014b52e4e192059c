// What is told of a job before it runs: sizes, memory, disk and time.
#include "lcomp/pipeline/planner.h"

#include "core/stopwatch.h"
#include "pipeline/llama_files.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;

namespace {

/// Of Llama 3 70B.
constexpr test::LlamaShape k70B{8192, 28672, 64, 8, 128256, true, false};
constexpr int64_t k70BBlocks = 80;

pipeline::Plan plan_70b(const fs::path& model, const Json& pass) {
  Json job = test::job_with(model.string() + "-out", Json::array({pass}));
  job["model"] = model.string();
  job["calibration"].update({{"samples", 128}, {"length", 2048}});
  return pipeline::plan(test::parse(job), pipeline::builtin_methods());
}

const pipeline::OperatorPlan& last_down(const pipeline::Plan& plan) {
  REQUIRE(plan.operators.size() == k70BBlocks * 7);
  REQUIRE(plan.operators.back().name == "model.layers.79.mlp.down_proj");
  return plan.operators.back();
}

}  // namespace

TEST_CASE("a model of 70 billion weights is planned from its headers in seconds", "[pipeline][plan]") {
  const test::TempDir dir;
  const fs::path model = test::write_llama_headers(dir / "70b", k70BBlocks, k70B);
  const Json pass =
      GENERATE(Json{{"method", "rtn"}, {"bits", 4}, {"group_size", 64}}, test::pass("gptq"),
               test::pass("awq"), Json{{"method", "wanda"}}, Json{{"method", "sparsegpt"}},
               Json{{"method", "svd_llm"}}, Json{{"method", "squeezellm"}}, Json{{"method", "fisher_mask"}});
  const Stopwatch watch;
  const pipeline::Plan plan = plan_70b(model, pass);
  const double seconds = pipeline::estimate_seconds(plan);
  INFO(pass << ": planned in " << watch.seconds() << " s, " << plan.memory.peak() / 1'000'000'000 << " GB, "
            << plan.disk_bytes / 1'000'000'000 << " GB on disk, " << seconds / 3600 << " h");
  CHECK(watch.seconds() < 20);
  CHECK(plan.parameters == 70'553'706'496);
  CHECK(plan.bytes_before == 2 * 70'553'706'496);
  CHECK(last_down(plan).bytes_before == int64_t{2} * 8192 * 28672);
  CHECK(last_down(plan).bytes_after < last_down(plan).bytes_before);
  CHECK(plan.bytes_after < plan.bytes_before);
  // The parts of the output and its shards.
  CHECK(plan.disk_bytes >= 2 * plan.bytes_after);
  // A block of bfloat16; gate and up in float32 as products take them.
  CHECK(plan.memory.block >= uint64_t{2} * 855'638'016);
  if (plan.needs_samples) CHECK(plan.memory.scratch >= uint64_t{4} * 2 * 8192 * 28672);
  CHECK(plan.memory.peak() < 300'000'000'000);
  CHECK(seconds > 60);
  CHECK_FALSE(fs::exists(model.string() + "-out.lcomp-work"));
}

TEST_CASE("the plan of 70 billion weights adds up", "[pipeline][plan]") {
  const test::TempDir dir;
  const fs::path model = test::write_llama_headers(dir / "70b", k70BBlocks, k70B);
  const pipeline::Plan gptq = plan_70b(model, test::pass("gptq"));
  // Codes of 4 bits, a scale of 2 bytes for 64 of them, and the shape.
  constexpr int64_t kDown = int64_t{8192} * 28672;
  CHECK(last_down(gptq).bytes_after == kDown / 2 + kDown / 64 * 2 + 16);
  constexpr int64_t kBlock = int64_t{8192} * (2 * 8192 + 2 * 1024 + 3 * 28672);
  constexpr int64_t kRest = 70'553'706'496 - k70BBlocks * kBlock;
  CHECK(gptq.bytes_after ==
        static_cast<uint64_t>(k70BBlocks * (kBlock / 2 + kBlock / 32 + 7 * 16) + 2 * kRest));
  // 262,144 tokens: 2 operations for each weight, and attention over half of each other token.
  CHECK(gptq.work.forward > 2.0 * 262'144 * k70BBlocks * kBlock);
  CHECK(gptq.work.forward < 2.2 * 262'144 * k70BBlocks * kBlock);
  CHECK(gptq.memory.activations == uint64_t{4} * 262'144 * (8192 + 28672));
  CHECK(gptq.memory.statistics == uint64_t{4} * 28672 * 28672);
  // Gradients keep the inputs of all blocks on disk.
  const pipeline::Plan squeezellm = plan_70b(model, {{"method", "squeezellm"}});
  CHECK(squeezellm.disk_bytes > uint64_t{4} * 262'144 * 8192 * k70BBlocks);
  CHECK(squeezellm.work.gradients > 4 * gptq.work.forward * 0.9);
}

TEST_CASE("a run takes the time that was planned, within a factor of 2", "[pipeline][plan][slow]") {
  const test::TempDir dir;
  const Json pass = GENERATE(test::pass("gptq"), test::pass("awq"), Json{{"method", "sparsegpt"}},
                             Json{{"method", "squeezellm"}}, Json{{"method", "svd_llm"}});
  Json job = test::job_with(dir / "out", Json::array({pass}));
  job["calibration"].update({{"samples", 64}, {"length", 128}});
  job["evaluate"] = {
      {"text", test::evaluation_text().string()}, {"window", 256}, {"max_windows", 8}, {"reference", true}};
  const double planned =
      pipeline::estimate_seconds(pipeline::plan(test::parse(job), pipeline::builtin_methods()));
  const pipeline::Timings timings = test::run(job).timings;
  // Of one thread: other programs may be running.
  const double taken = timings.cpu_user_seconds + timings.cpu_system_seconds;
  INFO(pass << ": " << planned << " s planned, " << taken << " s taken");
  CHECK(planned < 2 * taken);
  CHECK(planned > taken / 2);
}
