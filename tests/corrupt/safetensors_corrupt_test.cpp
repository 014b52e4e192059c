// Hand-made broken safetensors files: every rule of the format, each with its own error.
#include <catch2/catch.hpp>
#include <fstream>

#include "io/safetensors_header.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/safetensors.h"
#include "support/safetensors_bytes.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::io;
using Catch::Contains;
using test::safetensors_bytes;

namespace {

struct BadFile {
  std::string name;
  std::string bytes;
  std::string message;
};

/// The length field alone.
std::string length_field(uint64_t length) {
  std::string out;
  for (int shift = 0; shift < 64; shift += 8) out += static_cast<char>(length >> shift & 0xFF);
  return out;
}

/// A file with one tensor `a` and `data_bytes` bytes of data.
std::string one_tensor(const std::string& entry, size_t data_bytes = 0) {
  return safetensors_bytes("{\"a\":" + entry + "}", std::string(data_bytes, 'x'));
}

std::string two_tensors(const std::string& first, const std::string& second, size_t data_bytes) {
  return safetensors_bytes(fmt::format(R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":{}}},)"
                                       R"("b":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
                                       first, second),
                           std::string(data_bytes, 'x'));
}

std::vector<BadFile> broken_frames() {
  return {
      {"empty file", "", "the file must begin with the 8 bytes of the header's length; it has 0"},
      {"seven bytes", std::string(7, '\0'), "the 8 bytes of the header's length; it has 7"},
      {"header too long", length_field(100'000'001),
       "the header must have at most 100000000 bytes; the file says 100000001"},
      {"header length overflows", length_field(~uint64_t{0}), "the file says 18446744073709551615"},
      {"a text file", "{\"a\": 1, \"b\": 2}", "(is it a safetensors file?)"},
      {"header longer than the file", length_field(3) + "{}",
       "the header of 3 bytes must end within the file; the file has 10"},
      {"length without header", length_field(1),
       "the header of 1 bytes must end within the file; the file has 8 bytes"},
      {"empty header", safetensors_bytes(""), "the header must begin with '{'; it is empty"},
      {"space before the brace", safetensors_bytes(" {}"),
       "the header must begin with '{'; its first byte is 0x20"},
      {"byte order mark", safetensors_bytes("\xef\xbb\xbf{}"), "its first byte is 0xef"},
      {"an array", safetensors_bytes("[]"), "its first byte is 0x5b"},
      {"not UTF-8", safetensors_bytes("{\"\xff\":1}"),
       "header: line 1, column 3] must be valid UTF-8; byte 2 is 0xff"},
      {"not JSON", safetensors_bytes("{a}"), "header: line 1, column 2] must be valid JSON"},
      {"cut JSON", safetensors_bytes("{\"a\":"), "must be valid JSON"},
      {"padded with NUL", safetensors_bytes(std::string("{}\0\0", 4)),
       "line 1, column 3] must be valid JSON; it has a NUL"},
      {"text behind the JSON", safetensors_bytes("{} {}"), "line 1, column 4] must be valid JSON"},
      {"duplicate tensor", safetensors_bytes(R"({"a":1,"a":2})"),
       "must not repeat a key in an object; \"a\" comes twice"},
      {"duplicate field", one_tensor(R"({"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]})"),
       "\"dtype\" comes twice"},
      {"deep nesting", safetensors_bytes("{\"a\":" + std::string(100000, '[')),
       "must nest at most 3 arrays and objects"},
      {"metadata not an object", safetensors_bytes(R"({"__metadata__":[]})"),
       "/__metadata__] must be an object; it is an array"},
      {"metadata value not a string", safetensors_bytes(R"({"__metadata__":{"format":1}})"),
       "/__metadata__/format] must be a string; it is 1"},
  };
}

std::vector<BadFile> broken_entries() {
  return {
      {"entry not an object", one_tensor("[]"), "/a] must be an object; it is an array"},
      {"no dtype", one_tensor(R"({"shape":[],"data_offsets":[0,0]})"),
       "/a] must have the key \"dtype\"; it is missing"},
      {"no shape", one_tensor(R"({"dtype":"U8","data_offsets":[0,0]})"),
       "/a] must have the key \"shape\"; it is missing"},
      {"no offsets", one_tensor(R"({"dtype":"U8","shape":[]})"),
       "/a] must have the key \"data_offsets\"; it is missing"},
      {"unknown dtype", one_tensor(R"({"dtype":"F128","shape":[],"data_offsets":[0,16]})", 16),
       "/a/dtype] must be a dtype of the format, such as BF16 or F32; it is \"F128\""},
      {"dtype in lower case", one_tensor(R"({"dtype":"f32","shape":[],"data_offsets":[0,4]})", 4),
       "it is \"f32\""},
      {"dtype not a string", one_tensor(R"({"dtype":8,"shape":[],"data_offsets":[0,1]})", 1),
       "/a/dtype] must be a string; it is 8"},
      {"shape not an array", one_tensor(R"({"dtype":"U8","shape":1,"data_offsets":[0,1]})", 1),
       "/a/shape] must be an array; it is 1"},
      {"negative dimension", one_tensor(R"({"dtype":"U8","shape":[-1],"data_offsets":[0,1]})", 1),
       "/a/shape/0] must be an integer in [0, 9223372036854775807]; it is -1"},
      {"fractional dimension", one_tensor(R"({"dtype":"U8","shape":[1.0],"data_offsets":[0,1]})", 1),
       "/a/shape/0] must be an integer; it is 1.0"},
      {"dimension above 2^63",
       one_tensor(R"({"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,1]})", 1),
       "/a/shape/0] must be an integer in [0, 9223372036854775807]"},
      {"dimension above 2^64",
       one_tensor(R"({"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,1]})", 1),
       "/a/shape/0] must be an integer; it is 1e+20"},
      {"product overflows",
       one_tensor(R"({"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]})"),
       "/a] the product of the shape must fit 63 bits; it is U8 [4294967296, 4294967296]"},
      {"product with zero overflows",
       one_tensor(R"({"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]})"),
       "the product of the shape must fit 63 bits"},
      {"bits overflow", one_tensor(R"({"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]})"),
       "/a] the bits of the tensor must be countable in 64 bits; it is F64 [2305843009213693952]"},
      {"half a byte", one_tensor(R"({"dtype":"F4","shape":[3],"data_offsets":[0,1]})", 1),
       "/a] the elements must fill whole bytes; it is F4 [3]"},
      {"six bits", one_tensor(R"({"dtype":"F6_E2M3","shape":[2],"data_offsets":[0,1]})", 1),
       "the elements must fill whole bytes; it is F6_E2M3 [2]"},
      {"too few bytes", one_tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4),
       "/a] must have as many bytes as F32 [2] takes, 8; data_offsets span 4"},
      {"too many bytes", one_tensor(R"({"dtype":"F32","shape":[],"data_offsets":[0,8]})", 8),
       "as F32 [] takes, 4; data_offsets span 8"},
      {"one offset", one_tensor(R"({"dtype":"U8","shape":[0],"data_offsets":[0]})"),
       "/a/data_offsets] must be the two numbers [begin, end]; it has 1"},
      {"three offsets", one_tensor(R"({"dtype":"U8","shape":[0],"data_offsets":[0,0,0]})"),
       "must be the two numbers [begin, end]; it has 3"},
      {"end before begin", one_tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[1,0]})", 1),
       "/a/data_offsets] must not end before it begins; it is [1, 0]"},
      {"negative offset", one_tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[-1,0]})", 1),
       "/a/data_offsets/0] must be an integer in [0, 9223372036854775807]; it is -1"},
      {"offset above 2^63",
       one_tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551615]})", 1),
       "/a/data_offsets/1] must be an integer in [0, 9223372036854775807]"},
  };
}

std::vector<BadFile> broken_tilings() {
  return {
      {"first tensor not at 0", one_tensor(R"({"dtype":"U8","shape":[4],"data_offsets":[4,8]})", 8),
       "the data of tensor \"a\" must begin at byte 0 of the buffer, where the one before ends; it begins at "
       "4 (a hole)"},
      {"a hole", two_tensors("[0,4]", "[5,9]", 9),
       "the data of tensor \"b\" must begin at byte 4 of the buffer, where the one before ends; it begins at "
       "5 (a hole)"},
      {"an overlap", two_tensors("[0,4]", "[3,7]", 7),
       "the data of tensor \"b\" must begin at byte 4 of the buffer, where the one before ends; it begins at "
       "3 (an overlap)"},
      {"two names for the same bytes", two_tensors("[0,4]", "[0,4]", 4),
       "the data of tensor \"b\" must begin at byte 4 of the buffer, where the one before ends; it begins at "
       "0 (an overlap)"},
      {"truncated data", two_tensors("[0,4]", "[4,8]", 7),
       "the file must hold 8 bytes of tensor data; it has 7: it is truncated"},
      {"enormous tensor",
       one_tensor(R"({"dtype":"U8","shape":[1000000000000000],"data_offsets":[0,1000000000000000]})", 1),
       "the file must hold 1000000000000000 bytes of tensor data; it has 1: it is truncated"},
      {"bytes behind the data", two_tensors("[0,4]", "[4,8]", 9),
       "the file must end with its last tensor, after 8 bytes of data; it has 9"},
      {"data without tensors", safetensors_bytes("{}", "x"),
       "the file must end with its last tensor, after 0 bytes of data; it has 1"},
  };
}

}  // namespace

TEST_CASE("every broken safetensors file is refused with the error of its rule",
          "[io][safetensors][corrupt]") {
  const test::TempDir dir;
  const auto path = dir / "bad.safetensors";
  for (const auto& table : {broken_frames(), broken_entries(), broken_tilings()}) {
    for (const BadFile& bad : table) {
      CAPTURE(bad.name);
      write_file_atomic(path, bad.bytes);
      REQUIRE_THROWS_AS(SafetensorsFile(path), CorruptFile);
      REQUIRE_THROWS_WITH(SafetensorsFile(path), Contains("[" + path.string()) && Contains(bad.message));
    }
  }
}

TEST_CASE("a safetensors file cut at any length is refused as corrupt", "[io][safetensors][corrupt]") {
  const test::TempDir dir;
  const auto path = dir / "cut.safetensors";
  const std::string whole = two_tensors("[0,4]", "[4,8]", 8);
  for (size_t length = 0; length < whole.size(); ++length) {
    CAPTURE(length);
    std::ofstream(path, std::ios::binary | std::ios::trunc) << whole.substr(0, length);
    REQUIRE_THROWS_AS(SafetensorsFile(path), CorruptFile);
  }
  std::ofstream(path, std::ios::binary | std::ios::trunc) << whole;
  REQUIRE_NOTHROW(SafetensorsFile(path));
}

TEST_CASE("no single changed byte of a header does more than an error of the format",
          "[io][safetensors][corrupt]") {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]}}   )";
  const uint64_t size = 8 + header.size() + 11;
  int refused = 0;
  for (size_t at = 0; at < header.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      std::string changed = header;
      changed[at] = static_cast<char>(value);
      try {
        const SafetensorsHeader parsed = parse_safetensors_header(changed, size, "x");
        uint64_t position = 0;
        for (const TensorInfo& info : parsed.tensors) {  // whatever is accepted tiles the buffer
          REQUIRE(info.begin == position);
          REQUIRE(stored_bytes(info.dtype, info.shape) == info.bytes());
          position = info.end;
        }
        REQUIRE(position == 11);
      } catch (const CorruptFile&) {
        ++refused;
      }
    }
  }
  REQUIRE(refused > 1000);
}
