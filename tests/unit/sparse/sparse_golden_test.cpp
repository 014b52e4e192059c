// The recorded masks and prunings of the shared data.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/io/safetensors.h"
#include "lcomp/sparse/formats.h"
#include "lcomp/sparse/recover.h"
#include "lcomp/sparse/refit.h"
#include "lcomp/sparse/saliency.h"
#include "lcomp/sparse/sparsegpt.h"
#include "reference/obs_reference.h"
#include "support/matrices.h"
#include "support/test_data.h"

using namespace lcomp::sparse;
using lcomp::io::SafetensorsFile;
using lcomp::test::relative_difference;
using lcomp::test::shared_data;

namespace {

std::optional<SafetensorsFile> golden(const std::string& name) {
  const auto path = shared_data("golden/methods/" + name + ".safetensors");
  if (path) return SafetensorsFile(*path);
  WARN("skipped: no golden/methods/" << name << ".safetensors");
  return std::nullopt;
}

Sparsity share(double sparsity, Scope scope) {
  return {.sparsity = sparsity, .scope = scope};
}

Sparsity n_of_m(const std::string& pattern) {
  return {.pattern = pattern};
}

void require_removed(const at::Tensor& scores, const Sparsity& sparsity, const SafetensorsFile& file,
                     const std::string& key) {
  CAPTURE(key);
  CHECK(select_kept(scores, sparsity).logical_not().equal(file.read(key + ".pruned")));
}

}  // namespace

TEST_CASE("saliencies and masks are the recorded ones", "[sparse][golden]") {
  const auto problem = golden("problem"), masks = golden("masks");
  if (!problem || !masks) return;
  const at::Tensor w = problem->read("w"), h = problem->read("gram").diagonal() / 4;
  const at::Tensor scores = wanda(w, h), relative = relative_importance(w, h);
  CHECK(relative_difference(scores, masks->read("wanda.score")) < 1e-12);
  CHECK(relative_difference(relative, masks->read("ria.score")) < 1e-12);
  require_removed(scores, share(0.5, Scope::kRow), *masks, "wanda.s50");
  require_removed(scores, share(0.6, Scope::kRow), *masks, "wanda.s60");
  require_removed(scores, n_of_m("2:4"), *masks, "wanda.nm_2_4");
  require_removed(scores, n_of_m("1:4"), *masks, "wanda.nm_1_4");
  require_removed(magnitude(w), n_of_m("2:4"), *masks, "magnitude.nm_2_4");
  require_removed(magnitude(w), share(0.5, Scope::kRow), *masks, "magnitude.row_s50");
  require_removed(magnitude(w), share(0.5, Scope::kTensor), *masks, "magnitude.s50_exact");
  require_removed(relative, share(0.5, Scope::kRow), *masks, "ria.row_s50");
  require_removed(relative, share(0.5, Scope::kTensor), *masks, "ria.s50_layer");
  CHECK(recovered(scores, select_kept(scores, n_of_m("2:4")), {.recover = 0.25})
            .equal(masks->read("wrp.alpha025.recovered")));
}

TEST_CASE("the 2:4 codes are the recorded ones", "[sparse][golden]") {
  const auto masks = golden("masks");
  if (!masks) return;
  const SparseTensors stored = encode(masks->read("semi24.dense").to(at::kFloat), SparseFormat::kTwoOfFour);
  CHECK(stored.parts.at("_positions").equal(masks->read("semi24.meta_int16")));
  CHECK(stored.parts.at("_values").equal(masks->read("semi24.values").to(at::kFloat)));
}

TEST_CASE("SparseGPT prunes as recorded", "[sparse][golden]") {
  const auto problem = golden("problem"), runs = golden("sparsegpt");
  if (!problem || !runs) return;
  const at::Tensor w = problem->read("w"), gram = problem->read("gram");
  const lcomp::quant::QuantScheme four_bits{.symmetric = false,
                                            .granularity = lcomp::quant::Granularity::kChannel};
  struct Case {
    std::string key;
    Sparsity sparsity;
    int64_t block = 16;
    const lcomp::quant::QuantScheme* scheme = nullptr;
  };
  const Sparsity half = share(0.5, Scope::kTensor);
  for (const Case& c :
       {Case{"nm_1_4", n_of_m("1:4")}, Case{"nm_2_4", n_of_m("2:4")}, Case{"nm_4_8", n_of_m("4:8")},
        Case{"s50_exact", half}, Case{"s50_block64", half, 64}, Case{"s50_b4", half, 16, &four_bits},
        Case{"nm_2_4_b4", n_of_m("2:4"), 16, &four_bits}}) {
    CAPTURE(c.key);
    const SparseGptResult result =
        sparsegpt(w, gram, c.sparsity, {.block_size = c.block}, c.scheme, at::kDouble);
    CHECK(result.kept.logical_not().equal(runs->read(c.key + ".pruned")));
    CHECK(relative_difference(result.weight, runs->read(c.key + ".w")) < 1e-6);
    CHECK(result.damped_loss == Approx(4 * runs->read(c.key + ".loss").item<double>()).epsilon(1e-9));
    CHECK(result.loss == Approx(runs->read(c.key + ".E").to(at::kDouble).item<double>()).epsilon(1e-6));
    CHECK_FALSE(result.fell_back);
  }
  const RefitResult better = refit(w, gram, {}, runs->read("nm_2_4.pruned").logical_not());
  CHECK(relative_difference(better.weight, runs->read("nm_2_4.refit_w")) < 1e-8);
}

TEST_CASE("optimal brain damage and surgeon are the recorded ones", "[sparse][golden]") {
  const auto file = golden("obs_obd");
  if (!file) return;
  const at::Tensor w = file->read("w"), h = file->read("hessian");
  CHECK(relative_difference(optimal_brain_damage(w.unsqueeze(0), h.diagonal())[0],
                            file->read("obd.saliency")) < 1e-12);
  const auto removed =
      lcomp::reference::obs(lcomp::test::to_eigen(w.unsqueeze(1)), lcomp::test::to_eigen(h), 8);
  const at::Tensor order = file->read("obs.order").to(at::kLong), losses = file->read("obs.losses");
  for (int k = 0; k < 8; ++k) {
    CHECK(removed.order[static_cast<size_t>(k)] == order[k].item<int64_t>());
    CHECK(removed.losses[static_cast<size_t>(k)] == Approx(losses[k].item<double>()).epsilon(1e-9));
  }
  // What surgery leaves is the least squares of its mask: refit says the same.
  at::Tensor kept = at::ones({1, 16}, at::kBool);
  for (const auto gone : removed.order) kept[0][gone] = false;
  const at::Tensor fitted = refit(w.unsqueeze(0), h, {}, kept).weight[0];
  for (int64_t j = 0; j < 16; ++j) CHECK(fitted[j].item<double>() == Approx(removed.weight[j]).margin(1e-9));
}
