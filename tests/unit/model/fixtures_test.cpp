#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <optional>

#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/model/model.h"
#include "support/test_data.h"

using namespace lcomp;

namespace {

double max_abs(const at::Tensor& x) {
  return x.abs().max().item<double>();
}

/// The first `length` elements of row `b`; nothing when the fixture has no such tensor.
std::vector<int64_t> row_of(const io::SafetensorsFile& io, const std::string& name, int64_t b,
                            int64_t length) {
  if (!io.contains(name)) return {};
  const at::Tensor row = io.read(name)[b].contiguous();
  return {row.data_ptr<int64_t>(), row.data_ptr<int64_t>() + length};
}

/// Runs row `b` of the fixture's ids, without its padding, through the model and compares what the blocks
/// read and give, and the logits of language models.
void check_row(const model::Model& model, const io::SafetensorsFile& io, int64_t b) {
  const at::Tensor all = io.read("input_ids");
  const int64_t tokens =
      io.contains("attention_mask") ? io.read("attention_mask")[b].sum().item<int64_t>() : all.size(1);
  const auto expected = [&](const std::string& name) {
    return io.read(name).to(at::kFloat)[b].slice(0, 0, tokens);
  };
  model::SampleState state;
  at::Tensor& hidden = state.hidden =
      model.embed(row_of(io, "input_ids", b, tokens), row_of(io, "token_type_ids", b, tokens));
  REQUIRE(max_abs(hidden - expected("block.0.in")) < 1e-5);
  linalg::Scratch scratch;
  for (int64_t i = 0; i < model.size(); ++i) {
    model::Block block = model.load_block(i);
    for (size_t g = 0; g < block.groups().size(); ++g) block.prepare(g, linalg::Precision::kF32);
    block.forward(state, scratch);
    INFO("block " << i << ", row " << b);
    REQUIRE(max_abs(hidden - expected(fmt::format("block.{}.out", i))) < 1e-4);
  }
  if (!model.architecture().is_language_model()) return;
  model.final_norm(hidden);
  const at::Tensor head = model.head_rows(0, model.architecture().vocab_size);
  const at::Tensor logits = at::matmul(hidden, head.t());
  REQUIRE(max_abs(logits - expected("logits")) <= 1e-4 * std::max(1.0, max_abs(expected("logits"))));
}

/// Nothing where the family, or something of it, is one that this version does not read.
std::optional<model::Architecture> architecture_in(const std::filesystem::path& config) {
  try {
    return model::read_architecture(io::read_file(config), config.string());
  } catch (const Unsupported&) {
    return std::nullopt;
  }
}

}  // namespace

TEST_CASE("logits and block outputs of every fixture of a known family match the reference",
          "[model][golden]") {
  const auto root = test::shared_data("golden/models");
  if (!root) {
    WARN("skipped: golden/models is not in LCOMP_TEST_DATA");
    return;
  }
  const auto families = model::known_families();
  int64_t checked = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*root)) {
    if (!entry.is_directory()) continue;
    const std::string name = entry.path().filename().string();
    INFO("fixture " << name);
    try {
      const model::Model model = model::Model::open(entry.path());
      REQUIRE(model.warnings().empty());  // what stands on top of an encoder is no surprise
      const io::SafetensorsFile io(entry.path() / "io.safetensors");
      for (int64_t b = 0; b < io.read("input_ids").size(0); ++b) check_row(model, io, b);
      ++checked;
    } catch (const Unsupported& refused) {
      // Only fixtures of other families, and the pickled one, may be refused.
      const std::string family = name.substr(0, name.find('_'));
      const bool known = std::find(families.begin(), families.end(), family) != families.end();
      REQUIRE((!known || name == "llama_bin" || name == "qwen2_moe" || name == "qwen3_moe"));
    }
  }
  REQUIRE(checked >= 24);
}

TEST_CASE("transformers 4 and 5 configs of a fixture describe the same architecture", "[model][golden]") {
  const auto root = test::shared_data("golden/models");
  if (!root) {
    WARN("skipped: golden/models is not in LCOMP_TEST_DATA");
    return;
  }
  int64_t compared = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*root)) {
    if (!std::filesystem::exists(entry.path() / "config_v4.json")) continue;
    INFO("fixture " << entry.path().filename().string());
    const auto v5 = architecture_in(entry.path() / "config.json");
    const auto v4 = architecture_in(entry.path() / "config_v4.json");
    REQUIRE(v5.has_value() == v4.has_value());
    if (!v5) continue;
    REQUIRE(v5->rope.inverse_frequencies(40) == v4->rope.inverse_frequencies(40));
    REQUIRE(v5->rope.attention_scaling == v4->rope.attention_scaling);
    REQUIRE(v5->windows == v4->windows);
    REQUIRE(v5->activation == v4->activation);
    REQUIRE(v5->head_dim == v4->head_dim);
    ++compared;
  }
  REQUIRE(compared >= 24);
}
