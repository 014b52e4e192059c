#include "lcomp/io/checkpoint_writer.h"

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/io/checkpoint.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::io;
using Catch::Contains;

namespace {

/// Three parts of 100 + 100, 100 and 350 bytes.
void write_parts(CheckpointWriter& writer) {
  writer.add("p0.b", at::full({100}, 1, at::kByte));
  writer.add("p0.a", at::full({100}, 2, at::kByte));
  writer.commit_part("0000");
  writer.add("p1.a", at::full({50}, 3, at::kShort));
  writer.commit_part("0001");
  writer.add("p2.a", at::full({350}, 4, at::kByte));
  writer.commit_part("0002");
}

std::map<std::string, std::string> contents(const std::filesystem::path& dir) {
  std::map<std::string, std::string> out;
  for (const auto& path : list_directory(dir)) out[path.filename().string()] = read_file(path);
  return out;
}

}  // namespace

TEST_CASE("a checkpoint of one shard is one file without index", "[io][checkpoint]") {
  const test::TempDir dir;
  CheckpointWriter writer(dir / "work");
  write_parts(writer);
  REQUIRE(writer.total_bytes() == 650);
  const auto files = writer.finish(dir / "out", 650);
  REQUIRE(files.size() == 1);
  REQUIRE(files[0] == record_of(dir / "out", "model.safetensors"));
  const CheckpointPtr read = open_checkpoint(dir / "out");
  REQUIRE(read->names() == std::vector<std::string>{"p0.a", "p0.b", "p1.a", "p2.a"});
  REQUIRE(at::equal(read->read("p1.a"), at::full({50}, 3, at::kShort)));
}

TEST_CASE("shards are filled greedily in the order of the parts", "[io][checkpoint]") {
  const test::TempDir dir;
  CheckpointWriter writer(dir / "work");
  write_parts(writer);
  const auto files = writer.finish(dir / "out", 200);
  std::vector<std::string> names;
  for (const FileRecord& file : files) {
    names.push_back(file.name);
    REQUIRE(file == record_of(dir / "out", file.name));
  }
  REQUIRE(names ==
          std::vector<std::string>{"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                                   "model-00003-of-00003.safetensors", "model.safetensors.index.json"});
  const CheckpointPtr read = open_checkpoint(dir / "out");
  REQUIRE(read->warnings().empty());  // total_size is right and every tensor is listed once
  REQUIRE(read->total_bytes() == 650);
  const auto home = [&](const std::string& name) {
    return std::filesystem::path(read->file_of(name)).filename().string();
  };
  REQUIRE(home("p0.a") == names[0]);
  REQUIRE(home("p0.b") == names[0]);  // exactly full
  REQUIRE(home("p1.a") == names[1]);
  REQUIRE(home("p2.a") == names[2]);  // larger than the limit: a shard of its own
  REQUIRE(read->read("p0.b")[99].item<int>() == 1);
  for (const uint64_t one_each : {uint64_t{1}, uint64_t{199}})
    REQUIRE(writer.finish(dir / fmt::format("out{}", one_each), one_each).size() == 5);
}

TEST_CASE("a resumed writer, and a repeated finish, give the same bytes", "[io][checkpoint]") {
  const test::TempDir dir;
  {
    CheckpointWriter writer(dir / "work");
    write_parts(writer);
    writer.finish(dir / "whole", 200);
    writer.finish(dir / "again", 200);
    writer.finish(dir / "again", 200);
  }
  CheckpointWriter resumed(dir / "work");
  resumed.adopt_part("0000");
  resumed.adopt_part("0001");
  REQUIRE(resumed.total_bytes() == 300);
  REQUIRE_THROWS_WITH(resumed.add("p1.a", at::zeros({1})),
                      "[CheckpointWriter::add] a tensor must be added once; \"p1.a\" comes again");
  resumed.add("p2.a", at::full({350}, 4, at::kByte));
  const FileRecord part = resumed.commit_part("0002");
  REQUIRE(part == record_of(dir / "work", "blocks/0002.safetensors"));
  resumed.finish(dir / "resumed", 200);
  REQUIRE(contents(dir / "whole").size() == 4);
  REQUIRE(contents(dir / "resumed") == contents(dir / "whole"));
  REQUIRE(contents(dir / "again") == contents(dir / "whole"));
}

TEST_CASE("a checkpoint without tensors is a valid empty file", "[io][checkpoint]") {
  const test::TempDir dir;
  CheckpointWriter writer(dir / "work");
  writer.finish(dir / "out", 1);
  REQUIRE(open_checkpoint(dir / "out")->names().empty());
}

TEST_CASE("misuse of the checkpoint writer is refused", "[io][checkpoint]") {
  const test::TempDir dir;
  CheckpointWriter writer(dir / "work");
  writer.add("a", at::zeros({2}));
  REQUIRE_THROWS_AS(writer.add("a", at::zeros({2})), InvalidArgument);
  REQUIRE_THROWS_WITH(writer.finish(dir / "out", 10),
                      "[CheckpointWriter::finish] all tensors must be in committed parts; \"a\" is not");
  writer.commit_part("x");
  REQUIRE_THROWS_WITH(writer.finish(dir / "out", 0),
                      "[CheckpointWriter::finish] shard_size must be at least 1 byte; it is 0");
  REQUIRE_THROWS_WITH(writer.adopt_part("x"),
                      "[CheckpointWriter::adopt_part] a tensor must be added once; \"a\" comes again");
  REQUIRE_THROWS_AS(CheckpointWriter(dir / "work").adopt_part("none"), CorruptFile);
}

TEST_CASE("8-bit floats are stored with their type, and any tensor is copied with its own",
          "[io][checkpoint]") {
  const test::TempDir dir;
  const at::Tensor codes = at::arange(-6, 6, at::kChar).reshape({3, 4});
  {
    CheckpointWriter writer(dir / "work");
    writer.add_float8_e4m3("a", codes);
    writer.commit_part("0000");
    writer.finish(dir / "first", 1000);
  }
  const CheckpointPtr first = open_checkpoint(dir / "first");
  REQUIRE(first->info("a").dtype == StoredDtype::kF8E4M3);
  REQUIRE(at::equal(first->read_codes("a"), codes.view(at::kByte)));
  REQUIRE_THROWS_AS(first->read("a"), Unsupported);

  CheckpointWriter writer(dir / "work");
  writer.add_from(*first, "a");
  writer.add("b", at::ones({2}));
  REQUIRE_THROWS_WITH(writer.add_from(*first, "a"),
                      "[CheckpointWriter::add] a tensor must be added once; \"a\" comes again");
  REQUIRE_THROWS_WITH(writer.add("c", at::Tensor()),
                      "[CheckpointWriter::add] the tensor \"c\" must be defined; it is not");
  REQUIRE_THROWS_WITH(writer.add_float8_e4m3("c", at::ones({2})),
                      "[CheckpointWriter::add_float8_e4m3] the codes must be bytes; F32 [2] came");
  writer.commit_part("0001");
  writer.finish(dir / "second", 1000);
  const CheckpointPtr second = open_checkpoint(dir / "second");
  REQUIRE(second->hash_of_tensor("a") == first->hash_of_tensor("a"));
  REQUIRE_THROWS_WITH(second->read_codes("b"),
                      Contains("the tensor \"b\" must have elements of 8 bits; it is F32 [2]"));
}

TEST_CASE("tensors in memory may be 8-bit floats", "[io][checkpoint]") {
  const MemoryCheckpoint memory({{"a", at::full({2}, 0x38, at::kByte)}, {"b", at::ones({1})}}, {"a"});
  REQUIRE(memory.info("a").dtype == StoredDtype::kF8E4M3);
  REQUIRE(memory.read_as_float("a").equal(at::ones({2})));
  REQUIRE(memory.read_codes("a").equal(at::full({2}, 0x38, at::kByte)));
  REQUIRE_THROWS_AS(memory.read("a"), Unsupported);
}
