#include "lcomp/model/architecture.h"

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"

using namespace lcomp::model;

namespace {

/// A small valid llama config with `extra` fields put in front (the first of two equal keys must not exist,
/// so extras must not repeat the fields below).
std::string config_with(const std::string& extra, const std::string& type = "llama") {
  return "{" + extra + R"("model_type":")" + type +
         R"(","hidden_size":32,"intermediate_size":64,"num_hidden_layers":3,"num_attention_heads":4,"vocab_size":128})";
}

Architecture read(const std::string& extra, const std::string& type = "llama") {
  return read_architecture(config_with(extra, type), "config.json");
}

}  // namespace

TEST_CASE("a minimal llama config gets the documented defaults", "[model][architecture]") {
  const Architecture a = read("");
  REQUIRE(a.kv_heads == 4);
  REQUIRE(a.head_dim == 8);
  REQUIRE(a.rope.theta == 10000.0);
  REQUIRE(a.rope.dims == 8);
  REQUIRE_FALSE(a.tied_embeddings);
  REQUIRE_FALSE(a.qkv_bias);
  REQUIRE(a.windows == std::vector<int64_t>{0, 0, 0});
  REQUIRE(a.operators(1).at(6).name == "model.layers.1.mlp.down_proj");
  REQUIRE(a.operators(1).at(6).in_features == 64);
}

TEST_CASE("the families differ in biases, norms and windows as their sheets say", "[model][architecture]") {
  REQUIRE(read(R"("attention_bias":true,)").output_bias);
  REQUIRE(read("", "mistral").windows == std::vector<int64_t>{4096, 4096, 4096});
  REQUIRE(read(R"("sliding_window":null,)", "mistral").windows == std::vector<int64_t>{0, 0, 0});
  REQUIRE(read("", "qwen2").qkv_bias);
  REQUIRE_FALSE(read("", "qwen2").output_bias);
  REQUIRE(read(R"("use_sliding_window":true,"sliding_window":8,"max_window_layers":1,)", "qwen2").windows ==
          std::vector<int64_t>{0, 8, 8});
  REQUIRE(read("", "qwen3").qk_norm);
  REQUIRE(read("", "qwen3").head_dim == 128);
}

TEST_CASE("encoders have their norms behind the sums, see all tokens and have no gate",
          "[model][architecture][encoder]") {
  const Architecture bert = read("", "bert");
  REQUIRE_FALSE((bert.norm_first || bert.causal || bert.gated || bert.is_language_model()));
  REQUIRE(bert.norm == NormKind::kLayer);
  REQUIRE(bert.norm_eps == 1e-12);
  REQUIRE(bert.activation == Activation::kGelu);
  REQUIRE(bert.token_types == 2);
  REQUIRE(bert.max_positions == 512);
  const auto ops = bert.operators(1);
  REQUIRE(ops.size() == 6);
  REQUIRE(ops.at(4).name == "bert.encoder.layer.1.intermediate.dense");
  REQUIRE(ops.at(5).kind == "output");
  REQUIRE(ops.at(bert.position(OperatorRole::kDown)).role == OperatorRole::kDown);
  // Of the inputs only that of the projection behind attention can be scaled; with ReLU the last one too.
  const auto absorbers = [](const Architecture& a) {
    std::vector<std::string> out;
    for (const GroupInfo& group : a.groups(0)) out.push_back(group.absorber);
    return out;
  };
  const std::string value = "bert.encoder.layer.0.attention.self.value";
  REQUIRE(absorbers(bert) == std::vector<std::string>{"", value, "", ""});
  REQUIRE(absorbers(read(R"("hidden_act":"relu",)", "bert")).back() ==
          "bert.encoder.layer.0.intermediate.dense");
  // 4 operations for each pair of query and key and each channel, in 3 layers.
  REQUIRE(bert.attention_flops(10) == 3 * 4.0 * 100 * 32);
  require_positions(bert, 512, "here");
  REQUIRE_THROWS_WITH(require_positions(bert, 513, "here"),
                      "[here] sequences must have at most the 512 tokens that the model has position "
                      "embeddings for; they have 513");
  require_positions(read(""), 1 << 20, "here");
}

TEST_CASE("what makes an encoder something else is refused", "[model][architecture][encoder]") {
  REQUIRE_THROWS_AS(read(R"("is_decoder":true,)", "bert"), lcomp::Unsupported);
  REQUIRE_THROWS_WITH(read(R"("is_decoder":true,)", "bert"),
                      "[config.json: /is_decoder] must be false: only encoders are supported; it is true");
  REQUIRE_THROWS_WITH(read(R"("position_embedding_type":"relative_key",)", "bert"),
                      "[config.json: /position_embedding_type] must be absolute; it is 'relative_key'");
  REQUIRE_THROWS_WITH(read(R"("layer_norm_eps":0,)", "bert"),
                      Catch::Contains("/layer_norm_eps] must be positive"));
  REQUIRE_THROWS_WITH(
      read_architecture(R"({"model_type":"distilbert","dim":33,"hidden_dim":4,"n_layers":1,"n_heads":4,)"
                        R"("vocab_size":8})",
                        "c"),
      "[c: /dim] must be a multiple of n_heads = 4; it is 33");
}

TEST_CASE("llama3 rope frequencies equal the published example", "[model][rope]") {
  const Architecture a = read(
      R"("head_dim":64,"rope_theta":500000.0,"rope_scaling":{"rope_type":"llama3","factor":32.0,"low_freq_factor":1.0,)"
      R"("high_freq_factor":4.0,"original_max_position_embeddings":8192},)");
  const std::vector<float> f = a.rope.inverse_frequencies(100);
  REQUIRE(f.at(0) == Approx(1.0));
  REQUIRE(f.at(14) == Approx(0.003211445994752591));
  REQUIRE(f.at(15) == Approx(0.001290547928209264));
  REQUIRE(f.at(16) == Approx(0.00042955679655936815));
  REQUIRE(f.at(31) == Approx(9.41830672543491e-08));
}

TEST_CASE("transformers 5 rope_parameters and transformers 4 fields mean the same", "[model][rope]") {
  const auto v4 = read(R"("rope_theta":5000.0,"rope_scaling":{"type":"linear","factor":4.0},)").rope;
  const auto v5 = read(R"("rope_parameters":{"rope_type":"linear","factor":4,"rope_theta":5000.0},)").rope;
  REQUIRE(v4.inverse_frequencies(10) == v5.inverse_frequencies(10));
  REQUIRE(v4.inverse_frequencies(10).at(0) == 0.25F);
}

TEST_CASE("rope_parameters per type of layer are read when they agree", "[model][rope]") {
  const std::string linear = R"({"rope_type":"linear","factor":4,"rope_theta":5000.0})";
  const auto plain = read("\"rope_parameters\":" + linear + ",").rope;
  const auto one = read(R"("rope_parameters":{"full_attention":)" + linear + "},").rope;
  const auto two =
      read(R"("rope_parameters":{"sliding_attention":)" + linear + R"(,"full_attention":)" + linear + "},")
          .rope;
  REQUIRE(one.inverse_frequencies(10) == plain.inverse_frequencies(10));
  REQUIRE(two.inverse_frequencies(10) == plain.inverse_frequencies(10));
  REQUIRE_THROWS_WITH(
      read(R"("rope_parameters":{"full_attention":{"rope_theta":7.0},"sliding_attention":)" + linear + "},"),
      Catch::Contains("/rope_parameters/sliding_attention] must equal full_attention: angles that differ "
                      "between layers are not supported"));
  REQUIRE_THROWS_WITH(read(R"("rope_parameters":{"rope_theta":7.0},"rope_scaling":)" + linear + ","),
                      Catch::Contains("/rope_scaling] must not contradict rope_parameters"));
}

TEST_CASE("the dynamic rope equals the default until the context limit is passed", "[model][rope]") {
  const auto dynamic =
      read(R"("max_position_embeddings":64,"rope_scaling":{"rope_type":"dynamic","factor":2.0},)").rope;
  const auto plain = read("").rope;
  REQUIRE(dynamic.inverse_frequencies(64) == plain.inverse_frequencies(64));
  REQUIRE(dynamic.inverse_frequencies(65) != plain.inverse_frequencies(65));
}

TEST_CASE("longrope uses its short factors up to the original context and its long ones beyond",
          "[model][rope]") {
  const auto rope =
      read(R"("max_position_embeddings":64,"original_max_position_embeddings":16,"rope_scaling":)"
           R"({"type":"longrope","short_factor":[1,1,2,2],"long_factor":[2,4,4,8]},)")
          .rope;
  const auto plain = read("").rope.inverse_frequencies(16);
  const auto at_16 = rope.inverse_frequencies(16);
  const auto at_17 = rope.inverse_frequencies(17);
  REQUIRE(at_16.at(0) == plain.at(0));
  REQUIRE(at_16.at(3) == Approx(plain.at(3) / 2));
  REQUIRE(at_17.at(0) == Approx(plain.at(0) / 2));
  REQUIRE(at_17.at(3) == Approx(plain.at(3) / 8));
  // factor 64 / 16 = 4, sqrt(1 + ln 4 / ln 16) = sqrt(1.5)
  REQUIRE(rope.attention_scaling == Approx(1.224744871));
}

TEST_CASE("a config that cannot be read names the file, the field and what must hold",
          "[model][architecture]") {
  const auto fails = [](const std::string& extra, const std::string& text,
                        const std::string& type = "llama") {
    REQUIRE_THROWS_WITH(read(extra, type), Catch::Contains(text));
  };
  REQUIRE_THROWS_AS(read("", "mamba"), lcomp::Unsupported);
  fails("",
        "[config.json: /model_type] the model family must be one of llama, mistral, qwen2, qwen3, bert, "
        "distilbert; it is 'mamba'",
        "mamba");
  fails(R"("num_key_value_heads":3,)",
        "[config.json: /num_key_value_heads] must divide num_attention_heads = 4; it is 3");
  fails(R"("num_key_value_heads":-1,)", "must be an integer from 1 to 2^31; it is -1");
  fails(R"("head_dim":7,)", "must have an even number of elements; 7 are rotated");
  fails(R"("head_dim":"8",)", "/head_dim] must be an integer; it is the string \"8\"");
  fails(R"("rms_norm_eps":0,)", "/rms_norm_eps] must be positive; it is 0");
  fails(R"("rms_norm_eps":"x",)", "/rms_norm_eps] must be a number; it is the string \"x\"");
  fails(R"("attention_bias":1,)", "/attention_bias] must be true or false; it is 1");
  fails(R"("hidden_act":"mish",)",
        "/hidden_act] must be one of silu, swish, gelu_pytorch_tanh, gelu_new, gelu, relu; it is 'mish'");
  fails(R"("hidden_act":3,)", "/hidden_act] must be a string; it is 3");
  fails(R"("rope_scaling":3,)", "/rope_scaling] must be an object; it is 3");
  fails(R"("rope_theta":1.0,)", "/rope_theta] must be a number above 1");
  fails(R"("partial_rotary_factor":2.0,)", "/partial_rotary_factor] must lie in (0, 1]");
  fails(R"("rope_scaling":{"type":"cubic"},)",
        "/rope_scaling/rope_type] must be one of default, linear, dynamic, llama3, yarn, longrope; it is "
        "'cubic'");
  fails(R"("rope_scaling":{"type":"linear"},)",
        "/rope_scaling/factor] must be a number of at least 1; it is absent");
  fails(R"("rope_scaling":{"type":"linear","factor":2,"original_max_position_embeddings":0},)",
        "/original_max_position_embeddings] must be at least 1");
  fails(R"("rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4},)",
        "must exceed low_freq_factor = 4");
  fails(R"("rope_scaling":{"type":"longrope","short_factor":[1,1,1],"long_factor":[1,1,1,1]},)",
        "short_factor] must be a list of 4 positive numbers; it is [1,1,1]");
  fails(R"("rope_scaling":{"type":"longrope","short_factor":3},)",
        "/rope_scaling/short_factor] must be an array; it is 3");
  fails(R"("rope_scaling":{"type":"longrope","short_factor":["a"]},)",
        "/rope_scaling/short_factor/0] must be a number");
  fails(R"("layer_types":["full_attention"],)", "must have num_hidden_layers = 3 entries", "qwen2");
  fails(R"("layer_types":["a","b","c"],)", "must list only full_attention or sliding_attention", "qwen2");
  fails(R"("layer_types":"x",)", "/layer_types] must be an array", "qwen2");
  fails(R"("layer_types":[1],)", "/layer_types/0] must be a string; it is 1", "qwen2");
  REQUIRE_THROWS_WITH(
      read_architecture(R"({"model_type":"llama","hidden_size":33,"intermediate_size":4,)"
                        R"("num_hidden_layers":1,"num_attention_heads":4,"vocab_size":8})",
                        "c"),
      Catch::Contains("must be a multiple of num_attention_heads = 4 when head_dim is absent; it is 33"));
  REQUIRE_THROWS_WITH(
      read_architecture(R"({"model_type":"llama","hidden_size":32,"intermediate_size":4,)"
                        R"("num_hidden_layers":65537,"num_attention_heads":4,"vocab_size":8})",
                        "c"),
      "[c: /num_hidden_layers] must be at most 2^16 = 65536; it is 65537");
  REQUIRE_THROWS_WITH(read_architecture("[]", "c"), "[c] must be an object; it is an array");
  REQUIRE_THROWS_WITH(read_architecture(R"({"model_type":"llama"})", "c"),
                      "[c: /hidden_size] must be an integer from 1 to 2^31; it is absent");
}
