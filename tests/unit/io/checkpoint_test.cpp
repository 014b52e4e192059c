#include "lcomp/io/checkpoint.h"

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/safetensors.h"
#include "support/safetensors_bytes.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::io;
using Catch::Contains;

namespace {

/// A file with one I8 tensor per letter of `names`; its value is the letter of `values` at the same place.
std::string letters(const std::string& names, const std::string& values) {
  std::string header = "{";
  for (size_t i = 0; i < names.size(); ++i)
    header += fmt::format(R"({}"{}":{{"dtype":"I8","shape":[1],"data_offsets":[{},{}]}})", i > 0 ? "," : "",
                          names[i], i, i + 1);
  return test::safetensors_bytes(header + "}", values);
}

std::string index(const std::string& weight_map, const std::string& total = "2") {
  return fmt::format(R"({{"metadata":{{"total_size":{}}},"weight_map":{}}})", total, weight_map);
}

struct Shards {
  test::TempDir dir;

  Shards(const std::string& weight_map, const std::string& total = "2") {
    write_file_atomic(dir / "one.safetensors", letters("a", "1"));
    write_file_atomic(dir / "two.safetensors", letters("b", "2"));
    write_file_atomic(dir / "model.safetensors.index.json", index(weight_map, total));
  }
};

}  // namespace

TEST_CASE("a sharded checkpoint is one map from names to tensors", "[io][checkpoint]") {
  const Shards shards(R"({"b":"two.safetensors","a":"one.safetensors"})");
  const CheckpointPtr checkpoint = open_checkpoint(shards.dir.path());
  REQUIRE(checkpoint->names() == std::vector<std::string>{"a", "b"});
  REQUIRE(checkpoint->contains("b"));
  REQUIRE_FALSE(checkpoint->contains("c"));
  REQUIRE(checkpoint->read("b").item<int>() == '2');
  REQUIRE(checkpoint->read_as_float("a").item<float>() == '1');
  REQUIRE(checkpoint->file_of("b") == (shards.dir / "two.safetensors").string());
  REQUIRE(describe(checkpoint->info("a")) == "I8 [1]");
  REQUIRE(checkpoint->total_bytes() == 2);
  REQUIRE(checkpoint->warnings().empty());
  REQUIRE_THROWS_WITH(checkpoint->read("c"),
                      Contains("the checkpoint must have the tensor \"c\"; it is not among its 2"));
}

TEST_CASE("a directory with one file, and the file itself, open alike", "[io][checkpoint]") {
  const test::TempDir dir;
  write_file_atomic(dir / "model.safetensors", letters("ab", "12"));
  for (const auto& path : {dir.path(), dir / "model.safetensors"}) {
    const CheckpointPtr checkpoint = open_checkpoint(path);
    REQUIRE(checkpoint->names() == std::vector<std::string>{"a", "b"});
    REQUIRE(checkpoint->read("b").item<int>() == '2');
    REQUIRE(checkpoint->file_of("a") == (dir / "model.safetensors").string());
  }
}

TEST_CASE("harmless oddities of a checkpoint are warnings", "[io][checkpoint]") {
  SECTION("a wrong total_size") {
    const Shards shards(R"({"a":"one.safetensors","b":"two.safetensors"})", "7");
    REQUIRE_THAT(open_checkpoint(shards.dir.path())->warnings().at(0),
                 Contains("total_size says 7 bytes; the tensors have 2"));
  }
  SECTION("a tensor that the index does not list") {
    const Shards shards(R"({"a":"one.safetensors"})", "1");
    write_file_atomic(shards.dir / "one.safetensors", letters("az", "12"));
    const CheckpointPtr checkpoint = open_checkpoint(shards.dir.path());
    REQUIRE_FALSE(checkpoint->contains("z"));
    REQUIRE_THAT(checkpoint->warnings().at(0),
                 Contains("one.safetensors] the tensor \"z\" is not in the index"));
  }
  SECTION("one tensor twice with the same contents") {
    const Shards shards(R"({"a":"one.safetensors","b":"two.safetensors"})");
    write_file_atomic(shards.dir / "two.safetensors", letters("ab", "12"));
    REQUIRE_THAT(open_checkpoint(shards.dir.path())->warnings().at(0),
                 Contains("the tensor \"a\" is stored twice, in one.safetensors and two.safetensors"));
  }
  SECTION("an index beside a single file") {
    const Shards shards(R"({"a":"gone.safetensors"})");
    write_file_atomic(shards.dir / "model.safetensors", letters("q", "1"));
    const CheckpointPtr checkpoint = open_checkpoint(shards.dir.path());
    REQUIRE(checkpoint->names() == std::vector<std::string>{"q"});
    REQUIRE_THAT(checkpoint->warnings().at(0),
                 Contains("there is also model.safetensors.index.json, which is ignored"));
  }
}

TEST_CASE("a broken index or set of shards is refused with the reason", "[io][checkpoint]") {
  struct Case {
    std::string weight_map;
    std::string message;
  };
  const std::vector<Case> cases = {
      {R"({"a":"three.safetensors"})",
       "index.json] the shard \"three.safetensors\" must exist; it is missing"},
      {R"({"b":"one.safetensors"})",
       "index.json] the tensor \"b\" must be in one.safetensors; that file does not have it"},
      {R"({"a":"../one.safetensors"})",
       "/weight_map/a] must be the name of a file in the same directory; it is \"../one"},
      {R"({"a":"/etc/passwd"})", "must be the name of a file in the same directory"},
      {R"({"a":"x\\one.safetensors"})", "must be the name of a file in the same directory"},
      {R"({"a":".."})", "must be the name of a file in the same directory"},
      {R"({"a":""})", "must be the name of a file in the same directory"},
      {R"({"a":"one\u0000"})", "must be the name of a file in the same directory"},
      {R"({"a":1})", "/weight_map/a] must be a string; it is 1"},
      {R"(["a"])", "/weight_map] must be an object; it is an array"},
      {R"({"a":"one.safetensors","a":"two.safetensors"})",
       "must not repeat a key in an object; \"a\" comes twice"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.weight_map);
    const Shards shards(c.weight_map);
    REQUIRE_THROWS_AS(open_checkpoint(shards.dir.path()), CorruptFile);
    REQUIRE_THROWS_WITH(open_checkpoint(shards.dir.path()), Contains(c.message));
  }
  const Shards twin(R"({"a":"one.safetensors","b":"two.safetensors"})");
  write_file_atomic(twin.dir / "two.safetensors", letters("ab", "92"));
  REQUIRE_THROWS_AS(open_checkpoint(twin.dir.path()), CorruptFile);
  REQUIRE_THROWS_WITH(
      open_checkpoint(twin.dir.path()),
      Contains("the tensor \"a\" must be the same in one.safetensors and two.safetensors; the contents"));
  write_file_atomic(twin.dir / "model.safetensors.index.json", "{}");
  REQUIRE_THROWS_WITH(open_checkpoint(twin.dir.path()),
                      Contains("must have the key \"weight_map\"; it is missing"));
}

TEST_CASE("a directory without safetensors is refused by what it has", "[io][checkpoint]") {
  const test::TempDir dir;
  REQUIRE_THROWS_AS(open_checkpoint(dir / "none"), CorruptFile);
  REQUIRE_THROWS_WITH(open_checkpoint(dir / "none"),
                      Contains("none] the model directory must exist; there is none"));
  REQUIRE_THROWS_AS(open_checkpoint(dir.path()), CorruptFile);
  REQUIRE_THROWS_WITH(
      open_checkpoint(dir.path()),
      Contains(
          "the directory must have model.safetensors or model.safetensors.index.json; it has no weights"));
  write_file_atomic(dir / "weights.gguf", "x");
  REQUIRE_THROWS_AS(open_checkpoint(dir.path()), Unsupported);
  REQUIRE_THROWS_WITH(open_checkpoint(dir.path()), Contains("it has weights.gguf"));
  write_file_atomic(dir / "pytorch_model.bin", "x");
  REQUIRE_THROWS_AS(open_checkpoint(dir.path()), Unsupported);
  REQUIRE_THROWS_WITH(open_checkpoint(dir.path()),
                      Contains("it has pytorch_model.bin, a Python pickle, which is a program "
                               "and is not run: convert it to safetensors first"));
}

TEST_CASE("checkpoints of the fixtures open, and a tensor's hash does not depend on its file",
          "[io][checkpoint]") {
  const auto folder = test::shared_data("golden/models/llama_sharded");
  const auto pickle = test::shared_data("golden/models/llama_bin");
  if (!folder || !pickle) {
    WARN("skipped: no shared test data");
    return;
  }
  REQUIRE_THROWS_AS(open_checkpoint(*pickle), Unsupported);
  const CheckpointPtr checkpoint = open_checkpoint(*folder);
  REQUIRE(checkpoint->warnings().empty());
  REQUIRE(checkpoint->total_bytes() == 107136);
  std::map<std::string, at::Tensor> tensors;
  for (const std::string& name : checkpoint->names()) tensors[name] = checkpoint->read(name);
  const MemoryCheckpoint memory(tensors);
  REQUIRE(memory.names() == checkpoint->names());
  for (const std::string& name : memory.names())
    REQUIRE(memory.hash_of_tensor(name) == checkpoint->hash_of_tensor(name));
}

TEST_CASE("a checkpoint in memory behaves like one in files", "[io][checkpoint]") {
  const at::Tensor tensor = at::arange(6, at::kFloat).view({2, 3}).t();  // not contiguous
  const MemoryCheckpoint checkpoint({{"a", tensor}, {"b", at::ones({2}, at::kBFloat16)}});
  REQUIRE(checkpoint.names() == std::vector<std::string>{"a", "b"});
  REQUIRE(at::equal(checkpoint.read("a"), tensor));
  REQUIRE(checkpoint.read_as_float("b").scalar_type() == at::kFloat);
  REQUIRE(checkpoint.total_bytes() == 28);
  REQUIRE(checkpoint.file_of("a") == "memory");
  REQUIRE(checkpoint.warnings().empty());
  checkpoint.read("a").zero_();
  REQUIRE(at::equal(checkpoint.read("a"), tensor));
  REQUIRE_THROWS_AS(checkpoint.read("c"), CorruptFile);
  REQUIRE_THROWS_WITH(checkpoint.info("c"),
                      "[memory] the checkpoint must have the tensor \"c\"; it is not among its 2");
  std::array<std::byte, 9> out{};
  REQUIRE_THROWS_WITH(
      checkpoint.read_bytes("b", 0, out),
      "[MemoryCheckpoint::read_bytes] the range must lie within the 4 bytes of \"b\"; it is [0, 0 + 9)");
}

TEST_CASE("the hash of a tensor tells type, shape and bytes apart", "[io][checkpoint]") {
  const MemoryCheckpoint checkpoint({{"a", at::zeros({2, 2})},
                                     {"same", at::zeros({2, 2})},
                                     {"shape", at::zeros({4})},
                                     {"type", at::zeros({2, 2}, at::kInt)},
                                     {"bytes", at::ones({2, 2})}});
  REQUIRE(checkpoint.hash_of_tensor("a") == checkpoint.hash_of_tensor("same"));
  for (const std::string other : {"shape", "type", "bytes"})
    REQUIRE(checkpoint.hash_of_tensor("a") != checkpoint.hash_of_tensor(other));
}
