// The golden fixtures of the shared data: every case that the files hold is run.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "lcomp/io/safetensors.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/grid.h"
#include "lcomp/quant/rtn.h"
#include "support/matrices.h"
#include "support/test_data.h"

using namespace lcomp::quant;
using lcomp::io::SafetensorsFile;
using lcomp::test::relative_difference;
using lcomp::test::shared_data;

namespace {

/// The fixtures' names of the conventions. True when their codes and zero points are unsigned.
bool set_convention(QuantScheme& scheme, const std::string& name) {
  scheme.symmetric = name.rfind("sym_", 0) == 0;
  if (name == "asym_awq") scheme.asymmetric_convention = AsymmetricConvention::kRaw;
  if (name == "sym_full") scheme.symmetric_convention = SymmetricConvention::kFullRange;
  if (name == "sym_full_gptq") scheme.symmetric_convention = SymmetricConvention::kFullRangeGptq;
  if (name == "sym_restricted") scheme.symmetric_convention = SymmetricConvention::kRestricted;
  if (name == "sym_mid") scheme.symmetric_convention = SymmetricConvention::kMidRange;
  return name != "sym_restricted" && name != "sym_mid";
}

/// "<convention>.b<bits>.<granularity>" -> the scheme; `offset` is what unsigned codes are above signed ones.
QuantScheme scheme_of(const std::string& key, int64_t& offset) {
  const size_t first = key.find('.'), second = key.find('.', first + 1);
  QuantScheme scheme;
  scheme.bits = std::stoi(key.substr(first + 2, second - first - 2));
  offset = set_convention(scheme, key.substr(0, first)) ? int64_t{1} << (scheme.bits - 1) : 0;
  const std::string granularity = key.substr(second + 1);
  scheme.granularity = granularity == "tensor"    ? Granularity::kTensor
                       : granularity == "channel" ? Granularity::kChannel
                                                  : Granularity::kGroup;
  scheme.group_size = 16;
  return scheme;
}

/// Names before ".codes".
std::set<std::string> cases_of(const SafetensorsFile& file) {
  std::set<std::string> cases;
  for (const auto& info : file.tensors()) {
    const size_t end = info.name.rfind(".codes");
    if (end != std::string::npos) cases.insert(info.name.substr(0, end));
  }
  return cases;
}

/// Codes, scales and zero points against `<key>.codes` ...: integers exactly, scales to 1e-9.
void require_same(const QuantizedWeight& weight, const SafetensorsFile& file, const std::string& key,
                  int64_t offset) {
  const at::Tensor codes = file.read(key + ".codes").to(at::kLong) - offset;
  CHECK(weight.codes().to(at::kLong).equal(codes));
  const at::Tensor scale = file.read(key + ".scale").reshape(weight.scale().sizes());
  CHECK(weight.scale().scalar_type() == at::kDouble);
  CHECK(((weight.scale() - scale).abs() / scale).max().item<double>() < 1e-9);
  const at::Tensor zero = file.read(key + ".zero").to(at::kLong).reshape(weight.scale().sizes()) - offset;
  if (weight.zero().defined()) {
    CHECK(weight.zero().to(at::kLong).equal(zero));
  } else {
    CHECK(at::count_nonzero(zero).item<int64_t>() == 0);
  }
}

QuantScheme gptq_scheme(const nlohmann::json& run, int64_t& offset) {
  QuantScheme scheme;
  scheme.bits = run.at("bits");
  offset = set_convention(scheme, run.at("sch")) ? int64_t{1} << (scheme.bits - 1) : 0;
  scheme.granularity = run.contains("gs") ? Granularity::kGroup : Granularity::kChannel;
  scheme.group_size = run.value("gs", 1);
  return scheme;
}

GptqOptions gptq_options(const nlohmann::json& run) {
  GptqOptions options;
  options.block_size = run.value("block", 16);
  options.act_order = run.value("act", false) ? ActOrder::kActivation : ActOrder::kNone;
  options.static_groups = run.value("static", false);
  options.stale_groups = run.value("stale", false);
  options.store_group_index = true;
  return options;
}

/// A recorded number, to the precision it was stored in.
Approx number(const SafetensorsFile& file, const std::string& name) {
  const at::Tensor value = file.read(name);
  return Approx(value.item<double>()).epsilon(value.scalar_type() == at::kDouble ? 1e-9 : 1e-7);
}

void require_same_run(const GptqResult& result, const SafetensorsFile& file, const std::string& key,
                      int64_t offset) {
  require_same(result.weight, file, key, offset);
  CHECK(relative_difference(result.weight.dense(), file.read(key + ".dequant")) < 1e-6);
  const at::Tensor order = at::tensor(result.order, at::kLong);
  CHECK(order.equal(file.read(key + ".perm").to(at::kLong)));
  if (result.weight.group_index().defined()) {
    CHECK(result.weight.group_index().equal(file.read(key + ".g_idx")));
  }
  CHECK(result.damped_loss == number(file, key + ".loss_sum_e2"));
  CHECK(result.loss == number(file, key + ".loss_undamped"));
  CHECK(result.rtn_loss == number(file, key + ".rtn_loss_undamped"));
  CHECK_FALSE(result.fell_back);
}

}  // namespace

TEST_CASE("round to nearest gives the recorded codes under every convention", "[quant][rtn][golden]") {
  const auto path = shared_data("golden/methods/rtn.safetensors");
  if (!path) {
    WARN("skipped: no golden/methods/rtn.safetensors");
    return;
  }
  const SafetensorsFile file(*path);
  const at::Tensor weight = file.read("w");
  const auto cases = cases_of(file);
  REQUIRE_FALSE(cases.empty());
  for (const std::string& key : cases) {
    CAPTURE(key);
    int64_t offset = 0;
    const QuantizedWeight rounded = rtn(weight, scheme_of(key, offset));
    require_same(rounded, file, key, offset);
    if (file.contains(key + ".dequant")) {
      CHECK(relative_difference(rounded.dense(), file.read(key + ".dequant")) < 1e-7);
    }
  }
}

TEST_CASE("the range search takes the recorded step of the grid", "[quant][rtn][golden]") {
  const auto path = shared_data("golden/methods/mse_grid.safetensors");
  if (!path) {
    WARN("skipped: no golden/methods/mse_grid.safetensors");
    return;
  }
  const SafetensorsFile file(*path);
  const at::Tensor weight = file.read("w");
  for (const std::string& key : cases_of(file)) {
    CAPTURE(key);
    int64_t offset = 0;
    QuantScheme scheme = scheme_of(key, offset);
    scheme.range = RangeRule::kMse;
    const QuantizedWeight rounded = rtn(weight, scheme);
    require_same(rounded, file, key, offset);
    const at::Tensor off =
        (dequantize(rounded.codes(), {rounded.scale(), rounded.zero()}) - weight).abs().pow(2.4);
    const at::Tensor error = off.reshape({weight.size(0), rounded.scale().size(1), -1}).sum(2);
    CHECK(relative_difference(error, file.read(key + ".error").reshape(error.sizes())) < 1e-9);
  }
}

TEST_CASE("GPTQ gives the recorded codes, orders and losses", "[quant][gptq][golden]") {
  const auto path = shared_data("golden/methods/gptq.safetensors");
  const auto problem_path = shared_data("golden/methods/problem.safetensors");
  if (!path || !problem_path) {
    WARN("skipped: no golden/methods/gptq.safetensors");
    return;
  }
  const SafetensorsFile file(*path), problem(*problem_path);
  const at::Tensor weight = problem.read("w");
  const nlohmann::json runs = nlohmann::json::parse(file.metadata().at("options"));
  for (const auto& [key, run] : runs.items()) {
    CAPTURE(key);
    const at::Tensor x = run.contains("dead") ? file.read("x_dead") : problem.read("x");
    int64_t offset = 0;
    const QuantScheme scheme = gptq_scheme(run, offset);
    GptqResult result = gptq(weight, 2 * at::matmul(x.t(), x), scheme, gptq_options(run));
    if (run.contains("dead")) {
      // The fixture's baseline is that of inputs without the dead one.
      const at::Tensor full = problem.read("x");
      result.rtn_loss = gptq(weight, 2 * at::matmul(full.t(), full), scheme, gptq_options(run)).rtn_loss;
      CHECK(result.dead_columns == 1);
    }
    require_same_run(result, file, key, offset);
    CHECK(result.rung == lcomp::linalg::Rung::kPlain);
  }
}
