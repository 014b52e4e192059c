#include "lcomp/pipeline/verify.h"

#include <ATen/ATen.h>

#include <fstream>

#include "lcomp/core/error.h"
#include "lcomp/io/checkpoint.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/io/safetensors_writer.h"
#include "lcomp/pipeline/export.h"
#include "lcomp/pipeline/pass.h"
#include "pipeline/edit_model.h"
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

/// Puts the changed file's hash into the record, so that only its content can give it away.
void fit_record(const fs::path& output, const io::FileRecord& changed) {
  edit_record(output, [&](OutputRecord& record) {
    for (io::FileRecord& file : record.files) {
      if (file.name == changed.name) file = changed;
    }
  });
}

void edit_json(const fs::path& output, const std::string& name, const std::function<void(Json&)>& edit) {
  Json json = test::read_json(output / name);
  edit(json);
  fit_record(output, io::write_file_atomic(output / name, json.dump()));
}

/// Changes the tensors, and the record's line on their file so that only their values can give them away.
void edit_tensors(const fs::path& output, const std::function<void(io::NamedTensors&)>& edit) {
  io::NamedTensors tensors;
  {
    const io::SafetensorsFile file(output / "model.safetensors");
    for (const auto& info : file.tensors()) tensors.emplace_back(info.name, file.read(info.name).clone());
  }
  edit(tensors);
  fit_record(output, io::write_safetensors(output / "model.safetensors", tensors));
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

TEST_CASE("a file beside a companion in its folder is found", "[pipeline][verify]") {
  const test::TempDir dir;
  test::run(test::rtn_job(dir / "out"));
  fs::create_directory(dir / "out" / "1_Pooling");
  const io::FileRecord file = io::write_file_atomic(dir / "out" / "1_Pooling" / "config.json", "{}");
  edit_record(dir / "out", [&](OutputRecord& record) {
    record.files.push_back({"1_Pooling/config.json", file.bytes, file.hash});
  });
  REQUIRE(verdict(dir / "out").empty());
  test::write_text(dir / "out" / "1_Pooling" / "more.json", "{}");
  REQUIRE(verdict(dir / "out") == "the file '1_Pooling/more.json' is not in the record");
}

TEST_CASE("a record that names files elsewhere is refused", "[pipeline][verify]") {
  const test::TempDir dir;
  test::run(test::rtn_job(dir / "out"));
  for (const std::string& name :
       {std::string("/etc/hostname"), std::string("../model/config.json"), std::string("a/../../b"),
        std::string(), std::string("a/"), std::string("./a"), std::string("config.json\0", 12)}) {
    CAPTURE(name);
    const fs::path file = dir / "out" / OutputRecord::kFileName;
    OutputRecord record = OutputRecord::from_json(io::read_file(file), "record");
    record.files[0].name = name;
    REQUIRE_THAT(
        test::error_text([&] { OutputRecord::from_json(record.to_json(), "record"); }),
        Catch::StartsWith("[record: /files/0/name] must be the name of a file in the output; it is "));
  }
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

TEST_CASE("values that are not finite are found where all hashes fit, and so are tensors of no operator",
          "[pipeline][verify]") {
  const std::string norm = GENERATE("model.layers.0.input_layernorm.weight", "model.norm.weight");
  const test::TempDir dir;
  test::run(test::rtn_job(dir / "out"));
  SECTION("NaN in what no pass changed") {
    edit_tensors(dir / "out", [&](auto& t) { tensor(t, norm)[2].fill_(NAN); });
    const std::string hash = io::open_checkpoint(dir / "out")->hash_of_tensor(norm);
    edit_record(dir / "out", [&](auto& record) { record.copied[norm] = hash; });
    REQUIRE_THAT(verdict(dir / "out"),
                 Catch::Contains("'" + norm + "' must hold finite values; the one at [2]"));
  }
  SECTION("a tensor that the record does not have") {
    edit_tensors(dir / "out", [&](auto& t) { t.emplace_back(norm + "2", at::zeros({3})); });
    REQUIRE(verdict(dir / "out") == "the tensor \"" + norm + "2\" is not in the record");
  }
}

TEST_CASE("config and tensors that contradict each other are found where all hashes fit",
          "[pipeline][verify]") {
  const test::TempDir dir;
  test::run(test::rtn_job(dir / "out"));
  const auto edit_config = [&](const std::function<void(Json&)>& edit) {
    edit_json(dir / "out", "config.json", edit);
  };
  const auto group = [](Json& config) -> Json& {
    return config["quantization_config"]["config_groups"]["group_0"];
  };
  SECTION("bits") {
    edit_config([&](Json& config) { group(config)["weights"]["num_bits"] = 8; });
    REQUIRE_THAT(verdict(dir / "out"), Catch::Contains("weight_packed"));
  }
  SECTION("groups") {
    edit_config([&](Json& config) { group(config)["weights"]["group_size"] = 32; });
    REQUIRE_THAT(verdict(dir / "out"), Catch::Contains("weight_scale"));
  }
  SECTION("an operator that is packed and said to be dense") {
    edit_config([&](Json& config) {
      config["quantization_config"]["ignore"].push_back("model.layers.1.mlp.up_proj");
    });
    REQUIRE_THAT(verdict(dir / "out"),
                 Catch::Contains("'model.layers.1.mlp.up_proj.weight_packed' must belong to a group"));
  }
  SECTION("layers") {
    edit_config([&](Json& config) { config["num_hidden_layers"] = 3; });
    REQUIRE(verdict(dir / "out") == "an operator of the record is not in the model");
  }
  SECTION("sizes") {
    edit_config([&](Json& config) { config["hidden_size"] = 96; });
    REQUIRE_THAT(verdict(dir / "out"), Catch::Contains("must be [") && Catch::Contains("it is ["));
  }
}

TEST_CASE("what the report says of an operator must be what is stored", "[pipeline][verify]") {
  const test::TempDir dir;
  test::run(test::rtn_job(dir / "out"));
  const std::string q = "'model.layers.0.self_attn.q_proj' must have, as report.json says, ";
  const auto set = [&](const char* field, const Json& value) {
    edit_json(dir / "out", "report.json", [&](Json& report) { report["operators"][0][field] = value; });
  };
  SECTION("bits") {
    set("scheme", "int8 symmetric, groups of 64");
    REQUIRE(verdict(dir / "out") == q + "int8 symmetric, groups of 64; it is int4 symmetric, groups of 64");
  }
  SECTION("bytes") {
    set("bytes_after", 19601);
    REQUIRE(verdict(dir / "out") == q + "19601 bytes; it has 19600");
  }
  SECTION("a job of other types") {
    edit_json(dir / "out", "report.json", [](Json& report) { report["job"]["passes"][0]["pattern"] = 3; });
    REQUIRE(verdict(dir / "out") == "[report.json: /job: /passes/0/pattern] must be a string; it is 3");
    edit_json(dir / "out", "report.json",
              [](Json& report) { report["job"]["passes"][0]["pattern"] = "4:2"; });
    REQUIRE_THAT(verdict(dir / "out"),
                 Catch::StartsWith("[report.json: /job: /passes/0/pattern] pattern must be "));
    edit_json(dir / "out", "report.json", [](Json& report) { report["job"]["passes"] = "all"; });
    REQUIRE_THAT(verdict(dir / "out"), Catch::StartsWith("[report.json: /job: /passes] must be an array"));
  }
  SECTION("an error in its ninth digit") {
    const double error =
        test::read_json(dir / "out" / "report.json")["operators"][0]["weight_error"].get<double>();
    set("weight_error", error + 2e-9);
    REQUIRE_THAT(verdict(dir / "out"), Catch::StartsWith(q + "the weight error ") &&
                                           Catch::Contains(" against its source; it has "));
  }
}

TEST_CASE("zeros and patterns must be those of the job", "[pipeline][verify]") {
  const test::TempDir dir;
  const std::string op = "model.layers.0.mlp.up_proj";
  const auto prune = [&](const Json& more) {
    Json job = test::job_with(dir / "out", Json::array({{{"method", "wanda"}, {"pattern", "2:4"}}}));
    job.update(more);
    test::run(job);
    REQUIRE(verdict(dir / "out").empty());
  };
  /// Changes the first row of the matrix and all that is recorded of its values.
  const auto edit_row = [&](const std::function<void(float*)>& edit) {
    std::string hash;
    edit_tensors(dir / "out", [&](auto& tensors) {
      at::Tensor& matrix = tensor(tensors, op + ".weight");
      at::Tensor values = matrix.to(at::kFloat).contiguous();
      edit(values.data_ptr<float>());
      matrix = values.to(matrix.scalar_type());
      hash = pipeline::decoded_hash(matrix);
    });
    edit_record(dir / "out", [&](auto& record) { record.decoded[op] = hash; });
  };
  const std::string says = "'" + op + "' must have, as report.json says, ";
  SECTION("fewer zeros") {
    prune({{"write", {{"format", "dense"}}},
           {"passes", Json::array({{{"method", "wanda"}, {"sparsity", 0.5}}})}});
    edit_row([](float* row) { std::fill(row, row + 192, 1.F); });
    REQUIRE(verdict(dir / "out") ==
            says + "50.0 % zeros, bitmask bfloat16, written dense; it has 49.9 % zeros");
  }
  SECTION("more elements than an earlier pass left") {
    Json pruned = {{"method", "wanda"}, {"sparsity", 0.5}};
    prune({{"passes", Json::array({pruned, test::pass("rtn")})}});
    edit_json(dir / "out", "report.json", [&](Json& report) {
      for (Json& row : report["operators"]) {
        if (row["name"] == op && row["pass"] == 0) row["parameters"] = 100;
      }
    });
    REQUIRE_THAT(verdict(dir / "out"),
                 Catch::StartsWith(says + "at most 100 elements that are not 0; it has "));
  }
  SECTION("an element moved into another group") {
    prune({{"write", {{"format", "dense"}}}});
    edit_row([](float* row) {
      *std::find(row, row + 4, 0.F) = 1;
      *std::find_if(row + 4, row + 8, [](float value) { return value != 0; }) = 0;
    });
    REQUIRE(verdict(dir / "out") == says + "the pattern 2:4; it has not");
  }
  SECTION("positions of packed elements") {
    prune(Json::object());
    edit_tensors(dir / "out", [&](auto& t) { tensor(t, op + ".weight_positions").fill_(0); });
    REQUIRE_THAT(verdict(dir / "out"), Catch::Contains(op) && Catch::Contains("positions"));
  }
}

TEST_CASE("weight errors are computed again where the source is, and verification says where it is not",
          "[pipeline][verify]") {
  const test::TempDir dir;
  const fs::path model = test::copy_of_model(dir);
  Json job = test::rtn_job(dir / "out");
  job["model"] = model.string();
  test::run(job);
  Observer silent;
  const auto check = [&](const fs::path& against = {}) {
    return pipeline::verify(dir / "out", silent, against);
  };
  REQUIRE(check().errors_compared == 28);
  REQUIRE(check().not_compared.empty());
  fs::rename(model, dir / "moved");
  REQUIRE(check().passed);
  REQUIRE(check().errors_compared == 0);
  REQUIRE_THAT(check().not_compared,
               Catch::StartsWith("[" + model.string() + "] the model must be a directory"));
  REQUIRE(check(dir / "moved").errors_compared == 28);
  REQUIRE_THROWS_AS(check(model), ConfigError);

  const auto damage = [&](const std::string& name) {
    test::edit_tensors(dir / "moved", [&](auto& tensors) { tensor(tensors, name)[2].add_(1); });
  };
  damage("model.layers.2.mlp.up_proj.weight");
  REQUIRE_THAT(check(dir / "moved").message, Catch::StartsWith("'model.layers.2.mlp.up_proj' must have, as "
                                                               "report.json says, the weight error"));
  damage("model.norm.weight");
  REQUIRE(test::error_text([&] { check(dir / "moved"); }) ==
          "[" + (dir / "moved").string() + "] the model must be the one that " + (dir / "out").string() +
              " was made from; its 'model.norm.weight' is another");
  fs::rename(dir / "moved", model);
  REQUIRE(check().passed);
  REQUIRE_THAT(check().not_compared, Catch::EndsWith("its 'model.norm.weight' is another"));
}
