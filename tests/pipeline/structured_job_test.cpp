// Units of blocks deleted by a job: narrower files that are read back, budgets, and what may follow.
#include <ATen/ATen.h>

#include "lcomp/core/error.h"
#include "lcomp/eval/latency.h"
#include "lcomp/io/files.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/export.h"
#include "pipeline/child_runs.h"
#include "pipeline/edit_model.h"
#include "support/error_text.h"
#include "support/tiny_llama.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;

namespace {

Json shrink(const std::string& method, const Json& more = Json::object()) {
  Json entry = {{"method", method}};
  entry.update(more);
  return entry;
}

Json shrink_job(const fs::path& output, const std::string& method, const Json& more = Json::object()) {
  return test::job_with(output, Json::array({shrink(method, more)}));
}

/// Weights of the operators of all blocks.
double block_weights(const model::Model& model) {
  double sum = 0;
  for (int64_t block = 0; block < model.size(); ++block) {
    for (const auto& op : model.architecture().operators(block))
      sum += static_cast<double>(op.out_features * op.in_features);
  }
  return sum;
}

bool is_uniform(const model::Model& model) {
  const auto& widths = model.architecture().widths;
  return std::all_of(widths.begin(), widths.end(), [&](const auto& w) { return w == widths[0]; });
}

const std::vector<std::pair<std::string, Json>> kVariants = {
    {"fisher_mask", Json::object()},
    {"fisher_mask", {{"uniform", true}, {"compensate", "scales"}}},
    {"fisher_mask", {{"budget", "macs"}, {"compensate", "none"}, {"gradient_batch", 2}}},
    {"llm_pruner", Json::object()},
    {"llm_pruner", {{"importance", "vector"}, {"selection", "global"}, {"grouping", "last"}}},
    {"llm_pruner", {{"importance", "param_mix"}, {"compensate", "scales"}}},
    {"llm_pruner", {{"importance", "l2"}, {"compensate", "none"}}}};

}  // namespace

TEST_CASE("units are deleted, and the narrower model is written, verified and read back",
          "[pipeline][structured]") {
  const test::TempDir dir;
  const auto dense = model::Model::open(test::bundled_model());
  for (size_t v = 0; v < kVariants.size(); ++v) {
    const auto& [method, more] = kVariants[v];
    CAPTURE(method, more.dump());
    const fs::path output = dir / std::to_string(v);
    Json settings = more;
    settings["ratio"] = 0.3;
    const auto report = test::run(shrink_job(output, method, settings));
    const auto model = model::Model::open(output);
    const double left = block_weights(model) / block_weights(dense);
    const bool by_budget = method == "fisher_mask" || more.contains("selection");
    CHECK(left <= (by_budget && !more.contains("budget") ? 0.7 : 0.8));
    CHECK(left > 0.6);
    CHECK(report.totals.parameters_after == model.parameters());
    CHECK(model.parameters() < dense.parameters());
    CHECK(fs::file_size(output / "model.safetensors") <
          fs::file_size(test::bundled_model() / "model.safetensors"));
    CHECK_THAT(report.passes[0].summary, Catch::Contains("attention groups") && Catch::Contains("channels"));
    Observer silent;
    CHECK(pipeline::verify(output, silent).passed);
    if (more.contains("uniform")) {
      CHECK(is_uniform(model));
      const Json config = test::read_json(output / "config.json");
      CHECK_FALSE(config.contains("lcomp"));
      CHECK(config.at("intermediate_size") == model.architecture().block_widths(0).intermediate);
    }
    for (const auto& row : report.operators) {
      CHECK_FALSE(row.fell_back);
      CHECK(*row.weight_error > 0);
    }
    CHECK(*report.totals.operator_bits_per_weight == Approx(16));
  }
}

TEST_CASE("without compensation the deleted model is the model with its units masked",
          "[pipeline][structured]") {
  const test::TempDir dir;
  test::run(shrink_job(dir / "out", "fisher_mask", {{"compensate", "none"}, {"ratio", 0.4}}));
  const auto dense = model::Model::open(test::bundled_model()), narrow = model::Model::open(dir / "out");
  const std::vector<int64_t> ids = {5, 17, 300, 2, 44, 9, 101};
  // Which units are left is read off the rows of q_proj and up_proj.
  const at::Tensor masked = test::logits_of(dense, ids, [&](model::Block& block) {
    const model::Block after = narrow.load_block(block.index());
    for (const model::DependencyGroup& units : block.dependency_groups()) {
      const size_t op = units.slices[units.kind == model::UnitKind::kChannel ? 1 : 0].op;
      const int64_t rows = units.slices[0].per_unit;
      const at::Tensor before = block.ops()[op].weight->dense(), left = after.ops()[op].weight->dense();
      int64_t next = 0;
      for (int64_t unit = 0; unit < units.units; ++unit) {
        const bool kept = next < left.size(0) && before[unit * rows].equal(left[next]);
        if (kept) {
          next += rows;
          continue;
        }
        for (const model::UnitSlice& slice : units.slices) {
          const at::Tensor weight = block.ops()[slice.op].weight->dense().clone();
          weight.narrow(slice.rows ? 0 : 1, unit * slice.per_unit, slice.per_unit).zero_();
          block.replace(slice.op, std::make_shared<DenseWeight>(weight));
        }
      }
      REQUIRE(next == left.size(0));
    }
  });
  const at::Tensor deleted = test::logits_of(narrow, ids);
  CHECK((masked - deleted).abs().max().item<double>() < 1e-4 * masked.abs().max().item<double>());
  CHECK((masked - test::logits_of(dense, ids)).abs().max().item<double>() > 0.01);
}

TEST_CASE("one kind of unit alone, and blocks alone", "[pipeline][structured]") {
  const test::TempDir dir;
  const auto widths = [&](const std::string& name, const std::string& method, const Json& more) {
    test::run(shrink_job(dir / name, method, more));
    return model::Model::open(dir / name).architecture().widths;
  };
  for (const auto& w : widths("mlp", "fisher_mask", {{"targets", {"mlp.*"}}, {"ratio", 0.3}}))
    CHECK(w.kv_heads == 2);
  for (const auto& w : widths("heads", "llm_pruner", {{"targets", {"self_attn.*"}}, {"ratio", 0.5}}))
    CHECK((w == model::BlockWidths{3, 1, 512}));
  const auto one =
      widths("one", "llm_pruner", {{"targets", {"layers.2.*"}}, {"ratio", 0.5}, {"selection", "global"}});
  CHECK((one[1] == model::BlockWidths{6, 2, 512}));
  CHECK((one[2] != one[1]));
  // A share of 0.4 has no room for one of two groups of heads.
  for (const auto& w : widths("few", "llm_pruner", {{"ratio", 0.4}}))
    CHECK((w == model::BlockWidths{6, 2, 304}));
}

TEST_CASE("one kind of unit alone in equal numbers, as an ordinary checkpoint", "[pipeline][structured]") {
  const test::TempDir dir;
  const auto widths = [&](const std::string& targets, double ratio) {
    test::run(shrink_job(dir / targets.substr(0, 3), "fisher_mask",
                         {{"targets", {targets}}, {"ratio", ratio}, {"uniform", true}}));
    CHECK_FALSE(test::read_json(dir / targets.substr(0, 3) / "config.json").contains("lcomp"));
    return model::Model::open(dir / targets.substr(0, 3)).architecture().widths;
  };
  for (const auto& w : widths("mlp.*", 0.3)) CHECK((w == model::BlockWidths{6, 2, 352}));
  for (const auto& w : widths("self_attn.*", 0.5)) CHECK((w == model::BlockWidths{3, 1, 512}));
}

TEST_CASE("a refit loses less of the outputs than factors", "[pipeline][structured]") {
  const test::TempDir dir;
  // Of the first block, whose attention keeps its two groups: the inputs are the same in both.
  const auto loss = [&](const std::string& compensate) {
    const Json more = {{"compensate", compensate}, {"ratio", 0.3}};
    for (const auto& row : test::run(shrink_job(dir / compensate, "llm_pruner", more)).operators) {
      if (row.kind == "down_proj") return *row.activation_error;
    }
    return 0.0;
  };
  const double refit = loss("refit"), scales = loss("scales");
  CHECK(refit > 0);
  CHECK(refit < 0.9 * scales);
  CHECK(scales < 1);
}

TEST_CASE("quantization follows on the narrower operators", "[pipeline][structured]") {
  const test::TempDir dir;
  // A group of heads has 96 channels.
  const Json grid = {{"bits", 4}, {"group_size", 32}};
  for (const char* method : {"rtn", "gptq", "awq"}) {
    CAPTURE(method);
    const Json first = shrink("fisher_mask", {{"ratio", 0.3}, {"channel_step", 32}});
    const auto report =
        test::run(test::job_with(dir / method, Json::array({first, test::pass(method, grid)})));
    const auto model = model::Model::open(dir / method);
    CHECK(block_weights(model) < 0.71 * block_weights(model::Model::open(test::bundled_model())));
    for (int64_t block = 0; block < model.size(); ++block) {
      for (const auto& op : model.architecture().operators(block)) CHECK(model.group_of(op) != nullptr);
    }
    // And once more on what was written.
    Json again = shrink_job(dir / (std::string(method) + " again"), "llm_pruner", {{"importance", "l1"}});
    again["model"] = (dir / method).string();
    CHECK_THAT(test::error_text([&] { test::run(again); }),
               Catch::Contains("operators whose units are deleted must be stored dense") &&
                   Catch::Contains("is pack-quantized"));
  }
}

TEST_CASE("a model of uneven blocks is pruned again", "[pipeline][structured]") {
  const test::TempDir dir;
  test::run(shrink_job(dir / "once", "fisher_mask", {{"ratio", 0.3}}));
  const auto once = model::Model::open(dir / "once");
  REQUIRE_FALSE(is_uniform(once));
  for (const auto& [method, more] : kVariants) {
    if (more.contains("uniform")) continue;
    CAPTURE(method, more.dump());
    Json job = shrink_job(dir / "twice", method, more);
    job["model"] = (dir / "once").string();
    test::run(job);
    CHECK(block_weights(model::Model::open(dir / "twice")) < 0.9 * block_weights(once));
    fs::remove_all(dir / "twice");
  }
}

TEST_CASE("protected blocks keep their units", "[pipeline][structured]") {
  const test::TempDir dir;
  test::run(
      shrink_job(dir / "out", "llm_pruner", {{"protect_first", 1}, {"protect_last", 2}, {"ratio", 0.5}}));
  const auto model = model::Model::open(test::bundled_model());
  const auto& dense = model.architecture();
  const auto widths = model::Model::open(dir / "out").architecture().widths;
  CHECK((widths[0] == dense.block_widths(0)));
  CHECK(widths[1].kv_heads == 1);
  CHECK(widths[1].intermediate == dense.intermediate_size / 2);
  CHECK((widths[2] == dense.block_widths(2)));
  CHECK((widths[3] == dense.block_widths(3)));
}

TEST_CASE("the bytes of structured pruning do not depend on threads, the cache or a kill",
          "[pipeline][structured][determinism][resume]") {
  const test::TempDir dir;
  for (const auto& [method, more] : {kVariants[0], kVariants[1], kVariants[5]}) {
    CAPTURE(method, more.dump());
    const std::string name = method + std::to_string(more.size());
    Json job = shrink_job(dir / name, method, more);
    test::Watcher watcher;
    test::run(job, watcher);
    const std::string expected = test::weights_hash(dir / name);
    job["threads"] = 3;
    job["calibration"]["cache"] = "disk";
    job["output"] = (dir / (name + "-threads")).string();
    test::run(job);
    CHECK(test::weights_hash(dir / (name + "-threads")) == expected);
    for (const int share : {1, 2, 3}) {
      const fs::path killed = dir / (name + "-killed" + std::to_string(share));
      const Json again = shrink_job(killed, method, more);
      REQUIRE(test::run_in_child(again, watcher.signs * share / 4).killed);
      test::run(again);
      CHECK(test::weights_hash(killed) == expected);
      CHECK(test::read_json(killed / "config.json") == test::read_json(dir / name / "config.json"));
    }
  }
}

TEST_CASE("settings of structured pruning that cannot work are refused with the reason",
          "[pipeline][structured]") {
  const test::TempDir dir;
  const auto error = [&](const Json& passes) {
    return test::error_text([&] { test::run(test::job_with(dir / "out", passes)); });
  };
  CHECK_THAT(error(Json::array({shrink("llm_pruner", {{"ignore", {"*k_proj"}}})})),
             Catch::Contains("attention units have a part in each of their operators") &&
                 Catch::Contains("'model.layers.0.self_attn.k_proj' is not"));
  CHECK_THAT(error(Json::array({shrink("llm_pruner", {{"ratio", 0.99}})})),
             Catch::EndsWith("with 0.99 it does not (a block would keep none)"));
  for (const double ratio : {0.99, 1.0}) {
    CHECK_THAT(error(Json::array({shrink("fisher_mask", {{"ratio", ratio}})})),
               Catch::Contains(
                   "ratio must leave one attention group and channel_step = 8 channels in every block") &&
                   !Catch::Contains("search_units"));
    CHECK_THAT(error(Json::array({shrink("llm_pruner", {{"ratio", ratio}})})),
               Catch::Contains("ratio must leave"));
  }
  CHECK_THAT(error(Json::array({shrink("fisher_mask", {{"channel_step", 1024}})})),
             Catch::Contains("channel_step must be at most the 512 channels of block 0; it is 1024"));
  CHECK_THAT(error(Json::array({shrink("llm_pruner", {{"ratio", 0.0001}})})),
             Catch::Contains("ratio must be large enough to delete a unit"));
  CHECK_THAT(
      error(Json::array({shrink("fisher_mask", {{"gradient_batch", 3}})})),
      Catch::Contains("[job: /passes/0] [fisher_mask] gradient_batch must leave at least two batches of "
                      "the 4 calibration samples; it is 3"));
  for (const char* allocation : {"owl", "budget"}) {
    CHECK_THAT(
        error(Json::array({shrink("fisher_mask"), shrink("sparsegpt", {{"allocation", allocation}})})),
        Catch::Contains("what is shared out over the operators are chosen in the model as it came; units of "
                        "q_proj are deleted by \"fisher_mask\" (/passes/0) before"));
  }
  for (const Json& targets : {Json{"layers.1.*"}, Json{"layers.1.mlp.*"}}) {
    CHECK_THAT(
        error(Json::array({shrink("fisher_mask", {{"uniform", true}, {"targets", targets}})})),
        Catch::Contains("uniform must be false unless the heads or the channels (or both) of all blocks"));
  }
  CHECK_THAT(error(Json::array({shrink("fisher_mask"), shrink("llm_pruner")})),
             Catch::Contains("are deleted by \"fisher_mask\" (/passes/0) before"));
  CHECK_THAT(error(Json::array({shrink("fisher_mask"), shrink("obd")})),
             Catch::Contains("are deleted by \"fisher_mask\" (/passes/0) before"));
  CHECK_THAT(
      error(Json::array({shrink("fisher_mask"), test::pass("rtn", {{"group_size", 64}})})),
      Catch::Contains("; 8 of its inputs") &&
          Catch::Contains(
              "of its inputs, or a multiple (channel_step), are left where units are deleted before") &&
          !Catch::Contains("[rtn] [rtn]"));
  CHECK_THAT(error(Json::array({shrink("fisher_mask", {{"latency_table", "table.json"}})})),
             Catch::Contains("latency_table must be empty unless budget is latency"));
  Json silent = shrink_job(dir / "out", "llm_pruner", {{"compensate", "none"}});
  silent.erase("calibration");
  CHECK_THAT(test::error_text([&] { test::run(silent); }),
             Catch::Contains("[job: /calibration/text] must name a text"));
  CHECK_THAT(error(Json::array({shrink("llm_pruner", {{"protect_first", 4}})})),
             Catch::Contains("no units are left that may be deleted"));
  CHECK_THAT(error(Json::array({test::pass("rtn"), shrink("fisher_mask")})),
             Catch::Contains("an operator must not be changed after it is quantized"));
  CHECK_THAT(error(Json::array({shrink("wanda"), shrink("fisher_mask")})),
             Catch::Contains("must keep what is 0 after \"wanda\""));
  CHECK_THAT(
      error(Json::array({shrink("llm_pruner", {{"overrides", {{{"match", {"*"}}, {"ratio", 0.5}}}}})})),
      Catch::Contains("must be as in the pass"));
}

TEST_CASE("strict: columns that no bounded factor makes up for end a run", "[pipeline][structured]") {
  const test::TempDir dir;
  const fs::path model = test::copy_of_model(dir);
  // Channels with the largest weights that say a thirtieth of what their twins say.
  test::edit_tensors(model, [](io::NamedTensors& tensors) {
    for (auto& [name, tensor] : tensors) {
      if (name.find(".mlp.") == std::string::npos) continue;
      const bool is_down = name.find("down_proj") != std::string::npos;
      const at::Tensor twins = tensor.chunk(2, is_down ? 1 : 0)[1];
      const double factor = is_down ? 1.0 / 3000 : name.find("up_proj") != std::string::npos ? 100 : 1;
      tensor.chunk(2, is_down ? 1 : 0)[0].copy_(twins * factor);
    }
  });
  Json job = shrink_job(dir / "out", "llm_pruner",
                        {{"importance", "l2"},
                         {"targets", "mlp.*"},
                         {"ratio", 0.5},
                         {"compensate", "scales"},
                         {"damping", 1e-6}});
  job["model"] = model.string();
  const auto report = test::run(job);
  CHECK(std::any_of(report.operators.begin(), report.operators.end(),
                    [](const auto& row) { return row.fell_back; }));
  job["output"] = (dir / "strict").string();
  job["strict"] = true;
  CHECK_THROWS_AS(test::run(job), NumericalError);
  CHECK_THAT(test::error_text([&] { test::run(job); }),
             Catch::Contains("[compensate] columns must be made up for; a factor left [-10, 10]"));
}

TEST_CASE("an export is dense, padded to one width, and computes the same",
          "[pipeline][structured][export]") {
  const test::TempDir dir;
  Observer silent;
  test::run(test::job_with(dir / "uneven", Json::array({shrink("fisher_mask", {{"ratio", 0.3}}),
                                                        test::pass("rtn", {{"group_size", 8}})})));
  CHECK_THAT(test::error_text([&] { pipeline::export_model(dir / "uneven", dir / "out", {}, silent); }),
             Catch::Contains("the blocks must have one width, or be padded to one (--pad-widths)"));
  CHECK_FALSE(fs::exists(dir / "out"));
  test::Watcher stopped;
  stopped.stops = [](int) { return true; };
  const auto broken = [&] {
    pipeline::export_model(dir / "uneven", dir / "out", {.pad_widths = true}, stopped);
  };
  CHECK_THROWS_AS(broken(), Interrupted);
  CHECK(test::error_text(broken) == "[export] the export was asked to stop");
  CHECK_FALSE(fs::exists(dir / "out"));
  const auto result = pipeline::export_model(dir / "uneven", dir / "out", {.pad_widths = true}, silent);
  const auto uneven = model::Model::open(dir / "uneven"), even = model::Model::open(dir / "out");
  CHECK(result.operators == 28);
  CHECK(result.decoded == 28);
  CHECK(result.padded > 0);
  CHECK(is_uniform(even));
  CHECK((even.architecture().widths[0] == uneven.architecture().widest()));
  const Json config = test::read_json(dir / "out" / "config.json");
  CHECK_FALSE(config.contains("lcomp"));
  CHECK_FALSE(config.contains("quantization_config"));
  CHECK(pipeline::verify(dir / "out", silent).passed);
  const std::vector<int64_t> ids = {5, 17, 300, 2, 44};
  const at::Tensor wanted = test::logits_of(uneven, ids), found = test::logits_of(even, ids);
  CHECK((wanted - found).abs().max().item<double>() < 2e-2 * wanted.abs().max().item<double>());
}

TEST_CASE("a latency table decides the widths, and its contents are part of the job",
          "[pipeline][structured]") {
  const test::TempDir dir;
  const auto table = [&](double attention, double mlp) {
    eval::LatencyTable out{{0, attention, 2 * attention}, {0, mlp, 2 * mlp}, {0, 256, 512}};
    io::write_file_atomic(dir / "table.json", eval::to_json(out));
  };
  const auto widths = [&](const std::string& name, const Json& more = Json::object()) {
    Json settings = {{"budget", "latency"}, {"latency_table", (dir / "table.json").string()}, {"ratio", 0.3}};
    settings.update(more);
    test::run(shrink_job(dir / name, "fisher_mask", settings));
    return model::Model::open(dir / name).architecture().widths;
  };
  const auto sum = [](const std::vector<model::BlockWidths>& blocks, auto member) {
    int64_t total = 0;
    for (const auto& w : blocks) total += w.*member;
    return total;
  };
  table(0.001, 1);
  const auto dear_mlp = widths("mlp");
  CHECK(sum(dear_mlp, &model::BlockWidths::kv_heads) == 8);
  CHECK(sum(dear_mlp, &model::BlockWidths::intermediate) <= 0.71 * 4 * 512);
  table(1, 0.001);
  const auto dear_attention = widths("attention");
  CHECK(sum(dear_attention, &model::BlockWidths::kv_heads) == 5);
  CHECK(sum(dear_attention, &model::BlockWidths::intermediate) == 4 * 512);
  // A run that was killed does not go on with another table.
  Json job =
      shrink_job(dir / "killed", "fisher_mask",
                 {{"budget", "latency"}, {"latency_table", (dir / "table.json").string()}, {"ratio", 0.3}});
  test::Watcher watcher;
  Json whole = job;
  whole["output"] = (dir / "whole").string();
  test::run(whole, watcher);
  REQUIRE(test::run_in_child(job, watcher.signs * 3 / 4).killed);
  table(0.001, 1);
  test::run(job);
  CHECK((model::Model::open(dir / "killed").architecture().widths == dear_mlp));
  table(1, 1);
  const auto uniform = widths("uniform", {{"uniform", true}});
  CHECK(std::all_of(uniform.begin(), uniform.end(), [&](const auto& w) { return w == uniform[0]; }));
  CHECK_THAT(test::error_text([&] {
               widths("none", {{"latency_table", ""}});
             }),
             Catch::Contains("latency_table must name a file for budget latency"));
  eval::LatencyTable wrong{{0, 1}, {0, 1}, {0, 512}};
  io::write_file_atomic(dir / "table.json", eval::to_json(wrong));
  CHECK_THAT(test::error_text([&] { widths("wrong"); }),
             Catch::Contains("must be that of blocks with 2 key-value heads and 512 channels") &&
                 Catch::Contains("is of 1 and 512"));
}
