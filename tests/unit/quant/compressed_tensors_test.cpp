// Packed weights in the files of the reference library decode to what its reader decodes them to.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lcomp/io/safetensors.h"
#include "lcomp/quant/quantized_weight.h"
#include "support/matrices.h"
#include "support/test_data.h"

using namespace lcomp::quant;
using lcomp::io::SafetensorsFile;
using lcomp::test::shared_data;

namespace {

PackedTensors packed_tensors(const SafetensorsFile& file, const std::string& name) {
  const auto read = [&](const std::string& part) {
    return file.contains(name + part) ? file.read(name + part) : at::Tensor();
  };
  return {read(".weight_packed"), read(".weight_scale"), read(".weight_shape"), read(".weight_zero_point"),
          read(".weight_g_idx")};
}

QuantScheme scheme_of(const nlohmann::json& weights) {
  QuantScheme scheme;
  scheme.bits = weights.at("num_bits");
  scheme.symmetric = weights.at("symmetric");
  scheme.granularity = weights.at("strategy") == "group" ? Granularity::kGroup : Granularity::kChannel;
  if (scheme.granularity == Granularity::kGroup) scheme.group_size = weights.at("group_size");
  return scheme;
}

}  // namespace

TEST_CASE("every pack-quantized fixture decodes exactly and saves to the same tensors",
          "[quant][weight][golden]") {
  const auto root = shared_data("golden/formats/compressed_tensors");
  if (!root) {
    WARN("skipped: no golden/formats/compressed_tensors");
    return;
  }
  int checked = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*root)) {
    if (!std::filesystem::exists(entry.path() / "expected.safetensors")) continue;
    nlohmann::json config;
    std::ifstream(entry.path() / "config.json") >> config;
    const nlohmann::json& quantization = config.at("quantization_config");
    if (quantization.at("format") != "pack-quantized") continue;
    const QuantScheme scheme = scheme_of(quantization.at("config_groups").at("group_0").at("weights"));
    const SafetensorsFile model(entry.path() / "model.safetensors"),
        expected(entry.path() / "expected.safetensors");
    for (const auto& info : expected.tensors()) {
      const bool exact = info.name.rfind("dequant_exact.", 0) == 0;
      if (!exact &&
          (info.name.rfind("dequant.", 0) != 0 || expected.contains("dequant_exact" + info.name.substr(7)))) {
        continue;
      }
      CAPTURE(entry.path().filename().string(), info.name);
      const size_t begin = info.name.find('.') + 1;
      const std::string name = info.name.substr(begin, info.name.rfind(".weight") - begin);
      const PackedTensors stored = packed_tensors(model, name);
      const QuantizedWeight weight = QuantizedWeight::from_packed(stored, scheme, name);
      CHECK(weight.dense().equal(expected.read(info.name)));
      const PackedTensors again = weight.pack();
      CHECK(again.packed.equal(stored.packed));
      CHECK(again.shape.equal(stored.shape));
      CHECK(again.scale.equal(stored.scale));
      CHECK(again.zero_point.defined() == stored.zero_point.defined());
      if (again.zero_point.defined()) CHECK(again.zero_point.equal(stored.zero_point));
      ++checked;
    }
  }
  REQUIRE(checked > 0);
}

TEST_CASE("packed weights of older libraries decode, with their group index and padded words",
          "[quant][weight][golden]") {
  const auto root = shared_data("golden/formats/compressed_tensors_legacy");
  if (!root) {
    WARN("skipped: no golden/formats/compressed_tensors_legacy");
    return;
  }
  int checked = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*root)) {
    const std::string stem = entry.path().stem().string();  // pack_w<bits>_<sym|asym>...
    if (stem.rfind("pack_w", 0) != 0) continue;
    CAPTURE(stem);
    const SafetensorsFile file(entry.path());
    const QuantScheme scheme{
        .bits = stem[6] - '0', .symmetric = stem.find("asym") == std::string::npos, .group_size = 32};
    const QuantizedWeight weight = QuantizedWeight::from_packed(packed_tensors(file, "p"), scheme, "p");
    CHECK(lcomp::test::relative_difference(weight.dense(), file.read("expected")) < 1e-6);
    CHECK(weight.group_index().defined() == file.contains("p.weight_g_idx"));
    ++checked;
  }
  REQUIRE(checked > 0);
}
