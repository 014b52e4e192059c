// Chains of passes, changed norms and biases in the output, and the order of passes.
#include <ATen/ATen.h>

#include "lcomp/core/error.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/io/safetensors_writer.h"
#include "lcomp/model/fold.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/pipeline/planner.h"
#include "pipeline/job_runs.h"
#include "pipeline/output_record.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp;
using namespace lcomp::pipeline;
using test::Json;

namespace {

struct DoubleOptions {
  void visit(FieldVisitor& v) { v.field("factor", factor, {0.1, 10}, "what inputs are divided by"); }
  double factor = 2;
};

/// Divides every group's input by a ramp around `factor`.
class DoublePass final : public Pass {
 public:
  std::string name() const override { return "ramp"; }
  calib::Needs needs() const override { return {.second_moment = true}; }
  bool keeps_function() const override { return true; }
  void compress(model::Block& block, size_t group, const calib::InputStats&,
                PassContext& context) const override {
    const auto* options = context.settings(block.ops()[block.groups()[group].operators[0]].info.name);
    if (options == nullptr) return;
    const double factor =
        dynamic_cast<const PassOptionsOf<DoubleOptions>&>(*options).get<DoubleOptions>().factor;
    const at::Tensor rows = model::absorber_rows(block, group);
    model::fold_input_scale(block, group, factor * (1 + 0.1 * rows.remainder(7).to(at::kDouble)));
  }
};

/// Keeps the second moments that it is shown, by block and group.
class SpyPass final : public Pass {
 public:
  explicit SpyPass(std::vector<at::Tensor>* seen) : seen_(seen) {}
  std::string name() const override { return "spy"; }
  calib::Needs needs() const override { return {.second_moment = true}; }
  void compress(model::Block&, size_t, const calib::InputStats& stats, PassContext&) const override {
    seen_->push_back(stats.second_moment);
  }

 private:
  std::vector<at::Tensor>* seen_;
};

MethodInfo ramp_method(std::vector<at::Tensor>* seen = nullptr) {
  MethodInfo info;
  info.name = "ramp";
  info.summary = "scales";
  info.needs_calibration = true;
  info.default_options = [] { return std::make_unique<PassOptionsOf<DoubleOptions>>(); };
  info.plan_weight = [](const PassOptions&, const PlannedOperator& op) {
    return PlannedWeight{"scaled",
                         op.out_features * op.in_features * static_cast<int64_t>(c10::elementSize(op.dtype))};
  };
  info.effect = [](const PassOptions&) { return Effect{.transforms = true, .quantizes = false}; };
  info.make_passes = [seen](const PassOptions&) {
    PassChain chain = chain_of(std::make_unique<DoublePass>());
    if (seen != nullptr) chain.push_back(std::make_unique<SpyPass>(seen));
    return chain;
  };
  return info;
}

MethodTable methods_with_ramp(std::vector<at::Tensor>* seen = nullptr) {
  MethodTable table = builtin_methods();
  table.add(ramp_method(seen));
  return table;
}

RunReport run_with_ramp(const Json& job, std::vector<at::Tensor>* seen = nullptr) {
  const MethodTable methods = methods_with_ramp(seen);
  Observer silent;
  return pipeline::run(parse_job(job.dump(), "job", methods), methods, silent);
}

const std::string kNothing = "nothing was thrown";

std::string order_error(const Json& passes) {
  const MethodTable methods = methods_with_ramp();
  const Json job = test::job_with("nowhere", passes);
  return test::error_text([&] { plan(parse_job(job.dump(), "job", methods), methods); });
}

}  // namespace

TEST_CASE("norms that a pass changed are stored, verified and recorded", "[pipeline][transform]") {
  const test::TempDir dir;
  const Json ramp = {{"method", "ramp"}};
  const RunReport report = run_with_ramp(test::job_with(dir / "out", Json::array({ramp})));
  REQUIRE(report.verification->passed);

  const auto source = model::Model::open(test::bundled_model());
  const auto written = model::Model::open(dir / "out");
  REQUIRE_FALSE(written.quantization());
  for (const std::string& name : source.checkpoint().names())
    REQUIRE(written.checkpoint().info(name).dtype == source.checkpoint().info(name).dtype);
  const std::string norm = "model.layers.1.input_layernorm.weight";
  const at::Tensor divided = source.read_finite(norm).to(at::kFloat) /
                             (2 * (1 + 0.1 * at::arange(source.architecture().hidden_size).remainder(7)));
  REQUIRE(test::relative_difference(written.read_finite(norm), divided) < 0x1p-8);

  const Json record = test::read_json(dir / "out" / OutputRecord::kFileName);
  REQUIRE(record["changed"].size() == 8);
  REQUIRE(record["decoded"].size() == 28);
  REQUIRE_FALSE(record["copied"].contains(norm));
}

TEST_CASE("a changed norm that was tampered with is found", "[pipeline][transform]") {
  const test::TempDir dir;
  run_with_ramp(test::job_with(dir / "out", Json::array({Json{{"method", "ramp"}}})));
  io::NamedTensors tensors;
  {
    const io::SafetensorsFile file(dir / "out" / "model.safetensors");
    for (const auto& info : file.tensors()) tensors.emplace_back(info.name, file.read(info.name).clone());
  }
  for (auto& [name, tensor] : tensors) {
    if (name == "model.layers.0.input_layernorm.weight") tensor[0] = 7;
  }
  const io::FileRecord changed = io::write_safetensors(dir / "out" / "model.safetensors", tensors);
  const auto path = dir / "out" / OutputRecord::kFileName;
  OutputRecord record = OutputRecord::from_json(io::read_file(path), path.string());
  for (io::FileRecord& file : record.files) {
    if (file.name == changed.name) file = changed;
  }
  test::write_text(path, record.to_json());
  Observer silent;
  REQUIRE(pipeline::verify(dir / "out", silent).message ==
          "the tensor 'model.layers.0.input_layernorm.weight' differs from what was computed");
}

TEST_CASE("a run with changed norms continues after an interruption and ends in the same bytes",
          "[pipeline][transform]") {
  const test::TempDir dir;
  const auto job = [&](const char* name) {
    return test::job_with(dir / name, Json::array({Json{{"method", "ramp"}}, test::pass("rtn")}));
  };
  run_with_ramp(job("whole"));
  const MethodTable methods = methods_with_ramp();
  test::Watcher watcher;
  watcher.stops = [](int sign) { return sign >= 20; };
  REQUIRE_THROWS_AS(pipeline::run(parse_job(job("parts").dump(), "job", methods), methods, watcher),
                    Interrupted);
  const RunReport report = run_with_ramp(job("parts"));
  REQUIRE(report.blocks.front().resumed);
  REQUIRE(report.verification->passed);
  REQUIRE(test::weights_hash(dir / "parts") == test::weights_hash(dir / "whole"));
}

TEST_CASE("statistics behind a transform follow by algebra, and equal those taken again",
          "[pipeline][transform]") {
  const test::TempDir dir;
  std::vector<at::Tensor> derived, taken;
  run_with_ramp(test::job_with(dir / "a", Json::array({Json{{"method", "ramp"}}})), &derived);
  // The same folds without the spy, then the statistics of the folded model itself.
  run_with_ramp(test::job_with(dir / "b", Json::array({Json{{"method", "ramp"}}})));
  Json again = test::job_with(dir / "c", Json::array({Json{{"method", "ramp"}, {"factor", 1}}}));
  again["model"] = (dir / "b").string();
  const MethodTable methods = [&] {
    MethodTable table;
    MethodInfo spy = ramp_method();
    spy.make_passes = [&](const PassOptions&) { return chain_of(std::make_unique<SpyPass>(&taken)); };
    table.add(spy);
    return table;
  }();
  Observer silent;
  pipeline::run(parse_job(again.dump(), "job", methods), methods, silent);
  REQUIRE(derived.size() == 16);
  REQUIRE(taken.size() == derived.size());
  // The folded matrices were rounded to bfloat16 on the way to disk, so later groups agree to that.
  for (size_t i = 0; i < 4; ++i) CHECK(test::relative_difference(derived[i], taken[i]) < 1e-2);
  CHECK(test::relative_difference(derived[0], taken[0]) < 1e-5);
}

TEST_CASE("an operator is not changed after it was quantized", "[pipeline][order]") {
  CHECK(order_error(Json::array({test::pass("rtn", {{"targets", "v_proj"}}), test::pass("gptq")})) ==
        "[job: /passes/1] an operator must not be changed after it is quantized; v_proj is quantized by "
        "\"rtn\" "
        "(/passes/0)");
  CHECK(order_error(Json::array(
            {test::pass("rtn", {{"targets", "v_proj"}}), Json{{"method", "ramp"}, {"targets", "o_proj"}}})) ==
        "[job: /passes/1] an operator must not be changed after it is quantized; v_proj is quantized by "
        "\"rtn\" "
        "(/passes/0), and the scale of what o_proj reads goes into its rows");
  CHECK(order_error(Json::array({test::pass("rtn", {{"targets", "up_proj"}}),
                                 test::pass("rtn", {{"targets", "down_proj"}})})) == kNothing);
  CHECK(order_error(Json::array({Json{{"method", "ramp"}}, Json{{"method", "ramp"}}, test::pass("rtn")})) ==
        kNothing);
}

TEST_CASE("operators that read one input are transformed together", "[pipeline][order]") {
  CHECK(order_error(Json::array({Json{{"method", "ramp"}, {"ignore", "k_proj"}}})) ==
        "[job: /passes/0] a scale of what q_proj, v_proj reads changes all that reads it; k_proj must be "
        "transformed in the same pass, or none of them");
  CHECK(order_error(Json::array({Json{{"method", "ramp"}, {"ignore", "o_proj"}}})) == kNothing);
}

TEST_CASE("gradients are those of the model as it came: no transform may go before",
          "[pipeline][transform]") {
  const Json squeezellm = {{"method", "squeezellm"}}, ramp = {{"method", "ramp"}};
  CHECK_THAT(order_error(Json::array({ramp, squeezellm})),
             Catch::Contains("gradients are taken before any pass, by the weights of the model as it is; "
                             "q_proj is transformed by \"ramp\" (/passes/0) before"));
  // The scale of what o_proj reads is in the rows of v_proj.
  const Json of_o = {{"method", "ramp"}, {"targets", "o_proj"}};
  CHECK_THAT(order_error(Json::array({of_o, squeezellm})), Catch::Contains("v_proj is transformed by"));
  const Json others = {{"method", "squeezellm"}, {"ignore", {"o_proj", "v_proj"}}};
  CHECK(order_error(Json::array({of_o, others})) == kNothing);
  const Json plain = {{"method", "squeezellm"}, {"weighting", "none"}};
  CHECK(order_error(Json::array({ramp, plain})) == kNothing);
}
