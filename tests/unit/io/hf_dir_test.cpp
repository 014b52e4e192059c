#include "lcomp/io/hf_dir.h"

#include <catch2/catch.hpp>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::io;
using Catch::Contains;

TEST_CASE("tokenizer, generation settings and licences go along; weights and model cards do not",
          "[io][hf_dir]") {
  const test::TempDir dir;
  make_directories(dir / "from/1_Pooling");
  make_directories(dir / "to");
  for (const std::string name :
       {"tokenizer.json", "merges.txt", "LICENSE", "LICENSE.txt", "chat_template.jinja",
        "generation_config.json", "README.md", "config.json", "model.safetensors", "pytorch_model.bin",
        "model.safetensors.index.json", "modeling.py", "modules.json", "1_Pooling/config.json"})
    write_file_atomic(dir / "from" / name, "content of " + name);
  make_directories(dir / "from/vocab.json");  // a directory is no file
  const std::vector<std::string> wanted = {
      "1_Pooling/config.json",  "LICENSE",    "LICENSE.txt",  "chat_template.jinja",
      "generation_config.json", "merges.txt", "modules.json", "tokenizer.json"};
  REQUIRE(companion_files(dir / "from") == wanted);
  const auto records = copy_companion_files(dir / "from", dir / "to");
  REQUIRE(records.size() == wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) {
    REQUIRE(records[i] == record_of(dir / "to", wanted[i]));
    REQUIRE(read_file(dir / "to" / wanted[i]) == "content of " + wanted[i]);
  }
  REQUIRE_THROWS_AS(companion_files(dir / "none"), CorruptFile);
}

TEST_CASE("a file that goes with a model is no link to elsewhere, but to the cache of a hub",
          "[io][hf_dir]") {
  const test::TempDir dir;
  const auto model = dir / "hub/models--x/snapshots/1";
  make_directories(model);
  make_directories(dir / "hub/models--x/blobs");
  write_file_atomic(dir / "hub/models--x/blobs/abc", "{}");
  write_file_atomic(model / "merges.txt", "a b");
  std::filesystem::create_symlink("../../blobs/abc", model / "tokenizer.json");
  std::filesystem::create_symlink("merges.txt", model / "vocab.txt");
  REQUIRE(companion_files(model).size() == 3);
  write_file_atomic(dir / "secret", "secret");
  std::filesystem::create_symlink(dir / "secret", model / "LICENSE");
  REQUIRE_THROWS_WITH(
      companion_files(model),
      Catch::Contains("LICENSE] a file that goes with the model must lie in its folder, or in the cache "
                      "that the folder links to; it leads to "));
}

TEST_CASE("a config keeps unknown fields and the order of its keys", "[io][hf_dir]") {
  const std::string config =
      R"({"zeta":1e-05,"model_type":"llama","alpha":{"y":[1.5,null],"b":"é"},"big":1000000.0})";
  const std::string same = config_with(config, {}, "config.json");
  REQUIRE(parse_ordered_json(same, "x").dump() == config);
  REQUIRE(same.ends_with("}\n"));
  REQUIRE(config_with(same, {}, "x") == same);
}

TEST_CASE("entries replace a config's key in its place, follow at the end, or take it away", "[io][hf_dir]") {
  const std::string out = config_with(
      R"({"a":1,"quantization_config":{"old":1},"b":2})",
      {{"quantization_config", R"({"z":1,"a":2})"}, {"torch_dtype", "\"bfloat16\""}}, "config.json");
  REQUIRE(parse_ordered_json(out, "x").dump() ==
          R"({"a":1,"quantization_config":{"z":1,"a":2},"b":2,"torch_dtype":"bfloat16"})");
  const std::string less = config_with(R"({"a":1,"b":2,"c":3})", {{"b", ""}, {"absent", ""}}, "config.json");
  REQUIRE(parse_ordered_json(less, "x").dump() == R"({"a":1,"c":3})");
}

TEST_CASE("a config or entry that is not JSON is refused with its place", "[io][hf_dir]") {
  REQUIRE_THROWS_AS(config_with("{", {}, "config.json"), ConfigError);
  REQUIRE_THROWS_WITH(config_with("{", {}, "config.json"),
                      Contains("[config.json: line 1, column 2] must be valid JSON"));
  REQUIRE_THROWS_AS(config_with("[]", {}, "config.json"), ConfigError);
  REQUIRE_THROWS_WITH(config_with("[]", {}, "config.json"),
                      "[config.json] must be an object; it is an array");
  REQUIRE_THROWS_AS(config_with("{}", {{"k", "{"}}, "config.json"), InvalidArgument);
  REQUIRE_THROWS_WITH(config_with("{}", {{"k", "{"}}, "config.json"),
                      Contains("[config_with] the value of \"k\" must be JSON; [k: line 1, column 2]"));
}

TEST_CASE("every fixture's config.json survives a rewrite value for value", "[io][hf_dir]") {
  const auto folder = test::shared_data("golden/models");
  if (!folder) {
    WARN("skipped: no shared test data");
    return;
  }
  int seen = 0;
  for (const auto& model : list_directory(*folder)) {
    if (!std::filesystem::exists(model / "config.json")) continue;
    CAPTURE(model.string());
    const std::string config = read_file(model / "config.json");
    REQUIRE(parse_ordered_json(config_with(config, {}, "x"), "x") == parse_ordered_json(config, "x"));
    ++seen;
  }
  REQUIRE(seen > 0);
}
