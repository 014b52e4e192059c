#include "lcomp/model/quantization_config.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "lcomp/core/error.h"
#include "support/error_text.h"

using namespace lcomp;
using model::QuantizationConfig;
using quant::Granularity;
using Json = nlohmann::json;

namespace {

/// A config.json with one group of 4 bits, changed by `edit`.
std::string config(const std::function<void(Json& quantization)>& edit = [](Json&) {}) {
  Json weights = {
      {"num_bits", 4}, {"type", "int"}, {"symmetric", true}, {"strategy", "group"}, {"group_size", 32}};
  Json group = {{"targets", {"Linear"}}, {"weights", weights}, {"input_activations", nullptr}};
  Json quantization = {{"quant_method", "compressed-tensors"},
                       {"format", "pack-quantized"},
                       {"ignore", {"lm_head"}},
                       {"config_groups", {{"group_0", group}}}};
  edit(quantization);
  return Json{{"model_type", "llama"}, {"quantization_config", quantization}}.dump();
}

QuantizationConfig read(const std::string& text) {
  return *QuantizationConfig::read(text, "dir/config.json");
}

template <class Kind>
std::string refused(const std::function<void(Json& quantization)>& edit) {
  const std::string text = config(edit);
  REQUIRE_THROWS_AS(read(text), Kind);
  return test::error_text([&] { read(text); });
}

Json& weights_of(Json& quantization) {
  return quantization["config_groups"]["group_0"]["weights"];
}

}  // namespace

TEST_CASE("a model without quantization_config is dense", "[model][quantization]") {
  REQUIRE_FALSE(QuantizationConfig::read("{\"model_type\": \"llama\"}", "config.json"));
  REQUIRE_FALSE(QuantizationConfig::read("{\"quantization_config\": null}", "config.json"));
}

TEST_CASE("bits, symmetry, granularity and group size are read, with the format's defaults",
          "[model][quantization]") {
  const auto scheme = read(config()).scheme_for("model.layers.0.mlp.up_proj");
  REQUIRE(scheme->bits == 4);
  REQUIRE(scheme->symmetric);
  REQUIRE(scheme->granularity == Granularity::kGroup);
  REQUIRE(scheme->group_size == 32);
  const auto by_size = [](const Json& size) {
    return read(config([&](Json& q) {
             weights_of(q) = {{"group_size", size}, {"symmetric", false}};
           }))
        .scheme_for("x");
  };
  REQUIRE(by_size(64)->granularity == Granularity::kGroup);
  REQUIRE(by_size(64)->bits == 8);
  REQUIRE_FALSE(by_size(64)->symmetric);
  REQUIRE(by_size(-1)->granularity == Granularity::kChannel);
  REQUIRE(by_size(nullptr)->granularity == Granularity::kTensor);
}

TEST_CASE("the older key compression_config is read too", "[model][quantization]") {
  Json json = Json::parse(config());
  json["compression_config"] = json["quantization_config"];
  json.erase("quantization_config");
  REQUIRE(read(json.dump()).scheme_for("x")->bits == 4);
}

TEST_CASE("an exact target wins over a regular expression, and that over the class",
          "[model][quantization]") {
  QuantizationConfig config;
  config.groups = {{{"Linear"}, {.bits = 2}},
                   {{"re:.*up_proj"}, {.bits = 3}},
                   {{"model.layers.1.mlp.up_proj", "re:.*q_proj$"}, {.bits = 5}}};
  config.ignore = {"lm_head", "re:model[.]layers[.]9[.]"};
  const auto bits = [&](const std::string& name) {
    const auto scheme = config.scheme_for(name);
    return scheme ? scheme->bits : 0;
  };
  REQUIRE(bits("model.layers.0.mlp.down_proj") == 2);
  REQUIRE(bits("model.layers.0.mlp.up_proj") == 3);
  REQUIRE(bits("model.layers.1.mlp.up_proj") == 5);
  REQUIRE(bits("model.layers.1.self_attn.q_proj") == 5);
  REQUIRE(bits("lm_head") == 0);
  REQUIRE(bits("model.layers.9.mlp.up_proj") == 0);
  config.groups.erase(config.groups.begin());
  REQUIRE(bits("model.layers.0.mlp.down_proj") == 0);
}

TEST_CASE("what is written is read back", "[model][quantization]") {
  QuantizationConfig config;
  config.groups = {{{"Linear"}, {.bits = 3, .symmetric = false, .group_size = 64}},
                   {{"a.b", "a.c"}, {.bits = 8, .granularity = Granularity::kChannel}},
                   {{"a.d"}, {.bits = 8, .granularity = Granularity::kTensor}}};
  config.ignore = {"lm_head", "a.e"};
  const auto back = read("{\"quantization_config\": " + config.to_json() + "}");
  REQUIRE(back.ignore == config.ignore);
  REQUIRE(back.groups.size() == 3);
  for (size_t g = 0; g < 3; ++g) {
    REQUIRE(back.groups[g].targets == config.groups[g].targets);
    REQUIRE(back.groups[g].scheme.describe() == config.groups[g].scheme.describe());
  }
  const Json json = Json::parse(config.to_json());
  REQUIRE(json["config_groups"]["group_0"]["weights"]["group_size"] == 64);
  REQUIRE(json["config_groups"]["group_1"]["weights"]["group_size"].is_null());
  REQUIRE(json["quantization_status"] == "compressed");
}

TEST_CASE("groups of different formats name their own, and the whole is mixed-precision",
          "[model][quantization]") {
  QuantizationConfig config;
  config.groups = {
      {{"Linear"}, {.bits = 4, .group_size = 64}},
      {{"a.b"}, {.bits = 8, .granularity = Granularity::kChannel}, "int-quantized"},
      {{"a.c"}, {.format = quant::NumberFormat::kFp8E4m3, .group_size = 32}, "float-quantized", 16}};
  const Json json = Json::parse(config.to_json());
  REQUIRE(json["quant_method"] == "compressed-tensors");
  REQUIRE(json["format"] == "mixed-precision");
  REQUIRE(json["config_groups"]["group_1"]["format"] == "int-quantized");
  REQUIRE(json["config_groups"]["group_2"]["weights"]["block_structure"] == Json{16, 32});
  const auto back = read("{\"quantization_config\": " + config.to_json() + "}");
  for (const auto& group : config.groups) {
    const auto* found = back.group_for(group.targets[0]);
    REQUIRE(found != nullptr);
    REQUIRE(found->to_json() == group.to_json());
    REQUIRE(QuantizationConfig::Group::from_json(group.to_json(), "here").to_json() == group.to_json());
  }
  config.groups.erase(config.groups.begin(), config.groups.begin() + 2);
  const Json one = Json::parse(config.to_json());
  REQUIRE(one["format"] == "float-quantized");
  REQUIRE_FALSE(one["config_groups"]["group_0"].contains("format"));
}

TEST_CASE("NF4 in blocks that bitsandbytes knows is described as it does, else as lcomp's own",
          "[model][quantization]") {
  QuantizationConfig config;
  config.groups = {{{"Linear"}, {.format = quant::NumberFormat::kNf4, .group_size = 64}, "lcomp-nf4"}};
  config.groups[0].scheme.double_quant = true;
  config.ignore = {"lm_head", "a.b"};
  const Json bnb = Json::parse(config.to_json());
  REQUIRE(bnb["quant_method"] == "bitsandbytes");
  REQUIRE(bnb["load_in_4bit"] == true);
  REQUIRE(bnb["bnb_4bit_quant_type"] == "nf4");
  REQUIRE(bnb["bnb_4bit_use_double_quant"] == true);
  REQUIRE(bnb["llm_int8_skip_modules"] == Json{"lm_head", "a.b"});
  const auto back = read("{\"quantization_config\": " + config.to_json() + "}");
  REQUIRE(back.group_for("x")->format == "lcomp-nf4");
  REQUIRE(back.scheme_for("x")->describe() == "nf4, groups of 64, scales of 8 bits");

  config.groups[0].scheme.group_size = 48;
  config.groups[0].numbers = {{"threshold", 6.5}};
  const Json own = Json::parse(config.to_json());
  REQUIRE(own["quant_method"] == "lcomp");
  REQUIRE(own["format"] == "lcomp-nf4");
  const auto again = read("{\"quantization_config\": " + config.to_json() + "}");
  REQUIRE(again.group_for("x")->to_json() == config.groups[0].to_json());
  REQUIRE(again.group_for("x")->numbers.at("threshold") == 6.5);
}

TEST_CASE("bitsandbytes models of other types are refused", "[model][quantization]") {
  const auto text = [](const Json& quantization) {
    const Json json = {{"quantization_config", quantization}};
    return test::error_text([&] { read(json.dump()); });
  };
  REQUIRE(text({{"quant_method", "bitsandbytes"}, {"load_in_8bit", true}}) ==
          "[config.json: /quantization_config] a bitsandbytes model must have load_in_4bit and the type nf4; "
          "no load_in_4bit and fp4 came");
  REQUIRE(text({{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}, {"bnb_4bit_quant_type", "fp4"}}) ==
          "[config.json: /quantization_config] a bitsandbytes model must have load_in_4bit and the type nf4; "
          "load_in_4bit and fp4 came");
}

TEST_CASE("quantized inputs are written and read back", "[model][quantization]") {
  quant::ActivationScheme fixed;
  fixed.symmetric = false;
  fixed.granularity = quant::ActivationGranularity::kTensor;
  fixed.dynamic = false;
  quant::ActivationScheme floats;
  floats.format = quant::NumberFormat::kFp8E4m3;
  for (const quant::ActivationScheme& inputs : {quant::ActivationScheme{}, fixed, floats}) {
    QuantizationConfig config;
    config.groups = {{{"Linear"}, {.bits = 8, .granularity = Granularity::kChannel}, "int-quantized"}};
    config.groups[0].input_activations = inputs;
    const auto back = read("{\"quantization_config\": " + config.to_json() + "}");
    REQUIRE(back.group_for("x")->to_json() == config.groups[0].to_json());
    REQUIRE(back.group_for("x")->input_activations->describe() == inputs.describe());
  }
}

TEST_CASE("naive-quantized stands for integers or floats of a byte each", "[model][quantization]") {
  const auto format = [](const char* type) {
    return read(config([&](Json& q) {
             q["format"] = "naive-quantized";
             weights_of(q) = {{"num_bits", 8}, {"type", type}, {"strategy", "channel"}};
           }))
        .group_for("x")
        ->format;
  };
  REQUIRE(format("int") == "int-quantized");
  REQUIRE(format("float") == "float-quantized");
}

TEST_CASE("what this version cannot decode is refused and named", "[model][quantization]") {
  REQUIRE(refused<Unsupported>([](Json& q) { q["quant_method"] = "awq"; }) ==
          "[dir/config.json, quantization_config] quant_method must be compressed-tensors, bitsandbytes or "
          "lcomp; it "
          "is 'awq'");
  REQUIRE_THAT(refused<Unsupported>([](Json& q) { q["format"] = "nvfp4-pack-quantized"; }),
               Catch::StartsWith("[dir/config.json, quantization_config] the format must be one of "
                                 "pack-quantized, int-quantized, float-quantized, ") &&
                   Catch::EndsWith("it is 'nvfp4-pack-quantized'"));
  REQUIRE(refused<Unsupported>([](Json& q) {
            q["transform_config"] = {{"config_groups", {{"r", 1}}}};
          }) ==
          "[dir/config.json, quantization_config] transform_config must be empty; rotations are not applied "
          "when reading");
  const std::string group = "[config.json: /quantization_config/config_groups/group_0";
  REQUIRE(refused<Unsupported>([](Json& q) {
            q["config_groups"]["group_0"]["output_activations"] = {{"num_bits", 8}};
          }) ==
          group + "] only weights and inputs may be quantized; this group quantizes output_activations");
  const auto inputs_refused = [](const Json& inputs) {
    return refused<Unsupported>(
        [&](Json& q) { q["config_groups"]["group_0"]["input_activations"] = inputs; });
  };
  REQUIRE(inputs_refused({{"type", "nf4"}}) ==
          group + "/input_activations] the type of activations must be int or float; it is 'nf4'");
  REQUIRE(inputs_refused({{"strategy", "group"}, {"dynamic", true}}) ==
          group + "/input_activations] the strategy of activations must be tensor or token; it is 'group'");
  REQUIRE(inputs_refused({{"strategy", "tensor"}, {"dynamic", "local"}}) ==
          group + "/input_activations] dynamic must be true or false; it is 'local'");
  REQUIRE_THAT(refused<Unsupported>([](Json& q) { q["config_groups"]["group_0"]["format"] = "marlin-24"; }),
               Catch::StartsWith(group + "] the format must be one of pack-quantized, int-quantized, ") &&
                   Catch::EndsWith("it is 'marlin-24'"));
  REQUIRE(refused<Unsupported>([](Json& q) { weights_of(q)["type"] = "float"; }) ==
          group + "/weights] the type of pack-quantized weights must be int; it is 'float'");
  REQUIRE(refused<Unsupported>([](Json& q) {
            q["format"] = "float-quantized";
            weights_of(q)["type"] = "float";
          }) == group + "/weights] num_bits of the type float must be 8; it is 4");
  REQUIRE(refused<Unsupported>([](Json& q) { weights_of(q)["strategy"] = "tensor_group"; }) ==
          group + "/weights] strategy must be one of group, channel, tensor, block; it is 'tensor_group'");
}

TEST_CASE("a broken quantization_config is a config error at its place", "[model][quantization]") {
  const std::string group = "[dir/config.json: /quantization_config/config_groups/group_0";
  REQUIRE(refused<ConfigError>([](Json& q) { weights_of(q)["num_bits"] = 9; }) ==
          group + "/weights] num_bits must lie in 2..8; it is 9");
  REQUIRE_THAT(refused<ConfigError>([](Json& q) {
                 q["config_groups"]["group_0"]["input_activations"] = {{"strategy", "token"}};
               }),
               Catch::StartsWith(group + "/input_activations] ") &&
                   Catch::Contains("activations per token must be dynamic"));
  REQUIRE(refused<ConfigError>([](Json& q) { weights_of(q)["group_size"] = 0; }) ==
          group + "/weights] group_size must be positive for the strategy group; it is 0");
  REQUIRE(refused<ConfigError>([](Json& q) { q["format"] = "mixed-precision"; }) ==
          group + "] format must be given in every group where the whole is mixed-precision; it is missing");
  REQUIRE(refused<ConfigError>([](Json& q) {
            q["format"] = "float-quantized";
            weights_of(q) = {{"type", "float"}, {"num_bits", 8}, {"symmetric", false}};
          }) == group + "/weights] symmetric must be true for the type float; it is false");
  REQUIRE(refused<ConfigError>([](Json& q) {
            weights_of(q)["strategy"] = "block";
            weights_of(q)["block_structure"] = {32};
          }) == group + "/weights] block_structure must hold rows and columns; it has 1 numbers");
  REQUIRE_THAT(refused<ConfigError>([](Json& q) { q["config_groups"]["group_0"].erase("targets"); }),
               Catch::StartsWith(group + "]") && Catch::Contains("targets"));
  REQUIRE_THAT(refused<ConfigError>([](Json& q) { q["config_groups"]["group_0"]["weights"] = nullptr; }),
               Catch::StartsWith(group + "/weights]"));
  REQUIRE_THAT(
      refused<ConfigError>([](Json& q) { q["config_groups"]["group_0"]["targets"] = {"re:layers.(0"}; }),
      Catch::StartsWith(group + "/targets] must hold valid regular expressions; 're:layers.(0': "));
  REQUIRE_THAT(refused<ConfigError>([](Json& q) { q["ignore"] = {"re:["}; }),
               Catch::StartsWith("[dir/config.json: /quantization_config/ignore] must hold valid regular "
                                 "expressions; 're:[': "));
}
