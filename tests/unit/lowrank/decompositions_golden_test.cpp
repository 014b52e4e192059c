// The recorded tensor decompositions of the shared data.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/io/safetensors.h"
#include "lcomp/lowrank/kronecker.h"
#include "lcomp/lowrank/kronecker_sum_weight.h"
#include "lcomp/lowrank/morpheme_weight.h"
#include "lcomp/lowrank/tensor_train_weight.h"
#include "lcomp/lowrank/tucker.h"
#include "support/matrices.h"
#include "support/test_data.h"

using namespace lcomp::lowrank;
using lcomp::io::SafetensorsFile;
using lcomp::test::relative_difference;
using lcomp::test::shared_data;

namespace {

using Sizes = std::vector<int64_t>;

std::optional<SafetensorsFile> golden(const std::string& name) {
  const auto path = shared_data("golden/methods/" + name + ".safetensors");
  if (path) return SafetensorsFile(*path);
  WARN("skipped: no golden/methods/" << name << ".safetensors");
  return std::nullopt;
}

double number(const SafetensorsFile& file, const std::string& name) {
  return file.read(name).to(at::kDouble).item<double>();
}

Sizes integers(const at::Tensor& vector) {
  const at::Tensor v = vector.to(at::kLong).contiguous();
  return {v.data_ptr<int64_t>(), v.data_ptr<int64_t>() + v.numel()};
}

}  // namespace

TEST_CASE("Tucker decompositions are the recorded ones", "[lowrank][golden]") {
  const auto file = golden("tensor_decompositions");
  if (!file) return;
  const at::Tensor t = file->read("tensor");
  const Sizes ranks{3, 3, 3};
  const double norm = t.norm().item<double>();
  const Tucker by_hosvd = hosvd(t, ranks), sequential = st_hosvd(t, ranks);
  CHECK(relative_difference(by_hosvd.full(), file->read("hosvd.reconstruction")) < 1e-9);
  CHECK(by_hosvd.relative_error * norm == Approx(number(*file, "hosvd.error")).epsilon(1e-6));
  CHECK(relative_difference(sequential.full(), file->read("st_hosvd.reconstruction")) < 1e-9);
  CHECK(sequential.relative_error * norm == Approx(number(*file, "st_hosvd.error")).epsilon(1e-6));

  const Tucker iterated = hooi(t, ranks, {}, {.tolerance = 1e-15, .max_sweeps = 200});
  CHECK(relative_difference(iterated.full(), file->read("hooi.reconstruction")) < 1e-6);
  CHECK(iterated.relative_error * norm == Approx(number(*file, "hooi.error")).epsilon(1e-9));
  const at::Tensor errors = file->read("hooi.errors_per_sweep");
  for (int64_t i = 0; i < errors.size(0); ++i)
    CHECK(iterated.sweep_errors.at(static_cast<size_t>(i)) * norm ==
          Approx(errors[i].item<double>()).epsilon(1e-9));
}

TEST_CASE("tensor trains are the recorded ones", "[lowrank][golden]") {
  const auto file = golden("tensor_decompositions");
  if (!file) return;
  const at::Tensor t = file->read("tt.tensor");
  for (const std::string eps : {"0.01", "0.1", "0.3"}) {
    CAPTURE(eps);
    const TrainResult result = tt_svd(t, {.eps = std::stod(eps), .solver = lcomp::linalg::SvdSolver::kExact});
    const Sizes ranks = result.train.ranks();
    CHECK(Sizes(ranks.begin() + 1, ranks.end() - 1) == integers(file->read("tt.eps" + eps + ".ranks")));
    CHECK(relative_difference(result.train.full(), file->read("tt.eps" + eps + ".reconstruction")) < 1e-9);
    CHECK(result.relative_error == Approx(number(*file, "tt.eps" + eps + ".relative_error")).epsilon(1e-6));
  }
  CHECK(relative_difference(tt_svd(t, {.ranks = {2, 3, 2}}).train.full(),
                            file->read("tt.ranks_2_3_2.reconstruction")) < 1e-9);
}

TEST_CASE("TT-matrices and Kronecker sums are the recorded ones", "[lowrank][golden]") {
  const auto file = golden("tensor_decompositions"), problem = golden("problem");
  if (!file || !problem) return;
  const at::Tensor w = problem->read("w");
  const Sizes rows = integers(file->read("ttm.row_shape")), columns = integers(file->read("ttm.col_shape"));
  const at::Tensor dense = file->read("ttm.ranks_4_4.dense");
  CHECK(relative_difference(tt_matrix(w, rows, columns, {.ranks = {4}}).full(), dense) < 1e-9);

  TrainMatrix recorded{.cores = {}, .out = 48, .in = 64};
  for (const std::string k : {"0", "1", "2"}) recorded.cores.push_back(file->read("ttm.core" + k));
  CHECK(relative_difference(recorded.full(), dense) < 1e-12);
  const at::Tensor y = TensorTrainWeight(recorded, at::kFloat).apply(file->read("ttm.x").unsqueeze(0));
  CHECK(relative_difference(y.squeeze(0), file->read("ttm.y")) < 1e-5);

  const Sizes s = integers(file->read("kron.shape"));
  const KroneckerSum sum = kronecker_sum(w, {.m1 = s[0], .n1 = s[1], .m2 = s[2], .n2 = s[3]}, 3);
  CHECK(relative_difference(sum.full(), file->read("kron.rank3.dense")) < 1e-9);
  const auto svd = lcomp::linalg::truncated_svd(paired_digits(w, {s[0], s[2]}, {s[1], s[3]}));
  CHECK(relative_difference(at::tensor(svd.values, at::kDouble), file->read("kron.singular_values")) < 1e-9);
}

TEST_CASE("word2ketXS and MorphTE rows are the recorded ones", "[lowrank][golden]") {
  const auto file = golden("tensor_decompositions");
  if (!file) return;
  const at::Tensor leaf = file->read("word2ketxs.leaf").to(at::kFloat);
  CHECK(relative_difference(KroneckerSumWeight(64, 27, leaf).dense(), file->read("word2ketxs.dense_full")) <
        1e-5);
  CHECK(relative_difference(KroneckerSumWeight(50, 20, leaf).dense(),
                            file->read("word2ketxs.dense_cut_50x20")) < 1e-5);
  const MorphemeWeight words(file->read("morphte.tables").to(at::kFloat),
                             file->read("morphte.index").to(at::kInt), 20);
  CHECK(relative_difference(words.dense(), file->read("morphte.dense_cut_20")) < 1e-5);

  // word2ket: every word has vectors of its own, [word, rank, order, q]. As morphemes: table r has the
  // vectors of all words and slots, word w slot j being number w x order + j.
  const at::Tensor vectors = file->read("word2ket.vectors"), dense = file->read("word2ket.dense");
  const int64_t count = vectors.size(0), order = vectors.size(2);
  const at::Tensor tables = vectors.permute({1, 0, 2, 3}).flatten(1, 2).to(at::kFloat);
  const at::Tensor index = at::arange(count * order, at::kInt).reshape({count, order});
  CHECK(relative_difference(MorphemeWeight(tables, index, dense.size(1)).dense(), dense) < 1e-5);
}
