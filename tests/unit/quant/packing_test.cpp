#include "lcomp/quant/packing.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <vector>

#include "lcomp/core/rng.h"
#include "support/error_text.h"

using lcomp::quant::pack_codes;
using lcomp::quant::packed_words;
using lcomp::quant::unpack_codes;
using lcomp::test::error_text;

namespace {

at::Tensor codes_row(const std::vector<int>& values) {
  return at::tensor(values, at::kInt).to(at::kChar).unsqueeze(0);
}

at::Tensor counting(int count, int bits) {
  std::vector<int> values;
  for (int i = 0; i < count; ++i) values.push_back(i % (1 << bits) - (1 << (bits - 1)));
  return codes_row(values);
}

std::vector<uint32_t> words_of(const at::Tensor& packed) {
  const at::Tensor flat = packed.contiguous();
  std::vector<uint32_t> words;
  for (int64_t i = 0; i < flat.numel(); ++i)
    words.push_back(static_cast<uint32_t>(flat.data_ptr<int32_t>()[i]));
  return words;
}

at::Tensor words_row(const std::vector<uint32_t>& words) {
  at::Tensor row = at::empty({1, static_cast<int64_t>(words.size())}, at::kInt);
  for (size_t i = 0; i < words.size(); ++i) row.data_ptr<int32_t>()[i] = static_cast<int32_t>(words[i]);
  return row;
}

at::Tensor random_codes(int64_t rows, int64_t cols, int bits) {
  lcomp::Rng rng(7, "packing");
  at::Tensor codes = at::empty({rows, cols}, at::kChar);
  for (int64_t i = 0; i < codes.numel(); ++i) {
    codes.data_ptr<int8_t>()[i] =
        static_cast<int8_t>(static_cast<int>(rng.below(1u << bits)) - (1 << (bits - 1)));
  }
  return codes;
}

}  // namespace

TEST_CASE("codes pack into the words that compressed-tensors writes", "[quant][packing]") {
  using Words = std::vector<uint32_t>;
  REQUIRE(words_of(pack_codes(codes_row({-8, -7, -1, 0, 1, 2, 6, 7}), 4, 1)) == Words{0xFEA98710});
  REQUIRE(words_of(pack_codes(codes_row({-8, 7, 0, 1, -1, 3}), 4, 1)) == Words{0x00B798F0});
  REQUIRE(words_of(pack_codes(codes_row({-128, -1, 0, 127}), 8, 1)) == Words{0xFF807F00});
  REQUIRE(words_of(pack_codes(counting(16, 2), 2, 1)) == Words{0xE4E4E4E4});
  REQUIRE(words_of(pack_codes(counting(32, 3), 3, 1)) == Words{0x88FAC688, 0xC688FAC6, 0xFAC688FA});
  REQUIRE(words_of(pack_codes(counting(8, 4), 4, 1)) == Words{0x76543210});
}

TEST_CASE("zero points pack along the rows", "[quant][packing]") {
  const at::Tensor zeros = codes_row({-8, -7, -6, -5, -4, -3, -2, -1, 0, 1}).t();
  const at::Tensor packed = pack_codes(zeros, 4, 0);
  REQUIRE(packed.sizes() == std::vector<int64_t>{2, 1});
  REQUIRE(words_of(packed) == std::vector<uint32_t>{0x76543210, 0x00000098});
  REQUIRE(unpack_codes(packed, 4, 10, 0).equal(zeros));
}

TEST_CASE("words of the old layout, with unused bits in every word, unpack too", "[quant][packing]") {
  const at::Tensor old = words_row({0x08FAC688, 0x1A23EB1A, 0x2C688FAC, 0x0000003E});
  REQUIRE(unpack_codes(old, 3, 32, 1).equal(counting(32, 3)));
}

TEST_CASE("unpacking inverts packing at every width, odd tail and direction", "[quant][packing]") {
  for (int bits = 2; bits <= 8; ++bits) {
    for (const int64_t cols : {1, 5, 31, 32, 33, 96}) {
      CAPTURE(bits, cols);
      const at::Tensor codes = random_codes(7, cols, bits);
      const at::Tensor along_columns = pack_codes(codes, bits, 1);
      REQUIRE(along_columns.size(1) == packed_words(cols, bits));
      REQUIRE(unpack_codes(along_columns, bits, cols, 1).equal(codes));
      REQUIRE(unpack_codes(pack_codes(codes, bits, 0), bits, 7, 0).equal(codes));
    }
  }
}

TEST_CASE("packing refuses wrong types, bits, directions and widths by name", "[quant][packing]") {
  const at::Tensor codes = random_codes(2, 40, 3);
  REQUIRE(error_text([&] { pack_codes(codes.to(at::kInt), 4, 1); }) ==
          "[pack_codes] the tensor must be an int8 matrix; received 2 dimensions of int32");
  REQUIRE(error_text([&] { unpack_codes(codes, 4, 40, 1); }) ==
          "[unpack_codes] the tensor must be an int32 matrix; received 2 dimensions of int8");
  REQUIRE(error_text([&] { pack_codes(codes, 9, 1); }) == "[pack_codes] bits must be in [2, 8]; received 9");
  REQUIRE(error_text([&] { pack_codes(codes, 4, 2); }) == "[pack_codes] dim must be 0 or 1; received 2");
  REQUIRE(error_text([&] {
            unpack_codes(at::zeros({2, 5}, at::kInt), 3, 32, 1);
          }) == "[unpack_codes] 32 codes of 3 bits must take 3 words (or 4 in the old layout); received 5");
  REQUIRE(error_text([&] {
            unpack_codes(at::zeros({2, 5}, at::kInt), 4, 32, 1);
          }) == "[unpack_codes] 32 codes of 4 bits must take 4 words; received 5");
}
