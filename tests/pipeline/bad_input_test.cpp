// Bad input: the right kind of error, which names file, tensor or field, and nothing half-written.
#include <ATen/ATen.h>
#include <sys/stat.h>

#include "lcomp/core/error.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/io/safetensors_writer.h"
#include "lcomp/linalg/gemm.h"
#include "pipeline/edit_model.h"
#include "pipeline/job_runs.h"
#include "support/error_text.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;

namespace {

struct Failure {
  ErrorKind kind = ErrorKind::kInternal;
  std::string text;
};

/// Runs a job that must fail without publishing anything.
Failure failure_of(const Json& job) {
  try {
    test::run(job);
  } catch (const Error& error) {
    REQUIRE_FALSE(fs::exists(job["output"].get<std::string>() + "/model.safetensors"));
    return {error.kind(), error.what()};
  }
  FAIL("nothing was thrown");
  return {};
}

/// A job on a model that `damage` has changed, with nothing written when it fails up front.
struct Damaged {
  explicit Damaged(const std::function<void(const fs::path& model)>& damage,
                   const std::string& method = "rtn")
      : model(test::copy_of_model(dir)) {
    damage(model);
    job = test::job_with(dir / "out", Json::array({test::pass(method)}));
    job["model"] = model.string();
  }
  bool made_nothing() const {
    return !fs::exists(dir / "out") && !fs::exists(test::work_dir_of(dir / "out"));
  }

  test::TempDir dir;
  fs::path model;
  Json job;
};

void edit_config(const fs::path& model, const std::function<void(Json&)>& edit) {
  Json config = test::read_json(model / "config.json");
  edit(config);
  test::write_text(model / "config.json", config.dump());
}

const std::string kDown = "model.layers.2.mlp.down_proj.weight";

void poison(io::NamedTensors& tensors, const std::string& name, double value) {
  for (auto& [known, tensor] : tensors) {
    if (known == name) tensor.view({-1})[5].fill_(value);
  }
}

}  // namespace

TEST_CASE("a model directory that is none, or lacks its config or its weights, is refused",
          "[pipeline][bad]") {
  {
    const Damaged input([](const fs::path& model) { fs::remove_all(model); });
    const auto failure = failure_of(input.job);
    REQUIRE(failure.kind == ErrorKind::kCorruptFile);
    REQUIRE(failure.text ==
            "[" + input.model.string() +
                "] the model must be a directory with config.json and safetensors files; it is "
                "no directory");
    REQUIRE(input.made_nothing());
  }
  {
    const Damaged input([](const fs::path& model) { fs::remove(model / "config.json"); });
    const auto failure = failure_of(input.job);
    REQUIRE(failure.kind == ErrorKind::kCorruptFile);
    REQUIRE(failure.text ==
            "[" + input.model.string() + "] the model directory must hold config.json; there is none");
    REQUIRE(input.made_nothing());
  }
  {
    const Damaged input([](const fs::path& model) { fs::remove(model / "model.safetensors"); });
    const auto failure = failure_of(input.job);
    REQUIRE(failure.kind == ErrorKind::kCorruptFile);
    REQUIRE_THAT(failure.text, Catch::Contains(input.model.string()));
    REQUIRE(input.made_nothing());
  }
}

TEST_CASE("a missing shard is named", "[pipeline][bad]") {
  const test::TempDir dir;
  Json job = test::rtn_job(dir / "sharded");
  job["write"] = {{"format", "dense"}, {"shard_size", 1000000}};
  test::run(job);
  std::vector<fs::path> shards;
  for (const fs::path& file : io::list_directory(dir / "sharded")) {
    if (file.extension() == ".safetensors") shards.push_back(file);
  }
  REQUIRE(shards.size() >= 3);
  fs::remove(shards[1]);
  const auto failure = failure_of([&] {
    Json next = test::rtn_job(dir / "out");
    next["model"] = (dir / "sharded").string();
    return next;
  }());
  REQUIRE(failure.kind == ErrorKind::kCorruptFile);
  REQUIRE_THAT(failure.text, Catch::Contains(shards[1].filename().string()));
  REQUIRE_FALSE(fs::exists(test::work_dir_of(dir / "out")));
}

TEST_CASE("a missing tensor and a wrong shape are named before anything is made", "[pipeline][bad]") {
  {
    const Damaged input([](const fs::path& model) {
      test::edit_tensors(model, [](io::NamedTensors& tensors) {
        std::erase_if(tensors, [](const auto& entry) { return entry.first == kDown; });
      });
    });
    const auto failure = failure_of(input.job);
    REQUIRE(failure.kind == ErrorKind::kCorruptFile);
    REQUIRE(failure.text == "[" + input.model.string() + "] the model must have the tensor '" + kDown +
                                "' [192, 512]; it is missing");
    REQUIRE(input.made_nothing());
  }
  {
    const Damaged input([](const fs::path& model) {
      edit_config(model, [](Json& config) { config["intermediate_size"] = 256; });
    });
    const auto failure = failure_of(input.job);
    REQUIRE(failure.kind == ErrorKind::kCorruptFile);
    REQUIRE_THAT(
        failure.text,
        Catch::Contains("model.safetensors] the tensor 'model.layers.0.mlp.gate_proj.weight' must be "
                        "[256, 192]; it is [512, 192]"));
    REQUIRE(input.made_nothing());
  }
}

TEST_CASE("NaN and infinite weights are named with their place, and a repaired model goes through",
          "[pipeline][bad]") {
  for (const std::string& name :
       {kDown, std::string("model.layers.1.input_layernorm.weight"), std::string("model.embed_tokens.weight"),
        std::string("model.norm.weight")}) {
    for (const char* method : {"rtn", "gptq"}) {
      CAPTURE(name, method);
      const Damaged input(
          [&](const fs::path& model) {
            test::edit_tensors(
                model, [&](auto& tensors) { poison(tensors, name, method[0] == 'r' ? NAN : INFINITY); });
          },
          method);
      const auto failure = failure_of(input.job);
      REQUIRE(failure.kind == ErrorKind::kCorruptFile);
      const std::string place = name.find("norm") != std::string::npos ? "[5]" : "[0, 5]";
      REQUIRE(failure.text == "[" + (input.model / "model.safetensors").string() + "] the tensor '" + name +
                                  "' must hold finite values; the one at " + place + " is NaN or infinite");
      REQUIRE_FALSE(fs::exists(input.dir / "out"));
      fs::copy(test::bundled_model() / "model.safetensors", input.model / "model.safetensors",
               fs::copy_options::overwrite_existing);
      REQUIRE(test::run(input.job).verification->passed);
    }
  }
}

TEST_CASE("a truncated weight file is refused by name", "[pipeline][bad]") {
  const Damaged input([](const fs::path& model) {
    fs::resize_file(model / "model.safetensors", fs::file_size(model / "model.safetensors") - 1000);
  });
  const auto failure = failure_of(input.job);
  REQUIRE(failure.kind == ErrorKind::kCorruptFile);
  REQUIRE_THAT(failure.text, Catch::Contains((input.model / "model.safetensors").string()));
  REQUIRE(input.made_nothing());
}

TEST_CASE("a number of layers beyond any model is refused before memory is taken for them",
          "[pipeline][bad]") {
  const Damaged input([](const fs::path& model) {
    edit_config(model, [](Json& config) { config["num_hidden_layers"] = int64_t{1} << 31; });
  });
  const auto failure = failure_of(input.job);
  REQUIRE(failure.kind == ErrorKind::kCorruptFile);
  REQUIRE(failure.text == "[" + (input.model / "config.json").string() +
                              ": /num_hidden_layers] must be at most 2^16 = 65536; it is 2147483648");
  REQUIRE(input.made_nothing());
}

TEST_CASE("an absurd vocabulary is refused before memory is taken for it", "[pipeline][bad]") {
  const auto failure_with = [](int64_t size) {
    const Damaged input([&](const fs::path& model) {
      edit_config(model, [&](Json& config) { config["vocab_size"] = size; });
    });
    const auto failure = failure_of(input.job);
    REQUIRE(failure.kind == ErrorKind::kCorruptFile);
    REQUIRE(input.made_nothing());
    return failure.text;
  };
  REQUIRE_THAT(
      failure_with((int64_t{1} << 31) + 1),
      Catch::EndsWith("config.json: /vocab_size] must be an integer from 1 to 2^31; it is 2147483649"));
  REQUIRE_THAT(failure_with(int64_t{1} << 31),
               Catch::EndsWith("model.safetensors] the tensor 'model.embed_tokens.weight' must be "
                               "[2147483648, 192]; it is [2048, 192]"));
}

TEST_CASE("weights that are no file are refused; those behind a link are read", "[pipeline][bad]") {
  const auto put = [](const std::function<void(const fs::path& weights)>& replace) {
    return Damaged([&](const fs::path& model) {
      fs::rename(model / "model.safetensors", model.parent_path() / "weights");
      replace(model / "model.safetensors");
    });
  };
  const auto refused = [](const Damaged& input) {
    const auto failure = failure_of(input.job);
    REQUIRE(failure.kind == ErrorKind::kCorruptFile);
    REQUIRE(input.made_nothing());
    REQUIRE_THAT(failure.text, Catch::StartsWith("[" + input.model.string()));
    return failure.text;
  };
  REQUIRE_THAT(refused(put([](const fs::path& file) { fs::create_symlink(file, file); })),
               Catch::EndsWith("Too many levels of symbolic links"));
  REQUIRE_THAT(refused(put([](const fs::path& file) { fs::create_symlink("nowhere", file); })),
               Catch::EndsWith("the file must be opened; No such file or directory"));
  REQUIRE_THAT(refused(put([](const fs::path& file) { fs::create_directory(file); })),
               Catch::Contains("must be a regular file"));
  REQUIRE_THAT(refused(put([](const fs::path& file) { REQUIRE(::mkfifo(file.c_str(), 0600) == 0); })),
               Catch::Contains("must be a regular file"));
  const Damaged linked = put([](const fs::path& file) { fs::create_symlink("../weights", file); });
  REQUIRE(test::run(linked.job).verification->passed);
}

TEST_CASE("an unknown family is named together with the known ones", "[pipeline][bad]") {
  const Damaged input([](const fs::path& model) {
    edit_config(model, [](Json& config) { config["model_type"] = "mamba"; });
  });
  const auto failure = failure_of(input.job);
  REQUIRE(failure.kind == ErrorKind::kUnsupported);
  REQUIRE_THAT(failure.text,
               Catch::Contains("config.json: /model_type] the model family must be one of llama, "
                               "mistral, qwen2, qwen3") &&
                   Catch::EndsWith("; it is 'mamba'"));
  REQUIRE(input.made_nothing());
}

TEST_CASE("a calibration text that is empty, absent or beyond the vocabulary is refused", "[pipeline][bad]") {
  const test::TempDir dir;
  Json job = test::gptq_job(dir / "out");
  {
    test::write_text(dir / "empty.txt", "");
    job["calibration"]["text"] = (dir / "empty.txt").string();
    const auto failure = failure_of(job);
    REQUIRE(failure.kind == ErrorKind::kCorruptFile);
    REQUIRE(failure.text ==
            "[" + (dir / "empty.txt").string() + "] the calibration text must hold text; the file is empty");
  }
  {
    job["calibration"]["text"] = (dir / "absent.txt").string();
    const auto failure = failure_of(job);
    REQUIRE(failure.kind == ErrorKind::kCorruptFile);
    REQUIRE_THAT(failure.text, Catch::StartsWith("[" + (dir / "absent.txt").string() + "] "));
  }
  {
    test::write_text(dir / "ids.json", "[[1, 2, 3, 2048, 5]]");
    job["calibration"]["text"] = (dir / "ids.json").string();
    const auto failure = failure_of(job);
    REQUIRE(failure.kind == ErrorKind::kCorruptFile);
    REQUIRE(failure.text == "[" + (dir / "ids.json").string() +
                                "] token ids must be below the model's vocab_size = 2048; one is 2048");
  }
  REQUIRE_FALSE(fs::exists(dir / "out"));
  REQUIRE_FALSE(fs::exists(test::work_dir_of(dir / "out")));
}

TEST_CASE("settings that do not fit an operator are listed with their place in the job", "[pipeline][bad]") {
  const test::TempDir dir;
  const auto failure = failure_of(test::rtn_job(dir / "out", {{"group_size", 100}}));
  REQUIRE(failure.kind == ErrorKind::kConfig);
  REQUIRE_THAT(failure.text, Catch::Contains("[job: /passes/0]") && Catch::Contains("group_size") &&
                                 Catch::Contains("100") && Catch::Contains("q_proj") &&
                                 Catch::Contains("down_proj"));
  REQUIRE(io::list_directory(dir.path()).empty());
}

TEST_CASE("patterns that match nothing are listed before any weight is read", "[pipeline][bad]") {
  const test::TempDir dir;
  const auto failure =
      failure_of(test::rtn_job(dir / "out", {{"targets", {"*.q_prj"}}, {"ignore", {"layers.9.*"}}}));
  REQUIRE(failure.kind == ErrorKind::kConfig);
  REQUIRE_THAT(failure.text, Catch::Contains("/passes/0/targets/0") &&
                                 Catch::Contains("/passes/0/ignore/0") && Catch::Contains("q_proj"));
  REQUIRE(io::list_directory(dir.path()).empty());
}

TEST_CASE("an output that exists is left alone", "[pipeline][bad]") {
  const test::TempDir dir;
  fs::create_directory(dir / "out");
  test::write_text(dir / "out" / "precious", "data");
  const auto failure = failure_of(test::rtn_job(dir / "out"));
  REQUIRE(failure.kind == ErrorKind::kConfig);
  REQUIRE(failure.text == "[" + (dir / "out").string() +
                              "] the output must not exist yet; it does, and nothing is overwritten");
  REQUIRE(io::read_file(dir / "out" / "precious") == "data");
  REQUIRE_FALSE(fs::exists(test::work_dir_of(dir / "out")));
}

TEST_CASE("an evaluation that cannot work is refused before the compression begins", "[pipeline][bad]") {
  const test::TempDir dir;
  Json job = test::rtn_job(dir / "out");
  test::write_text(dir / "short.txt", "In the beginning");
  job["evaluate"] = {{"text", (dir / "short.txt").string()}, {"window", 64}};
  const auto failure = failure_of(job);
  REQUIRE(failure.kind == ErrorKind::kCorruptFile);
  REQUIRE_THAT(failure.text, Catch::StartsWith("[" + (dir / "short.txt").string() +
                                               "] the evaluation text must have at least one window of 64 "
                                               "tokens; it has "));
  job["evaluate"]["text"] = (dir / "absent.txt").string();
  const auto absent = failure_of(job);
  REQUIRE(absent.kind == ErrorKind::kCorruptFile);
  REQUIRE_THAT(absent.text, Catch::StartsWith("[" + (dir / "absent.txt").string() + "] "));
  REQUIRE_FALSE(fs::exists(dir / "out"));
  REQUIRE_FALSE(fs::exists(test::work_dir_of(dir / "out")));
}

TEST_CASE("rounding to nearest is refused a range that needs statistics", "[pipeline][bad]") {
  const test::TempDir dir;
  const auto failure =
      failure_of(test::job_with(dir / "out", Json::array({test::pass("rtn", {{"range", "hessian"}})})));
  REQUIRE(failure.kind == ErrorKind::kConfig);
  REQUIRE_THAT(failure.text, Catch::Contains("[rtn] range hessian needs statistics of the inputs, and rtn "
                                             "takes none; use range mse, or the method gptq"));
}

TEST_CASE("bfloat16 arithmetic is refused where the processor has none", "[pipeline][bad]") {
  const test::TempDir dir;
  Json job = test::gptq_job(dir / "out");
  job["compute"] = "bf16";
  if (linalg::has_native_bf16()) {
    REQUIRE(test::run(job).host.compute == "bf16");
    return;
  }
  const auto failure = failure_of(job);
  REQUIRE(failure.kind == ErrorKind::kUnsupported);
  REQUIRE(failure.text ==
          "[job: /compute] \"bf16\" needs a processor with AVX-512 BF16 or AMX; this one has neither (use "
          "\"auto\" or \"f32\")");
}

TEST_CASE("settings of GPTQ that exclude each other are refused by the plan, at their place",
          "[pipeline][bad]") {
  const test::TempDir dir;
  const Failure failure = failure_of(
      test::job_with(dir / "out", Json::array({test::pass("gptq", {{"act_order", "activation"}})})));
  CHECK(failure.kind == ErrorKind::kConfig);
  CHECK_THAT(failure.text,
             Catch::Matchers::Contains("[job: /passes/0] [gptq] act_order activation with groups "
                                       "must store a group index"));
  Json pass = test::pass("rtn");
  pass["overrides"] = Json::array({{{"match", "q_proj"}, {"group_size", 60}}});
  const Failure misfit = failure_of(test::job_with(dir / "out", Json::array({pass})));
  CHECK_THAT(misfit.text,
             Catch::Matchers::Contains("[job: /passes/0/overrides/0] [rtn] group_size must divide"));
}

TEST_CASE("a model with NaN in its embedding is refused", "[pipeline][bad]") {
  Damaged damaged([](const fs::path& model) {
    test::edit_tensors(model, [](io::NamedTensors& tensors) {
      for (auto& [name, tensor] : tensors) {
        if (name == "model.embed_tokens.weight") tensor.fill_(NAN);
      }
    });
  });
  const Failure failure = failure_of(damaged.job);
  CHECK(failure.kind == ErrorKind::kCorruptFile);
  CHECK_THAT(failure.text, Catch::Matchers::Contains("'model.embed_tokens.weight' must hold finite values"));
}

TEST_CASE("samples that a block in front of the pass makes infinite are told by block and sample",
          "[pipeline][bad-input]") {
  const test::TempDir dir;
  const fs::path model = test::copy_of_model(dir);
  test::edit_tensors(model, [](io::NamedTensors& tensors) {
    for (auto& [name, tensor] : tensors) {
      if (name == "model.layers.1.mlp.down_proj.weight") tensor.fill_(3e38);
    }
  });
  Json job = test::job_with(dir / "out", Json::array({test::pass("gptq", {{"targets", {"layers.3.*"}}})}));
  job["model"] = model.string();
  REQUIRE_THAT(
      test::error_text([&] { test::run(job); }),
      Catch::StartsWith("[model.layers.1") &&
          Catch::Contains("the block's outputs must be finite; those for calibration sample 0 are not"));
  REQUIRE_FALSE(fs::exists(dir / "out"));
}

TEST_CASE("a text of few different tokens is warned of", "[pipeline][bad-input]") {
  const test::TempDir dir;
  test::write_text(dir / "text.txt", std::string(40'000, 'a'));
  Json job = test::gptq_job(dir / "out");
  job["calibration"]["text"] = (dir / "text.txt").string();
  const auto report = test::run(job);
  REQUIRE(std::any_of(report.warnings.begin(), report.warnings.end(), [](const std::string& warning) {
    return Catch::Contains("different tokens, which tell little of the inputs that the model will see")
        .match(warning);
  }));
}
