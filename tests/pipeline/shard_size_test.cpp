// Sizes of shards that job files may ask for.
#include <catch2/catch.hpp>

#include "lcomp/core/observer.h"
#include "lcomp/pipeline/builtin_methods.h"
#include "lcomp/pipeline/job.h"
#include "lcomp/pipeline/pipeline.h"
#include "support/test_data.h"

using namespace lcomp;

TEST_CASE("a shard size of 0 gives one file without an index", "[pipeline][formats]") {
  const test::TempDir dir;
  const auto methods = pipeline::builtin_methods();
  pipeline::Job job = pipeline::parse_job(R"({
    "model": "-", "output": "-", "write": { "shard_size": 0 },
    "passes": [ { "method": "rtn", "group_size": 64, "targets": "layers.0.*" } ]
  })",
                                          "job", methods);
  job.model = (test::source_dir() / "examples/model").string();
  job.output = (dir / "out").string();
  Observer silent;
  const pipeline::RunReport report = pipeline::run(job, methods, silent);

  REQUIRE(report.verification);
  CHECK(report.verification->passed);
  CHECK(std::filesystem::exists(dir / "out/model.safetensors"));
  CHECK_FALSE(std::filesystem::exists(dir / "out/model.safetensors.index.json"));
}
