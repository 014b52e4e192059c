#include "lcomp/pipeline/inspect.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <limits>

#include "lcomp/core/error.h"
#include "lcomp/io/checkpoint.h"
#include "lcomp/io/safetensors_writer.h"
#include "support/error_text.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::pipeline;
using lcomp::test::error_text;
namespace fs = std::filesystem;

namespace {

fs::path bundled() {
  return test::source_dir() / "examples" / "model";
}

/// The bundled model with `tensor` in place of its own.
void copy_with(const fs::path& directory, const std::string& name, const at::Tensor& tensor) {
  for (const char* file : {"config.json", "tokenizer.json"})
    fs::copy_file(bundled() / file, directory / file);
  const io::CheckpointPtr original = io::open_checkpoint(bundled());
  io::NamedTensors tensors;
  for (const std::string& each : original->names()) {
    tensors.emplace_back(each, each == name ? tensor : original->read(each));
  }
  io::write_safetensors(directory / "model.safetensors", tensors);
}

/// Asks to stop after a number of questions.
class Impatient final : public Observer {
 public:
  explicit Impatient(int patience) : patience_(patience) {}
  bool cancelled() override { return patience_-- <= 0; }

 private:
  int patience_;
};

}  // namespace

TEST_CASE("inspecting a model directory tells its family, sizes and types", "[pipeline][inspect]") {
  Observer observer;
  const Inspection found = inspect(bundled(), false, observer);
  REQUIRE(found.model);
  CHECK(found.model->family == "llama");
  CHECK(found.model->blocks == 4);
  CHECK(found.model->operators == 28);
  CHECK(found.model->hidden_size == 192);
  CHECK(found.model->vocab_size == 2048);
  CHECK(found.model->parameters == 1'967'808);
  REQUIRE(found.model->storage.size() == 1);
  CHECK(found.model->storage[0].description == "dense");
  CHECK(found.model->storage[0].operators == 28);
  CHECK((found.model->widths == std::vector<model::BlockWidths>(4, {6, 2, 512})));
  CHECK(found.model->tokenizer_hash.size() == 32);
  CHECK(found.bytes == 2 * 1'967'808);
  REQUIRE(found.dtypes.size() == 1);
  CHECK(found.dtypes[0].dtype == "BF16");
  CHECK(found.dtypes[0].bytes == found.bytes);
  CHECK(found.dtypes[0].tensors == found.tensors);
  CHECK_FALSE(found.values_read);
  CHECK(found.warnings.empty());
}

TEST_CASE("a deep inspection reads every value", "[pipeline][inspect]") {
  Observer observer;
  CHECK(inspect(bundled(), true, observer).values_read == 1'967'808);
}

TEST_CASE("a single file is described without a model", "[pipeline][inspect]") {
  const test::TempDir dir;
  io::write_safetensors(
      dir / "some.safetensors",
      {{"a", at::ones({3, 5})}, {"b", at::ones({40}, at::kHalf)}, {"c", at::ones({1}, at::kLong)}});
  Observer observer;
  const Inspection found = inspect(dir / "some.safetensors", true, observer);
  CHECK_FALSE(found.model);
  CHECK(found.tensors == 3);
  CHECK(found.values_read == 56);
  REQUIRE(found.dtypes.size() == 3);
  CHECK(found.dtypes[0].dtype == "F16");
  CHECK(found.dtypes[0].bytes == 80);
  CHECK(found.dtypes[1].dtype == "F32");
  CHECK(found.dtypes[2].dtype == "I64");
}

TEST_CASE("a deep inspection refuses a value that is not finite, wherever it stands", "[pipeline][inspect]") {
  const test::TempDir dir;
  at::Tensor large = at::zeros({1 << 20, 3}, at::kBFloat16);  // more than one piece
  large[1'000'000][1] = -std::numeric_limits<float>::infinity();
  const fs::path file = dir / "bad.safetensors";
  io::write_safetensors(file, {{"fine", at::ones({4})}, {"large", large}});
  Observer observer;
  CHECK_NOTHROW(inspect(file, false, observer));
  CHECK(error_text([&] { inspect(file, true, observer); }) ==
        fmt::format(
            "[{}] the tensor 'large' must hold finite values; number 3000002 of its 3145728 values is NaN or "
            "infinite",
            file.string()));
  CHECK_THROWS_AS(inspect(file, true, observer), CorruptFile);
}

TEST_CASE("inspecting refuses what a run would refuse", "[pipeline][inspect]") {
  Observer observer;
  const test::TempDir dir;
  copy_with(dir.path(), "model.layers.2.mlp.down_proj.weight", at::ones({192, 500}, at::kBFloat16));
  CHECK_THAT(error_text([&] { inspect(dir.path(), false, observer); }),
             Catch::Contains(
                 "the tensor 'model.layers.2.mlp.down_proj.weight' must be [192, 512]; it is [192, 500]"));

  const test::TempDir nan;
  at::Tensor norm = at::ones({192}, at::kBFloat16);
  norm[7] = std::numeric_limits<float>::quiet_NaN();
  copy_with(nan.path(), "model.layers.1.input_layernorm.weight", norm);
  CHECK_NOTHROW(inspect(nan.path(), false, observer));
  CHECK_THAT(error_text([&] { inspect(nan.path(), true, observer); }),
             Catch::Contains("'model.layers.1.input_layernorm.weight' must hold finite values"));

  const fs::path nothing = dir / "nothing";
  CHECK(error_text([&] { inspect(nothing, false, observer); }) ==
        fmt::format("[{}] there must be a model directory or a file; there is nothing", nothing.string()));
}

TEST_CASE("a model without a tokenizer is described with a warning", "[pipeline][inspect]") {
  Observer observer;
  const test::TempDir dir;
  copy_with(dir.path(), "", {});
  fs::remove(dir / "tokenizer.json");
  const Inspection found = inspect(dir.path(), false, observer);
  CHECK(found.model->tokenizer_hash.empty());
  CHECK(found.warnings ==
        std::vector<std::string>{fmt::format(
            "{}: there is no tokenizer.json; calibration and evaluation need one", dir.path().string())});
}

TEST_CASE("a deep inspection can be stopped", "[pipeline][inspect]") {
  for (const int patience : {0, 3, 9}) {
    Impatient observer(patience);
    CHECK(error_text([&] { inspect(bundled(), true, observer); }) == "[inspect] the inspection was stopped");
  }
}
