#include "lcomp/io/safetensors_writer.h"

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/io/safetensors.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::io;
using Catch::Contains;

namespace {

TensorInfo info(const std::string& name, StoredDtype dtype, std::vector<int64_t> shape) {
  return {.name = name, .dtype = dtype, .shape = std::move(shape), .begin = 0, .end = 0};
}

std::span<const std::byte> bytes(std::string_view text) {
  return std::as_bytes(std::span(text));
}

std::string bytes_of(const SafetensorsFile& file, const std::string& name) {
  std::string bytes(file.info(name).bytes(), '\0');
  file.read_bytes(name, 0, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

}  // namespace

TEST_CASE("a written file has the bytes that the format's text gives for its example", "[io][safetensors]") {
  const test::TempDir dir;
  const at::Tensor a = at::tensor({1.0F, -2.0F, 0.5F, 3.140625F}).to(at::kBFloat16).view({2, 2});
  const at::Tensor b = at::tensor({1, -1, -128}).to(at::kChar);
  const FileRecord record = write_safetensors(dir / "x.safetensors", {{"b", b}, {"a", a}});
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]}}   )";
  const std::string content = read_file(dir / "x.safetensors");
  REQUIRE(content == std::string("\x90\0\0\0\0\0\0\0", 8) + header +
                         std::string("\x80\x3f\x00\xc0\x00\x3f\x49\x40\x01\xff\x80", 11));
  REQUIRE(record == record_of(dir.path(), "x.safetensors"));
  REQUIRE(record.bytes == 163);
  REQUIRE(list_directory(dir.path()).size() == 1);  // no temporary file is left
}

TEST_CASE("files written by the reference come out of our writer byte for byte", "[io][safetensors]") {
  const auto folder = test::shared_data("golden/formats/safetensors");
  if (!folder) {
    WARN("skipped: no shared test data");
    return;
  }
  const test::TempDir dir;
  for (const std::string name : {"all_dtypes.safetensors", "sheet_example.safetensors"}) {
    CAPTURE(name);
    const SafetensorsFile source(*folder / name);
    SafetensorsWriter writer(dir / name, source.tensors(), source.metadata());
    for (const TensorInfo& tensor : writer.tensors())
      writer.append(tensor.name, bytes(bytes_of(source, tensor.name)));
    writer.finish();
    if (source.metadata().contains("format")) {
      REQUIRE(read_file(dir / name) == read_file(*folder / name));
    } else {
      // Only our "format" entry differs: same tensors at the same places.
      const SafetensorsFile copy(dir / name);
      REQUIRE(copy.tensors().size() == source.tensors().size());
      for (size_t i = 0; i < copy.tensors().size(); ++i) {
        REQUIRE(copy.tensors()[i].name == source.tensors()[i].name);
        REQUIRE(copy.tensors()[i].begin == source.tensors()[i].begin);
        REQUIRE(bytes_of(copy, copy.tensors()[i].name) == bytes_of(source, copy.tensors()[i].name));
      }
    }
  }
}

TEST_CASE("every tensor read back equals the one written, strided, empty and scalar ones included",
          "[io][safetensors]") {
  const test::TempDir dir;
  at::manual_seed(7);
  NamedTensors tensors = {{"strided", at::randn({4, 6}).t()},
                          {"empty", at::empty({0, 3}, at::kInt)},
                          {"last empty", at::empty({0}, at::kBool)},
                          {"scalar", at::tensor(2.5).squeeze()},
                          {"é \"\n", at::randint(0, 2, {5}, at::kBool)}};
  for (const at::ScalarType type : {at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf,
                                    at::kBFloat16, at::kFloat, at::kDouble, at::kComplexFloat})
    tensors.emplace_back(c10::toString(type), at::randint(0, 100, {3, 5}).to(type));
  write_safetensors(dir / "x", tensors, {{"note", "ü"}});
  const SafetensorsFile file(dir / "x");
  REQUIRE(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"note", "ü"}});
  REQUIRE(file.tensors().size() == tensors.size());
  for (const auto& [name, tensor] : tensors) {
    CAPTURE(name);
    REQUIRE(file.read(name).scalar_type() == tensor.scalar_type());
    REQUIRE(at::equal(file.read(name), tensor));
  }
  REQUIRE((file.file_bytes() - file.tensors().back().end) % 8 == 0);  // where the tensors begin
  for (const TensorInfo& tensor : file.tensors())                     // aligned to their own width
    REQUIRE(tensor.begin % (bits_of(tensor.dtype) / 8) == 0);
}

TEST_CASE("bytes may come in pieces and the file appears only at the end", "[io][safetensors]") {
  const test::TempDir dir;
  {
    SafetensorsWriter writer(dir / "x", {info("b", StoredDtype::kU8, {4}), info("a", StoredDtype::kI16, {1}),
                                         info("none", StoredDtype::kU64, {0})});
    REQUIRE(writer.tensors()[0].name == "none");
    REQUIRE(writer.tensors()[1].name == "a");
    writer.append("a", bytes("12"));
    writer.append("b", bytes("345"));
    writer.append("b", bytes("6"));
    REQUIRE_FALSE(std::filesystem::exists(dir / "x"));
    writer.finish();
  }
  REQUIRE(read_file(dir / "x").ends_with("123456"));
  { const SafetensorsWriter dropped(dir / "y", {}); }
  REQUIRE(list_directory(dir.path()).size() == 1);
  SafetensorsWriter(dir / "z", {}).finish();
  REQUIRE(SafetensorsFile(dir / "z").tensors().empty());
}

TEST_CASE("misuse of the safetensors writer is refused", "[io][safetensors]") {
  const test::TempDir dir;
  const auto create = [&](std::vector<TensorInfo> tensors, Metadata metadata = {}) {
    SafetensorsWriter(dir / "x", std::move(tensors), std::move(metadata));
  };
  const TensorInfo a = info("a", StoredDtype::kU8, {2});
  REQUIRE_THROWS_AS(create({a, a}), InvalidArgument);
  REQUIRE_THROWS_WITH(create({a, a}), Contains("x] names must be unique; \"a\" comes twice"));
  REQUIRE_THROWS_WITH(create({info("__metadata__", StoredDtype::kU8, {})}),
                      Contains("no tensor may be called \"__metadata__\"; one is"));
  REQUIRE_THROWS_WITH(create({info("\xff", StoredDtype::kU8, {})}),
                      Contains("names must be valid UTF-8; one is"));
  REQUIRE_THROWS_WITH(create({info("f", StoredDtype::kF4, {3})}),
                      Contains("the size of \"f\" must be a number of bytes below 2^64; it is F4 [3]"));
  REQUIRE_THROWS_WITH(create({}, {{"k", "\xff"}}), Contains("metadata must be valid UTF-8; it is not"));
  REQUIRE_THROWS_WITH(create({}, {{"k", std::string(100'000'000, 'x')}}),
                      Contains("the header must have at most 100000000 bytes; it would have 100000"));
  REQUIRE_THROWS_WITH(write_safetensors(dir / "x", {{"u", at::Tensor()}}),
                      Contains("\"u\" must be defined; it is not"));

  SafetensorsWriter writer(dir / "x", {a, info("b", StoredDtype::kF32, {1})});
  REQUIRE_THROWS_WITH(writer.append("a", bytes("1")),
                      Contains("the next bytes must be those of \"b\"; \"a\" came"));
  REQUIRE_THROWS_WITH(writer.append("b", at::zeros({2})),
                      Contains("the tensor \"b\" must be as announced, F32 [1]; it is F32 [2]"));
  writer.append("b", at::zeros({1}));
  REQUIRE_THROWS_WITH(writer.append("a", bytes("123")),
                      Contains("the tensor \"a\" must have 2 bytes; 3 came"));
  writer.append("a", bytes("1"));
  REQUIRE_THROWS_WITH(writer.finish(),
                      Contains("all tensors must be written before the end; \"a\" has 1 of its 2 bytes"));
  writer.append("a", bytes("2"));
  REQUIRE_THROWS_WITH(writer.append("a", bytes("3")),
                      Contains("the next bytes must be those of no tensor, all are written; \"a\" came"));
  writer.finish();
  REQUIRE_THROWS_WITH(writer.finish(), "[AtomicFile::commit] must be called once; it came again");
}
