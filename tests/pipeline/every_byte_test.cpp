// Every byte of every file of an output is flipped in turn: verification must name the file each time.
#include <ATen/ATen.h>

#include <fstream>
#include <set>

#include "lcomp/io/safetensors_writer.h"
#include "lcomp/report/report.h"
#include "pipeline/job_runs.h"
#include "support/tiny_llama.h"
#include "support/toy_tokenizer.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;

namespace {

/// An output in shards, with all that a run can leave: index, companions, reports for people.
fs::path small_output(const test::TempDir& dir) {
  const test::TinyLlama tiny;
  const fs::path model = dir / "model";
  fs::create_directory(model);
  io::write_safetensors(model / "model.safetensors", {tiny.tensors.begin(), tiny.tensors.end()});
  test::write_text(model / "config.json", tiny.config.dump());
  test::write_text(model / "tokenizer.json", test::abc_document().dump());
  test::write_text(model / "tokenizer_config.json", R"({"model_max_length": 64})");
  test::write_text(model / "generation_config.json", R"({"eos_token_id": 2})");
  test::write_text(model / "LICENSE", "Free to flip.\n");
  Json job = test::rtn_job(dir / "out", {{"group_size", 16}});
  job["model"] = model.string();
  job["write"] = {{"shard_size", 8000}};
  Observer silent;
  pipeline::run(test::parse(job), pipeline::builtin_methods(), silent, report::write_reports);
  return dir / "out";
}

/// Changes one bit of a file, another one from byte to byte.
void flip(std::fstream& file, uint64_t position) {
  file.seekg(static_cast<std::streamoff>(position));
  const auto byte = static_cast<char>(file.get() ^ (1 << position % 8));
  file.seekp(static_cast<std::streamoff>(position));
  file.put(byte);
  file.flush();
}

/// Flips one in `step` bytes of each file, and requires that verification finds and names each; returns their
/// number.
int64_t require_found(const fs::path& output, uint64_t step) {
  Observer silent;
  const auto message = [&] { return pipeline::verify(output, silent).message; };
  REQUIRE(message().empty());
  int64_t flips = 0;
  for (const fs::path& path : io::list_directory(output)) {
    const std::string name = path.filename().string();
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    for (uint64_t at = 0; at < fs::file_size(path); at += step, ++flips) {
      flip(file, at);
      if (message().find(name) == std::string::npos) FAIL("byte " << at << " of " << name << " is not found");
      flip(file, at);
    }
  }
  REQUIRE(message().empty());
  return flips;
}

}  // namespace

TEST_CASE("one in 23 bytes of an output, in all of its files, is found when it changes",
          "[pipeline][verify][bytes]") {
  const test::TempDir dir;
  const fs::path output = small_output(dir);
  std::set<std::string> kinds;
  for (const fs::path& file : io::list_directory(output)) kinds.insert(file.extension().string());
  REQUIRE(kinds == std::set<std::string>{"", ".html", ".json", ".md", ".safetensors"});
  REQUIRE(require_found(output, 23) > 3000);
}

TEST_CASE("every byte of every file of an output is found when it changes",
          "[pipeline][verify][bytes][slow]") {
  const test::TempDir dir;
  const fs::path output = small_output(dir);
  uint64_t bytes = 0;
  for (const fs::path& file : io::list_directory(output)) bytes += fs::file_size(file);
  REQUIRE(require_found(output, 1) == static_cast<int64_t>(bytes));
  WARN(bytes << " bytes changed, one after the other, and all were found");
}
