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

/// Runs row `b` of the fixture's ids through the model and compares every block's output and the logits.
void check_row(const model::Model& model, const io::SafetensorsFile& io, const at::Tensor& ids, int64_t b) {
  const at::Tensor row = ids[b].contiguous();
  model::SampleState state;
  at::Tensor& hidden = state.hidden =
      model.embed({row.data_ptr<int64_t>(), static_cast<size_t>(row.numel())});
  linalg::Scratch scratch;
  for (int64_t i = 0; i < model.size(); ++i) {
    model::Block block = model.load_block(i);
    for (size_t g = 0; g < block.groups().size(); ++g) block.prepare(g, linalg::Precision::kF32);
    block.forward(state, scratch);
    const at::Tensor expected = io.read(fmt::format("block.{}.out", i)).to(at::kFloat)[b];
    INFO("block " << i << ", row " << b);
    REQUIRE(max_abs(hidden - expected) < 1e-4);
  }
  model.final_norm(hidden);
  const at::Tensor head = model.head_rows(0, model.architecture().vocab_size);
  const at::Tensor logits = at::matmul(hidden, head.t());
  const at::Tensor expected = io.read("logits").to(at::kFloat)[b];
  REQUIRE(max_abs(logits - expected) <= 1e-4 * std::max(1.0, max_abs(expected)));
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
      const io::SafetensorsFile io(entry.path() / "io.safetensors");
      const at::Tensor ids = io.read("input_ids");
      for (int64_t b = 0; b < ids.size(0); ++b) check_row(model, io, ids, b);
      ++checked;
    } catch (const Unsupported& refused) {
      // Only fixtures of other families, and the pickled one, may be refused.
      const std::string family = name.substr(0, name.find('_'));
      const bool known = std::find(families.begin(), families.end(), family) != families.end();
      REQUIRE((!known || name == "llama_bin" || name == "qwen2_moe" || name == "qwen3_moe"));
    }
  }
  REQUIRE(checked >= 18);
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
    REQUIRE(v5->head_dim == v4->head_dim);
    ++compared;
  }
  REQUIRE(compared >= 18);
}
