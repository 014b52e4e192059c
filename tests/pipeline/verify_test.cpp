#include "lcomp/pipeline/verify.h"

#include <ATen/ATen.h>

#include <fstream>

#include "lcomp/core/error.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/io/safetensors_writer.h"
#include "lcomp/pipeline/export.h"
#include "lcomp/pipeline/pass.h"
#include "pipeline/job_runs.h"
#include "pipeline/output_record.h"
#include "support/error_text.h"

namespace fs = std::filesystem;
using namespace lcomp;
using pipeline::OutputRecord;
using test::Json;

namespace {

/// What verification says; "" when it passes.
std::string verdict(const fs::path& output) {
  Observer silent;
  const auto result = pipeline::verify(output, silent);
  REQUIRE(result.passed == result.message.empty());
  return result.message;
}

std::vector<fs::path> files_of(const fs::path& output) {
  std::vector<fs::path> files = io::list_directory(output);
  REQUIRE(files.size() >= 6);
  return files;
}

void flip(const fs::path& file, uint64_t position) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(static_cast<std::streamoff>(position));
  const auto byte = static_cast<char>(stream.get() ^ 0x01);
  stream.seekp(static_cast<std::streamoff>(position));
  stream.put(byte);
}

/// Publishes a changed record with a checksum that fits it.
void edit_record(const fs::path& output, const std::function<void(OutputRecord&)>& edit) {
  const fs::path file = output / OutputRecord::kFileName;
  OutputRecord record = OutputRecord::from_json(io::read_file(file), file.string());
  edit(record);
  test::write_text(file, record.to_json());
}

/// Changes the tensors, and the record's line on their file so that only their values can give them away.
void edit_tensors(const fs::path& output, const std::function<void(io::NamedTensors&)>& edit) {
  io::NamedTensors tensors;
  {
    const io::SafetensorsFile file(output / "model.safetensors");
    for (const auto& info : file.tensors()) tensors.emplace_back(info.name, file.read(info.name).clone());
  }
  edit(tensors);
  const io::FileRecord changed = io::write_safetensors(output / "model.safetensors", tensors);
  edit_record(output, [&](OutputRecord& record) {
    for (io::FileRecord& file : record.files) {
      if (file.name == changed.name) file = changed;
    }
  });
}

at::Tensor& tensor(io::NamedTensors& tensors, const std::string& name) {
  for (auto& [known, value] : tensors) {
    if (known == name) return value;
  }
  throw std::runtime_error("no tensor " + name);
}

/// Stores twice what it stands for.
class LyingWeight final : public Weight {
 public:
  explicit LyingWeight(at::Tensor matrix) : matrix_(std::move(matrix)) {}
  int64_t out_features() const override { return matrix_.size(0); }
  int64_t in_features() const override { return matrix_.size(1); }
  at::Tensor dense() const override { return matrix_.to(at::kFloat); }
  int64_t bytes() const override { return DenseWeight(matrix_).bytes(); }
  std::string describe() const override { return "liar"; }
  void save(TensorSink& sink, const std::string& name) const override {
    DenseWeight(matrix_ * 2).save(sink, name);
  }

 private:
  at::Tensor matrix_;
};

struct NoOptions {
  void visit(FieldVisitor&) {}
};

pipeline::MethodInfo liar_method() {
  pipeline::MethodInfo info;
  info.name = "liar";
  info.summary = "stores other values than it computes with";
  info.default_options = [] { return std::make_unique<pipeline::PassOptionsOf<NoOptions>>(); };
  info.plan_weight = [](const pipeline::PassOptions&, const pipeline::PlannedOperator& op) {
    return pipeline::PlannedWeight{"liar", 2 * op.out_features * op.in_features};
  };
  info.make_passes = [](const pipeline::PassOptions&) {
    return pipeline::chain_of(pipeline::linear_pass(
        "liar", {}, false,
        [](const at::Tensor& weight, const calib::InputStats&, const pipeline::PassOptions&,
           pipeline::PassContext& context) {
          return pipeline::MatrixResult{std::make_shared<LyingWeight>(weight.to(context.model_dtype)), {}};
        }));
  };
  return info;
}

}  // namespace

TEST_CASE("an output verifies, and the check counts what it looked at", "[pipeline][verify]") {
  const test::TempDir dir;
  test::run(test::rtn_job(dir / "out"));
  Observer silent;
  const auto result = pipeline::verify(dir / "out", silent);
  REQUIRE(result.passed);
  REQUIRE(result.message.empty());
  REQUIRE(result.tensors_decoded == 28);
  REQUIRE(result.tensors_compared == 28 + 10);  // operators; two norms a block, the last norm, the embedding
  REQUIRE(result.files_hashed == static_cast<int64_t>(files_of(dir / "out").size()) - 1);
}

TEST_CASE("a changed byte anywhere in an output is found", "[pipeline][verify]") {
  const test::TempDir dir;
  test::run(test::rtn_job(dir / "out"));
  for (const fs::path& file : files_of(dir / "out")) {
    const uint64_t size = fs::file_size(file);
    std::vector<uint64_t> positions{0, size / 3, size / 2, size - 1};
    if (file.filename() == OutputRecord::kFileName) {
      for (uint64_t k = 1; k < 40; ++k) positions.push_back(k * size / 40);
    }
    for (const uint64_t position : positions) {
      CAPTURE(file.filename().string(), position);
      flip(file, position);
      REQUIRE_THAT(verdict(dir / "out"), Catch::Contains(file.filename().string()));
      flip(file, position);
    }
  }
  REQUIRE(verdict(dir / "out").empty());
}

TEST_CASE("a missing, an empty and an unknown file are found", "[pipeline][verify]") {
  const test::TempDir dir;
  test::run(test::rtn_job(dir / "out"));
  for (const fs::path& file : files_of(dir / "out")) {
    const std::string name = file.filename().string();
    CAPTURE(name);
    fs::rename(file, dir / "aside");
    if (name != OutputRecord::kFileName) {
      REQUIRE(verdict(dir / "out") == "the file '" + name + "' is missing");
      test::write_text(file, "");
      REQUIRE(verdict(dir / "out") == "the file '" + name + "' differs from what was written");
    }
    fs::rename(dir / "aside", file);
  }
  test::write_text(dir / "out" / "extra.txt", "x");
  REQUIRE(verdict(dir / "out") == "the file 'extra.txt' is not in the record");
  fs::remove(dir / "out" / "extra.txt");
  fs::create_directory(dir / "out" / "folder");
  REQUIRE(verdict(dir / "out") == "the file 'folder' is not in the record");
}

TEST_CASE("a directory without a record cannot be verified", "[pipeline][verify]") {
  const test::TempDir dir;
  Observer silent;
  for (const fs::path& path : {dir.path(), dir / "nothing"}) {
    REQUIRE_THROWS_AS(pipeline::verify(path, silent), CorruptFile);
    REQUIRE(test::error_text([&] { pipeline::verify(path, silent); }) ==
            "[" + path.string() + "] an output of lcomp must hold lcomp.json; there is none");
  }
}

TEST_CASE("a run does not publish files that changed after they were written", "[pipeline][verify]") {
  const test::TempDir dir;
  const fs::path staged = test::work_dir_of(dir / "out") / "output" / "model.safetensors";
  test::Watcher watcher;
  watcher.at_sign = [&](int) {
    const bool before =
        !watcher.steps.empty() && watcher.steps.back().phase == "verify" && watcher.steps.back().done == 0;
    if (before) flip(staged, fs::file_size(staged) - 1);
  };
  std::string message;
  try {
    test::run(test::rtn_job(dir / "out"), watcher);
  } catch (const CorruptFile& damage) {  // by the disk or another program, not a bug of ours
    message = damage.what();
  }
  REQUIRE(message == "[" + staged.parent_path().string() +
                         "] the files must stay as they were written; the file 'model.safetensors' differs "
                         "from what was written");
  REQUIRE_FALSE(fs::exists(dir / "out"));
  const Json report = test::read_json(test::work_dir_of(dir / "out") / "report.json");
  REQUIRE(report["status"] == "failed");
  REQUIRE(report["verification"]["passed"] == false);
  REQUIRE(test::run(test::rtn_job(dir / "out")).verification->passed);
}

TEST_CASE("an export does not publish files that changed after they were written", "[pipeline][verify]") {
  const test::TempDir dir;
  const fs::path staged = test::work_dir_of(dir / "out") / "output";
  test::Watcher watcher;
  watcher.at_sign = [&](int) {
    if (!watcher.steps.empty() && watcher.steps.back().phase == "verify" && watcher.steps.back().done == 1)
      flip(staged / "tokenizer.json", 0);
  };
  const auto exported = [&](Observer& observer) {
    watcher.steps.clear();
    pipeline::export_model(test::bundled_model(), dir / "out", {}, observer);
  };
  REQUIRE_THROWS_AS(exported(watcher), CorruptFile);
  REQUIRE(test::error_text([&] { exported(watcher); }) ==
          "[" + staged.string() +
              "] the files must stay as they were written; the file 'tokenizer.json' differs from what was "
              "written");
  REQUIRE_FALSE(fs::exists(dir / "out"));
  Observer silent;
  exported(silent);
  REQUIRE(verdict(dir / "out").empty());
}

TEST_CASE("a method whose weights store other values than they stand for ends the run",
          "[pipeline][verify]") {
  const test::TempDir dir;
  pipeline::MethodTable methods = pipeline::builtin_methods();
  methods.add(liar_method());
  Observer silent;
  const auto run = [&] {
    const Json job = test::job_with(dir / "out", Json::array({{{"method", "liar"}}}));
    pipeline::run(pipeline::parse_job(job.dump(), "job", methods), methods, silent);
  };
  REQUIRE_THROWS_AS(run(), InternalError);
  REQUIRE(test::error_text(run) ==
          "[verify] the written checkpoint must equal what was computed; 'model.layers.0.self_attn.q_proj' "
          "decodes to other values than were computed");
  REQUIRE_FALSE(fs::exists(dir / "out"));
}

TEST_CASE("a record whose text was changed without changing its meaning is found", "[pipeline][verify]") {
  const test::TempDir dir;
  test::run(test::rtn_job(dir / "out"));
  const fs::path file = dir / "out" / OutputRecord::kFileName;
  test::write_text(file, Json::parse(io::read_file(file)).dump());
  REQUIRE(verdict(dir / "out") ==
          "[" + file.string() + "] the record must have its own checksum; it was changed");
}

TEST_CASE("values are compared with what was computed, not only files with their hashes",
          "[pipeline][verify]") {
  const test::TempDir dir;
  const std::string op = "model.layers.1.mlp.up_proj";
  const std::string norm = "model.layers.0.input_layernorm.weight";
  Json job = test::rtn_job(dir / "out");
  SECTION("packed codes") {
    test::run(job);
    edit_tensors(dir / "out", [&](auto& t) { tensor(t, op + ".weight_packed")[3][0].bitwise_xor_(16); });
    REQUIRE(verdict(dir / "out") == "'" + op + "' decodes to other values than were computed");
  }
  SECTION("a scale that overflows") {
    test::run(job);
    edit_tensors(dir / "out", [&](auto& t) { tensor(t, op + ".weight_scale")[3].fill_(3e38); });
    REQUIRE(verdict(dir / "out") == "'" + op + "' decodes to values that are not finite");
  }
  SECTION("a scale that is NaN") {
    test::run(job);
    edit_tensors(dir / "out", [&](auto& t) { tensor(t, op + ".weight_scale")[3].fill_(NAN); });
    REQUIRE_THAT(verdict(dir / "out"),
                 Catch::Contains("'" + op + ".weight_scale' must hold finite values; the one at [3, 0]"));
  }
  SECTION("a dense weight") {
    job["write"] = {{"format", "dense"}};
    test::run(job);
    edit_tensors(dir / "out", [&](auto& t) { tensor(t, op + ".weight")[2][1].add_(1); });
    REQUIRE(verdict(dir / "out") == "'" + op + "' decodes to other values than were computed");
  }
  SECTION("a tensor that no pass changed") {
    test::run(job);
    edit_tensors(dir / "out", [&](auto& t) { tensor(t, norm)[2].add_(1); });
    REQUIRE(verdict(dir / "out") == "the tensor '" + norm + "' differs from its source");
  }
  SECTION("a tensor of the record that is not there") {
    test::run(job);
    edit_record(dir / "out", [](auto& record) { record.copied["model.extra"] = "0"; });
    REQUIRE(verdict(dir / "out") == "the tensor 'model.extra' is missing");
  }
  SECTION("an operator of the record that is not there") {
    test::run(job);
    edit_record(dir / "out", [](auto& record) { record.decoded["model.layers.9.mlp.up_proj"] = "0"; });
    REQUIRE(verdict(dir / "out") == "an operator of the record is not in the model");
  }
}
