#include "lcomp/quant/codebook_weight.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <map>

#include "lcomp/core/error.h"
#include "lcomp/core/rng.h"
#include "quant/codebook_kernels.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/tensor_map.h"

using namespace lcomp;
using quant::CodebookTensors;
using quant::CodebookWeight;
using quant::SparseEntries;

namespace {

int64_t bytes_of(const test::TensorMap& map) {
  int64_t sum = 0;
  for (const auto& [name, tensor] : map.all) sum += static_cast<int64_t>(tensor.nbytes());
  return sum;
}

at::Tensor random_codes(int64_t bits, int64_t out, int64_t in) {
  Rng rng(static_cast<uint64_t>(bits * 1000 + in), "codes");
  at::Tensor codes = at::empty({out, in}, at::kByte);
  for (int64_t i = 0; i < codes.numel(); ++i)
    codes.data_ptr<uint8_t>()[i] = static_cast<uint8_t>(rng.below(uint64_t{1} << bits));
  return codes;
}

at::Tensor random_book(int64_t bits, int64_t out, at::ScalarType type) {
  return std::get<0>(test::normal_matrix(out, int64_t{1} << bits, "book").sort(1)).to(type);
}

/// Row 0 has columns 1 and 3, row 2 has column 0.
SparseEntries some_entries(int64_t out, at::ScalarType type) {
  at::Tensor offsets = at::full({out + 1}, 3, at::kInt);
  offsets[0] = 0;
  offsets.slice(0, 1, 3).fill_(2);
  return {offsets, at::tensor({1, 3, 0}, at::kInt), at::tensor({0.5F, -2.0F, 8.0F}, at::kFloat).to(type)};
}

CodebookTensors stored(const CodebookWeight& weight) {
  test::TensorMap sink;
  weight.save(sink, "op");
  const auto get = [&](const char* part) {
    const auto at = sink.all.find(std::string("op.weight_") + part);
    return at == sink.all.end() ? at::Tensor() : at->second.clone();
  };
  return {get("codes"),
          get("codebook"),
          get("shape"),
          {get("sparse_offsets"), get("sparse_columns"), get("sparse_values")}};
}

}  // namespace

TEST_CASE("a code decodes to its row's value, at every width and length", "[quant][codebook]") {
  for (const int64_t bits : {2, 3, 4, 5, 6, 8}) {
    for (const int64_t in : {1, 5, 8, 31, 64, 77}) {
      CAPTURE(bits, in);
      const at::Tensor codes = random_codes(bits, 4, in);
      const at::Tensor book = random_book(bits, 4, at::kHalf);
      const CodebookWeight weight(bits, codes, book);
      REQUIRE(weight.dense().equal(book.to(at::kFloat).gather(1, codes.to(at::kLong))));
      REQUIRE(weight.codes().equal(codes));
      REQUIRE((weight.out_features() == 4 && weight.in_features() == in));
    }
  }
}

TEST_CASE("the product from the codes is that with the decoded matrix", "[quant][codebook]") {
  for (const int64_t bits : {2, 3, 4, 5}) {
    for (const int64_t in : {3, 8, 64, 131}) {
      const CodebookWeight weight(bits, random_codes(bits, 7, in), random_book(bits, 7, at::kHalf),
                                  in > 3 ? some_entries(7, at::kHalf) : SparseEntries{});
      for (const int64_t tokens : {1, 2, 16, 17}) {
        CAPTURE(bits, in, tokens);
        const at::Tensor x = test::normal_matrix(tokens, in, "x").to(at::kFloat);
        const at::Tensor expected = at::matmul(x.to(at::kDouble), weight.dense().to(at::kDouble).t());
        const at::Tensor y = weight.apply(x);
        REQUIRE(y.sizes() == at::IntArrayRef({tokens, 7}));
        REQUIRE(test::relative_difference(y, expected) < 1e-5);
      }
    }
  }
}

TEST_CASE("kept entries are added to what their codes decode to", "[quant][codebook]") {
  const at::Tensor codes = random_codes(3, 4, 6);
  const at::Tensor book = random_book(3, 4, at::kFloat);
  at::Tensor expected = book.gather(1, codes.to(at::kLong));
  expected[0][1] += 0.5;
  expected[0][3] += -2.0;
  expected[2][0] += 8.0;
  REQUIRE(CodebookWeight(3, codes, book, some_entries(4, at::kFloat)).dense().equal(expected));
}

TEST_CASE("what is saved is read back, has the announced size and describes itself", "[quant][codebook]") {
  for (const bool sparse : {false, true}) {
    const CodebookWeight weight(3, random_codes(3, 5, 40), random_book(3, 5, at::kBFloat16),
                                sparse ? some_entries(5, at::kBFloat16) : SparseEntries{});
    test::TensorMap sink;
    weight.save(sink, "op");
    REQUIRE(sink.all.size() == (sparse ? 6 : 3));
    REQUIRE(bytes_of(sink) == weight.bytes());
    REQUIRE(weight.bytes() == quant::codebook_bytes(3, 5, 40, sparse ? 3 : 0, at::kBFloat16));
    const CodebookWeight back = CodebookWeight::from_stored(stored(weight), 3, "op");
    REQUIRE(back.dense().equal(weight.dense()));
    REQUIRE(back.describe() == weight.describe());
    REQUIRE(weight.describe() == (sparse ? "3 bit code book per row (bfloat16), 1.50 % kept beside it"
                                         : "3 bit code book per row (bfloat16)"));
  }
}

TEST_CASE("codes and code books that do not fit are refused", "[quant][codebook]") {
  const auto text = [](const auto& call) {
    REQUIRE_THROWS_AS(call(), InvalidArgument);
    return test::error_text(call);
  };
  const at::Tensor codes = random_codes(3, 4, 6), book = random_book(3, 4, at::kHalf);
  REQUIRE(text([&] { CodebookWeight(9, codes, book); }) ==
          "[CodebookWeight] bits must be in [2, 8]; received 9");
  REQUIRE(text([&] { CodebookWeight(3, codes.to(at::kLong), book); }) ==
          "[CodebookWeight] codes must be a uint8 matrix; received int64 [4, 6]");
  REQUIRE(text([&] {
            CodebookWeight(2, at::full({4, 6}, 5, at::kByte), book);
          }) == "[CodebookWeight] codes of 2 bits must be below 4; one is 5");
  REQUIRE(text([&] { CodebookWeight(3, codes, book.slice(1, 0, 4)); }) ==
          "[CodebookWeight] the codebook must be float32, bfloat16 or float16 [4, 8]; it is float16 [4, 4]");
  REQUIRE(text([&] {
            SparseEntries entries = some_entries(4, at::kHalf);
            entries.columns[1] = 6;
            CodebookWeight(3, codes, book, entries);
          }) ==
          "[CodebookWeight] the sparse_columns must ascend within a row and be below 6; row 0 has 6 after 1");
}
