#include "lcomp/io/safetensors.h"

#include <sys/resource.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "support/safetensors_bytes.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::io;
using Catch::Contains;

namespace {

/// Equal bits, so that NaN equals NaN and 0 differs from -0.
bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0;
}

/// Resident pages of mapped files, in bytes (RssFile of /proc/self/status).
uint64_t resident_file_bytes() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with("RssFile:")) return std::stoull(line.substr(8)) * 1024;
  }
  return 0;
}

}  // namespace

TEST_CASE("a hand-made safetensors file reads as the format's text says", "[io][safetensors]") {
  const test::TempDir dir;
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]}}   )";
  const std::string data("\x80\x3f\x00\xc0\x00\x3f\x49\x40\x01\xff\x80", 11);
  write_file_atomic(dir / "x.safetensors", test::safetensors_bytes(header, data));

  const SafetensorsFile file(dir / "x.safetensors");
  REQUIRE(file.file_bytes() == 163);
  REQUIRE(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
  REQUIRE(file.tensors().size() == 2);
  REQUIRE(describe(file.info("a")) == "BF16 [2, 2]");
  REQUIRE(file.info("b").begin == 8);
  REQUIRE(file.contains("a"));
  REQUIRE_FALSE(file.contains("c"));
  REQUIRE(
      at::equal(file.read("a"), at::tensor({1.0F, -2.0F, 0.5F, 3.140625F}).to(at::kBFloat16).view({2, 2})));
  REQUIRE(at::equal(file.read_as_float("b"), at::tensor({1.0F, -1.0F, -128.0F})));

  std::array<std::byte, 2> piece{};
  file.read_bytes("b", 1, piece);
  REQUIRE(std::to_integer<int>(piece[0]) == 0xff);
  REQUIRE(std::to_integer<int>(piece[1]) == 0x80);
  REQUIRE_THROWS_WITH(
      file.read_bytes("b", 2, piece),
      "[SafetensorsFile::read_bytes] the range must lie within the 3 bytes of \"b\"; it is [2, 2 + 2)");
  REQUIRE_THROWS_WITH(file.read("c"),
                      Contains("x.safetensors] the file must have the tensor \"c\"; it is not among its 2"));
}

TEST_CASE("every safetensors fixture of the reference opens and every tensor reads", "[io][safetensors]") {
  const auto folder = test::shared_data("golden/formats/safetensors");
  if (!folder) {
    WARN("skipped: no shared test data");
    return;
  }
  const Json manifest = parse_json(read_file(*folder / "manifest.json"), "manifest.json");
  for (const auto& [name, entry] : manifest["files"].items()) {
    CAPTURE(name);
    const SafetensorsFile file(*folder / name);
    if (entry.contains("tensors")) {
      std::vector<std::string> names;
      for (const TensorInfo& info : file.tensors()) names.push_back(info.name);
      std::sort(names.begin(), names.end());
      auto wanted = entry["tensors"].get<std::vector<std::string>>();
      std::sort(wanted.begin(), wanted.end());
      REQUIRE(names == wanted);
    }
    if (entry.contains("metadata") && entry["metadata"].is_object())
      REQUIRE(file.metadata() == entry["metadata"].get<std::map<std::string, std::string>>());
    for (const TensorInfo& info : file.tensors()) {
      CAPTURE(info.name, describe(info));
      if (scalar_type_of(info.dtype)) {
        const at::Tensor tensor = file.read(info.name);
        REQUIRE(tensor.sizes() == at::IntArrayRef(info.shape));
        REQUIRE(tensor.nbytes() == info.bytes());
      } else {
        REQUIRE_THROWS_AS(file.read(info.name), Unsupported);
      }
      std::vector<std::byte> bytes(info.bytes());
      REQUIRE_NOTHROW(file.read_bytes(info.name, 0, bytes));
    }
  }
}

TEST_CASE("the odd but valid fixtures hold the values that were put in", "[io][safetensors]") {
  const auto folder = test::shared_data("golden/formats/safetensors");
  if (!folder) {
    WARN("skipped: no shared test data");
    return;
  }
  const auto values = [&](const std::string& file, const std::string& name) {
    const at::Tensor flat = SafetensorsFile(*folder / (file + ".safetensors")).read_as_float(name).flatten();
    return std::vector<float>(flat.data_ptr<float>(), flat.data_ptr<float>() + flat.numel());
  };
  using Floats = std::vector<float>;
  REQUIRE(values("scalar", "s") == Floats{1.5F});
  REQUIRE(values("unaligned_header", "a") == Floats{3.25F});
  REQUIRE(values("unaligned_data", "a") == Floats{1, 2, 3});
  REQUIRE(values("unaligned_data", "b") == Floats{1, -2});
  REQUIRE(values("unaligned_data", "c") == Floats{-5});
  REQUIRE(values("order_differs", "a") == Floats{1, 2});
  REQUIRE(values("order_differs", "z") == Floats{3});
  REQUIRE(values("json_escapes", "aé😀") == Floats{4});
  REQUIRE(values("json_whitespace", "a") == Floats{2});
  REQUIRE(values("padded_header", "a") == Floats{7});
}

TEST_CASE("all 256 codes of the 8-bit floats decode as the reference decodes them", "[io][safetensors]") {
  const auto folder = test::shared_data("golden/formats/safetensors");
  if (!folder) {
    WARN("skipped: no shared test data");
    return;
  }
  const SafetensorsFile stored(*folder / "all_dtypes.safetensors");
  const SafetensorsFile expected(*folder / "all_dtypes_expected.safetensors");
  REQUIRE_FALSE(expected.tensors().empty());
  for (const TensorInfo& info : expected.tensors()) {
    CAPTURE(info.name);
    const at::Tensor wanted = expected.read_as_float(info.name);
    const std::string suffix = "_as_f32";
    REQUIRE(info.name.ends_with(suffix));
    const at::Tensor got = stored.read_as_float(info.name.substr(0, info.name.size() - suffix.size()));
    REQUIRE(at::equal(got.isnan(), wanted.isnan()));
    REQUIRE(same_bits(got.nan_to_num(0.0), wanted.nan_to_num(0.0)));
  }
}

TEST_CASE("8-bit floats have the landmarks of their specifications", "[io][safetensors]") {
  const auto value = [](StoredDtype dtype, int code) {
    const TensorInfo info{.name = "x", .dtype = dtype, .shape = {}, .begin = 0, .end = 1};
    return decode_as_float(
               info, [&](std::span<std::byte> out) { out[0] = static_cast<std::byte>(code); }, "test")
        .item<float>();
  };
  REQUIRE(value(StoredDtype::kF8E4M3, 0x38) == 1.0F);
  REQUIRE(value(StoredDtype::kF8E4M3, 0x7E) == 448.0F);
  REQUIRE(value(StoredDtype::kF8E4M3, 0x01) == 0x1p-9F);
  REQUIRE(value(StoredDtype::kF8E4M3, 0xB8) == -1.0F);
  REQUIRE(std::isnan(value(StoredDtype::kF8E4M3, 0xFF)));
  REQUIRE(value(StoredDtype::kF8E5M2, 0x7B) == 57344.0F);
  REQUIRE(std::isinf(value(StoredDtype::kF8E5M2, 0x7C)));
  REQUIRE(value(StoredDtype::kF8E4M3Fnuz, 0x7F) == 240.0F);
  REQUIRE(std::isnan(value(StoredDtype::kF8E5M2Fnuz, 0x80)));
  REQUIRE(value(StoredDtype::kF8E8M0, 0) == 0x1p-127F);
  REQUIRE(std::isnan(value(StoredDtype::kF8E8M0, 0xFF)));
}

TEST_CASE("unsigned integers read as float32", "[io][safetensors]") {
  const test::TempDir dir;
  write_file_atomic(dir / "u",
                    test::safetensors_bytes(
                        R"({"a":{"dtype":"U16","shape":[1],"data_offsets":[0,2]},
                                       "b":{"dtype":"U32","shape":[1],"data_offsets":[2,6]},
                                       "c":{"dtype":"U64","shape":[1],"data_offsets":[6,14]}})",
                        std::string("\xff\xff\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00\x80", 14)));
  const SafetensorsFile file(dir / "u");
  REQUIRE(file.read_as_float("a").item<float>() == 65535.0F);
  REQUIRE(file.read_as_float("b").item<float>() == 0x1p31F);
  REQUIRE(file.read_as_float("c").item<float>() == 0x1p63F);
}

TEST_CASE("a type that LibTorch does not have is refused by name and its bytes stay readable",
          "[io][safetensors]") {
  const test::TempDir dir;
  write_file_atomic(dir / "f", test::safetensors_bytes(
                                   R"({"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]},
                                       "b":{"dtype":"C64","shape":[],"data_offsets":[1,9]},
                                       "c":{"dtype":"BOOL","shape":[2],"data_offsets":[9,11]}})",
                                   std::string("\x21\0\0\0\0\0\0\0\0\1\2", 11)));
  const SafetensorsFile file(dir / "f");
  REQUIRE_THROWS_AS(file.read("a"), Unsupported);
  REQUIRE_THROWS_WITH(file.read("a"),
                      Contains("f: a] the tensor must be one of BOOL, U8, I8, I16, I32, I64, F16, BF16, "
                               "F32, F64, C64 to be read; it is F4"));
  REQUIRE_THROWS_WITH(file.read_as_float("a"),
                      Contains("a tensor read as float32 must be real and at least 8 bits wide; it is F4"));
  REQUIRE_THROWS_WITH(file.read_as_float("b"), Contains("it is C64"));
  REQUIRE(file.info("a").bytes() == 1);
  std::array<std::byte, 1> byte{};
  file.read_bytes("a", 0, byte);
  REQUIRE(std::to_integer<int>(byte[0]) == 0x21);
  REQUIRE(file.read("b").scalar_type() == at::kComplexFloat);
  REQUIRE_THROWS_AS(file.read("c"), CorruptFile);
  REQUIRE_THROWS_WITH(file.read("c"), Contains("f: c] a BOOL must be 0 or 1; byte 1 is 2"));
}

TEST_CASE("dtype names, widths and LibTorch types agree", "[io][safetensors]") {
  REQUIRE(EnumNames<StoredDtype>::names.size() == static_cast<size_t>(StoredDtype::kU64) + 1);
  for (size_t i = 0; i <= static_cast<size_t>(StoredDtype::kU64); ++i) {
    const auto dtype = static_cast<StoredDtype>(i);
    CAPTURE(name_of(dtype));
    REQUIRE(find_stored_dtype(name_of(dtype)) == dtype);
    if (const auto scalar = scalar_type_of(dtype)) {
      REQUIRE(stored_dtype_of(*scalar) == dtype);
      REQUIRE(bits_of(dtype) == static_cast<int>(8 * c10::elementSize(*scalar)));
    }
    // The digits in the name are the width, but for BOOL.
    const std::string name(name_of(dtype));
    if (const size_t digit = name.find_first_of("123456789"); digit != std::string::npos)
      REQUIRE(bits_of(dtype) == std::stoi(name.substr(digit)));
  }
  REQUIRE_FALSE(find_stored_dtype("F8"));
  REQUIRE_THROWS_WITH(stored_dtype_of(at::kComplexDouble),
                      Contains("[stored_dtype_of] a tensor to store must be one of BOOL, U8"));
}

TEST_CASE("stored sizes are exact or refused", "[io][safetensors]") {
  const auto bytes = [](StoredDtype dtype, std::vector<int64_t> shape) { return stored_bytes(dtype, shape); };
  REQUIRE(bytes(StoredDtype::kF32, {}) == 4);
  REQUIRE(bytes(StoredDtype::kF32, {3, 0}) == 0);
  REQUIRE(bytes(StoredDtype::kF4, {3, 2}) == 3);
  REQUIRE(bytes(StoredDtype::kF6E2M3, {4}) == 3);
  REQUIRE_FALSE(bytes(StoredDtype::kF4, {3}));
  REQUIRE_FALSE(bytes(StoredDtype::kU8, {-1}));
  REQUIRE_FALSE(bytes(StoredDtype::kF32, {int64_t{1} << 40, int64_t{1} << 40}));
  REQUIRE_THROWS_WITH(bytes_of(at::zeros({2, 3}).t()),
                      "[bytes_of] the tensor must be contiguous and on the CPU; it is not");
}

TEST_CASE("reading copies leaves nothing of the file resident", "[io][safetensors]") {
  const test::TempDir dir;
  const size_t size = size_t{32} << 20;
  const std::string header =
      fmt::format(R"({{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[0,{}]}}}})", size, size);
  write_file_atomic(dir / "big", test::safetensors_bytes(header, std::string(size, 'x')));
  const SafetensorsFile file(dir / "big");
  const uint64_t before = resident_file_bytes();
  const at::Tensor read = file.read("a");
  REQUIRE(resident_file_bytes() < before + size / 4);
  REQUIRE(read.sum().item<int64_t>() == static_cast<int64_t>(size) * 'x');
  REQUIRE(read[-1].item<int>() == 'x');
}

TEST_CASE("a file that shrinks while it is open gives an error, not a crash", "[io][safetensors]") {
  const test::TempDir dir;
  write_file_atomic(dir / "s", test::safetensors_bytes(
                                   R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", "12345678"));
  const SafetensorsFile file(dir / "s");
  std::filesystem::resize_file(dir / "s", 20);
  REQUIRE_THROWS_AS(file.read("a"), ResourceError);
  REQUIRE_THROWS_WITH(file.read("a"), Contains("the file must be read; it ends at byte"));
}

TEST_CASE("what is not a readable regular file is refused", "[io][safetensors]") {
  const test::TempDir dir;
  REQUIRE_THROWS_WITH(SafetensorsFile(dir / "none"), Contains("none] the file must be opened; No such file"));
  REQUIRE_THROWS_WITH(SafetensorsFile(dir.path()),
                      Contains("the file must be a regular file; it is a directory"));
}
