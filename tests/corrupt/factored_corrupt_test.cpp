// Factors and sums as they may stand in a damaged or hostile checkpoint: every fault is named, and no stored
// number makes anything of its size before it is known to be right. The model is also the seed of
// fuzz_weights.
#include <ATen/ATen.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <limits>

#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/safetensors_writer.h"
#include "support/error_text.h"
#include "support/factored_llama.h"
#include "support/test_data.h"
#include "support/tiny_llama.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::FactoredLlama;

namespace {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

const std::string kAttention = "model.layers.0.self_attn.", kMlp = "model.layers.0.mlp.";
const std::string kQuery = kAttention + "q_proj.weight", kKey = kAttention + "k_proj.weight",
                  kValue = kAttention + "v_proj.weight", kOut = kAttention + "o_proj.weight",
                  kGate = kMlp + "gate_proj.weight", kUp = kMlp + "up_proj.weight",
                  kDown = kMlp + "down_proj.weight", kEmbedding = "model.embed_tokens.weight";

void decode(const FactoredLlama& llama) {
  const model::Model model = llama.model();
  const model::Block block = model.load_block(0);
  for (const model::LinearOp& op : block.ops()) op.weight->dense();
}

/// What reading says; it must be that the file is corrupt.
std::string refusal_of(const FactoredLlama& llama) {
  REQUIRE_THROWS_AS(decode(llama), CorruptFile);
  return test::error_text([&] { decode(llama); });
}

std::string refusal(const std::string& tensor, const std::function<void(at::Tensor&)>& damage) {
  FactoredLlama llama;
  damage(llama.tensors.at(tensor));
  return refusal_of(llama);
}

at::Tensor bytes_of(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::copy(text.begin(), text.end(), bytes.data_ptr<uint8_t>());
  return bytes;
}

/// The tensors of weights, without norms.
std::vector<std::string> stored_parts(const FactoredLlama& llama) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : llama.tensors) {
    if (name.find("norm") == std::string::npos) names.push_back(name);
  }
  return names;
}

struct SeedFiles {
  std::string config;
  fs::path tensors;
};

SeedFiles seed_in(const fs::path& directory) {
  const FactoredLlama llama;
  io::NamedTensors tensors(llama.tensors.begin(), llama.tensors.end());
  SeedFiles seed{llama.config.dump(1) + "\n", directory / "factor_formats.safetensors"};
  io::write_safetensors(seed.tensors, tensors);
  return seed;
}

}  // namespace

// `lcomp_corrupt_tests "writes the factored seed of fuzz_weights"` makes the files anew after a change of a
// format.
TEST_CASE("writes the factored seed of fuzz_weights", "[.]") {
  const fs::path fuzz = test::source_dir() / "tests/fuzz";
  io::write_file_atomic(fuzz / "factor_weights_config.json", seed_in(fuzz / "seeds/weights").config);
}

TEST_CASE("the factored seed of fuzz_weights is the factored llama", "[corrupt][lowrank]") {
  const test::TempDir dir;
  const SeedFiles seed = seed_in(dir.path());
  const fs::path fuzz = test::source_dir() / "tests/fuzz";
  REQUIRE(io::read_file(fuzz / "factor_weights_config.json") == seed.config);
  REQUIRE(io::read_file(fuzz / "seeds/weights/factor_formats.safetensors") == io::read_file(seed.tensors));
}

TEST_CASE("an intact factored model reads as what was saved, and runs", "[corrupt][lowrank]") {
  const FactoredLlama llama;
  const model::Model model = llama.model();
  REQUIRE(model.warnings().empty());
  const model::Block block = model.load_block(0);
  for (const model::LinearOp& op : block.ops()) {
    CAPTURE(op.info.name);
    REQUIRE(op.weight->dense().equal(llama.weights.at(op.info.name)->dense()));
    REQUIRE(op.weight->describe() == llama.weights.at(op.info.name)->describe());
    REQUIRE(op.weight->bytes() == llama.weights.at(op.info.name)->bytes());
  }
  REQUIRE(model.compressed_embedding()->dense().equal(llama.weights.at("model.embed_tokens")->dense()));
  // As the same matrices do.
  FactoredLlama dense;
  for (const auto& [name, weight] : llama.weights)
    dense.store(name, std::make_shared<DenseWeight>(weight->dense()));
  const at::Tensor logits = test::logits_of(model, {3, 1, 4});
  REQUIRE(at::allclose(logits, test::logits_of(dense.model(), {3, 1, 4}), 1e-4, 1e-4));
}

TEST_CASE("parts that are missing, of another type or shape, or not finite are refused by name",
          "[corrupt][lowrank]") {
  for (const std::string& name : stored_parts(FactoredLlama())) {
    CAPTURE(name);
    const std::string op = name.substr(0, name.find(".weight"));
    if (!name.ends_with("_input_scale")) {  // which may be absent
      FactoredLlama llama;
      llama.tensors.erase(name);
      CHECK_THAT(refusal_of(llama), Catch::Contains(op));
    }
    CHECK_THAT(refusal(name, [](at::Tensor& t) { t = t.to(t.is_floating_point() ? at::kInt : at::kFloat); }),
               Catch::Contains(op));
    CHECK_THAT(refusal(name, [](at::Tensor& t) { t = t.narrow(-1, 0, t.size(-1) - 1).contiguous(); }),
               Catch::Contains(op));
    if (!name.ends_with(".weight_shape"))  // of codes and sparse parts, where any two numbers will do
      CHECK_THAT(refusal(name, [](at::Tensor& t) { t = t.unsqueeze(0); }), Catch::Contains(op));
    const FactoredLlama llama;
    if (!llama.tensors.at(name).is_floating_point()) continue;
    for (const double wild : {std::numeric_limits<double>::quiet_NaN(), -HUGE_VAL})
      CHECK_THAT(refusal(name, [&](at::Tensor& t) { t.flatten()[-1] = wild; }),
                 Catch::Contains("'" + name + "' must hold finite values"));
  }
}

TEST_CASE("sizes that cannot be are refused before anything of that size is made", "[corrupt][lowrank]") {
  for (const std::string& name :
       {kUp + "_part0.weight_kronecker_shape", kUp + "_part1.weight_patch_shape", kOut + "_tt_shape",
        kDown + "_morpheme_shape", kEmbedding + "_part0.weight_morpheme_shape",
        kValue + "_part0.weight_shape", kGate + "_factor0.weight_shape"}) {
    for (const int64_t place : {0, 1}) {
      for (const int64_t wild : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::min(),
                                 int64_t{1} << 31, kHuge / 2, kHuge}) {
        CAPTURE(name, place, wild);
        CHECK_THAT(refusal(name, [&](at::Tensor& t) { t[place] = wild; }),
                   Catch::Contains(name.substr(0, name.find(".weight"))));
      }
    }
  }
  REQUIRE(refusal(kOut + "_tt_shape", [](at::Tensor& t) { t[3] = kHuge; }) ==
          "[" + kOut +
              "_tt_shape] must be the shape of the cores, 16, 16, 2, 2, 4, 4, 2, 2; it is 16, 16, 2, " +
              std::to_string(kHuge) + ", 4, 4, 2, 2");
}

TEST_CASE("numbers of parts that the config does not have are refused", "[corrupt][lowrank]") {
  for (const std::string& name : {kQuery + "_factors", kGate + "_factors", kValue + "_parts",
                                  kValue + "_part1.weight_factors", kEmbedding + "_parts"}) {
    for (const int64_t wild : {int64_t{0}, int64_t{-2}, int64_t{3}, kHuge}) {
      CAPTURE(name, wild);
      REQUIRE(refusal(name, [&](at::Tensor& t) { t[0] = wild; }) ==
              "[" + name + "] must be the number of parts in the config, which has 2");
    }
  }
}

TEST_CASE("pivots must be different rows", "[corrupt][lowrank]") {
  for (const std::string& part : {kQuery + "_factor0", kValue + "_part1.weight_factor0"}) {
    for (const int64_t wild :
         {int64_t{-2}, int64_t{16}, int64_t{1}, int64_t{INT32_MAX}, int64_t{INT32_MIN}}) {
      CAPTURE(part, wild);
      CHECK_THAT(
          refusal(part + ".weight_pivots", [&](at::Tensor& t) { t.fill_(wild); }),
          Catch::StartsWith("[" + part + "] the stored parts must fit together; [IdentityRowsWeight]"));
    }
  }
  REQUIRE(refusal(kQuery + "_factor0.weight_pivots", [](at::Tensor& t) { t = t.to(at::kLong); }) ==
          "[" + kQuery +
              "_factor0.weight_pivots] must be I32, as the config has lcomp-identity-rows here; it "
              "is I64");
}

TEST_CASE("indices must be there", "[corrupt][lowrank]") {
  for (const int32_t wild : {-1, 5, INT32_MAX, INT32_MIN})
    CHECK_THAT(refusal(kDown + "_morpheme_index", [&](at::Tensor& t) { t[3][1] = wild; }),
               Catch::Contains("[" + kDown + "_morpheme_index] must lie in [0, 5), the morphemes; one is "));
  for (const int64_t wild :
       {int64_t{-1}, int64_t{1}, int64_t{32}, kHuge, std::numeric_limits<int64_t>::min()})
    CHECK_THAT(refusal(kUp + "_part1.weight_patch_rows", [&](at::Tensor& t) { t[1] = wild; }),
               Catch::Contains("[" + kUp + "_part1.weight_patch_rows] must ascend and lie in [0, 32); "));
}

TEST_CASE("factors that do not follow each other are refused", "[corrupt][lowrank]") {
  const auto dense = [](const std::vector<int64_t>& shape) {
    return [=](at::Tensor& t) { t = at::ones(shape, at::kBFloat16); };
  };
  CHECK_THAT(refusal(kQuery + "_factor1.weight", dense({5, 16})),
             Catch::Contains("[" + kAttention + "q_proj] the stored parts must fit together"));
  CHECK_THAT(refusal(kQuery + "_factor1.weight", dense({6, 15})), Catch::Contains("must be [16, 16]"));
  REQUIRE(refusal(kQuery + "_factor1.weight", dense({6})) ==
          "[" + kQuery +
              "_factor1.weight] must be a floating-point matrix that is not empty; it is bfloat16 [6]");
  REQUIRE(refusal(kQuery + "_factor0.weight_rest.weight", [](at::Tensor& t) { t = t.to(at::kLong); }) ==
          "[" + kQuery +
              "_factor0.weight_rest.weight] must be a floating-point matrix that is not empty; it is int64 "
              "[10, 6]");
  CHECK_THAT(refusal(kQuery + "_factor0.weight_rest.weight", dense({0, 6})),
             Catch::Contains("that is not empty; it is bfloat16 [0, 6]"));
  CHECK_THAT(
      refusal(kUp + "_part0.weight_kronecker_shape", [](at::Tensor& t) { t[0] = 31; }),
      Catch::Contains("[" + kMlp + "up_proj] the stored parts must fit together; [SumWeight] all parts"));
}

TEST_CASE("a plain matrix must be of floating-point numbers", "[corrupt][lowrank]") {
  FactoredLlama llama;
  llama.store(kAttention + "q_proj", llama.matrix(16, 16));
  llama.store(kAttention + "k_proj", llama.matrix(8, 16));
  REQUIRE_NOTHROW(decode(llama));
  for (const auto type : {at::kByte, at::kLong, at::kComplexFloat}) {
    llama.tensors.at(kQuery) = at::ones({16, 16}, type);
    CHECK_THAT(
        refusal_of(llama),
        Catch::StartsWith("[" + kQuery + "] must be a floating-point matrix that is not empty; it is "));
  }
}

TEST_CASE("codes of a factor must have a shape that their groups divide", "[corrupt][lowrank]") {
  const std::string shape = kGate + "_factor0.weight_shape";
  REQUIRE(refusal(shape, [](at::Tensor& t) { t[1] = 12; }) ==
          "[" + shape + "] group_size must divide the 12 input columns, as 4 does; received 8");
  CHECK_THAT(refusal(shape, [](at::Tensor& t) { t = t.to(at::kComplexFloat); }),
             Catch::Contains("[" + shape + "] must hold two integers"));
}

TEST_CASE("a shared weight must be stored, and fit", "[corrupt][lowrank]") {
  const std::string name = kKey + "_factor1.weight_shared_with";
  const auto with_owner = [&](const std::string& owner) {
    return refusal(name, [&](at::Tensor& t) { t = bytes_of(owner); });
  };
  REQUIRE(with_owner("") == "[" + name + "] must name a weight; it is empty or no list of bytes");
  REQUIRE(with_owner(kQuery + "_factor7") ==
          "[" + name + "] must name a weight that is stored; \"" + kQuery + "_factor7.weight\" is not");
  CHECK_THAT(with_owner(std::string("\xFF\0\n", 3)), Catch::StartsWith("[" + name + "] must name a weight"));
  // Of another shape; of no matrix at all; its own operator.
  CHECK_THAT(with_owner(kQuery + "_factor0.weight_rest"),
             Catch::Contains("[" + kAttention + "k_proj] the stored parts must fit together"));
  CHECK_THAT(with_owner("model.norm"), Catch::Contains("must be a floating-point matrix"));
  CHECK_THAT(with_owner(kKey + "_factor1"), Catch::Contains("is not"));
  FactoredLlama llama;
  llama.store(kAttention + "q_proj", llama.matrix(16, 16));
  CHECK_THAT(refusal_of(llama), Catch::Contains("_factor1.weight\" is not"));
}

TEST_CASE("a few numbers do not stand for a matrix beyond memory", "[corrupt][lowrank]") {
  FactoredLlama llama;
  // Nothing that the operator's own shape says bounds the inner sides of a product.
  const auto ket = [&](int64_t out, int64_t in, int64_t t, int64_t q) {
    return std::make_shared<lowrank::KroneckerSumWeight>(out, in, llama.numbers({15, 1, t, q}));
  };
  constexpr int64_t kInner = int64_t{1} << 30;
  llama.store(kMlp + "up_proj", FactoredLlama::product({ket(32, kInner, 2, 4), ket(kInner, 16, 4, 2)}));
  REQUIRE(refusal_of(llama) == "[" + kUp +
                                   "_factor0] must have at most 32 rows and columns, as a part of a "
                                   "[32, 16] operator; it is [32, 1073741824]");

  const std::vector<int32_t> pivots{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, -1, -1, -1, -1};
  llama.store(kMlp + "up_proj", FactoredLlama::pivoted(pivots, llama.patch(20, {1})));
  REQUIRE_NOTHROW(decode(llama));
  llama.tensors.at(kUp + "_rest.weight_patch_shape")[0] = kInner;
  REQUIRE_THAT(refusal_of(llama), Catch::Contains("[" + kUp + "_rest] must have at most 32 rows"));
}

TEST_CASE("a train is not decoded through its padding, and one beyond counting is refused",
          "[corrupt][lowrank]") {
  FactoredLlama llama;
  std::vector<at::Tensor> cores;
  for (int k = 0; k < 16; ++k) cores.push_back(llama.numbers({1, 2, 2, 1}));
  llama.store(kAttention + "o_proj", std::make_shared<lowrank::TensorTrainWeight>(16, 16, cores));
  const model::Block block = llama.model().load_block(0);  // padded, 16 GB
  const WeightPtr& weight = block.ops()[3].weight;
  REQUIRE(weight->dense().sizes() == at::IntArrayRef({16, 16}));
  REQUIRE(at::allclose(weight->apply(at::eye(16)), weight->dense().t()));

  for (size_t k = 0; k < 16; ++k) cores[k] = k < 8 ? at::ones({1, 14, 1, 1}) : at::ones({1, 1, 14, 1});
  const auto side = static_cast<int64_t>(std::pow(14, 8));
  REQUIRE_THAT(test::error_text([&] { lowrank::TensorTrainWeight(side, side, cores); }),
               Catch::Contains("must be of a matrix that can be multiplied by"));
}

TEST_CASE("what is stored under one name as two weights is not taken for one", "[corrupt][lowrank]") {
  FactoredLlama llama;
  const std::string owner = kQuery + "_factor1";
  const WeightPtr other = std::make_shared<quant::QuantizedWeight>(
      quant::rtn(llama.numbers({4, 16}).to(at::kFloat), {.bits = 4, .group_size = 8}));
  const WeightPtr key =
      FactoredLlama::product({llama.matrix(8, 4), std::make_shared<SharedWeight>(owner, other)});
  llama.store(kAttention + "k_proj", key);
  test::TensorMap saved;
  other->save(saved, owner);
  llama.tensors.merge(saved.all);
  FactoredLlama dense = llama;
  dense.store(kAttention + "k_proj", std::make_shared<DenseWeight>(key->dense()));
  REQUIRE(at::allclose(test::logits_of(llama.model(), {3, 1, 4}), test::logits_of(dense.model(), {3, 1, 4}),
                       1e-4, 1e-4));
}
