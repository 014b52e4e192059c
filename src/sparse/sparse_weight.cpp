#include "lcomp/sparse/sparse_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lcomp/core/sum_weight.h"
#include "sparse/products.h"

namespace lcomp::sparse {

SparseWeight::SparseWeight(const at::Tensor& matrix, SparseFormat format)
    : stored_(encode(matrix, format)), format_(format) {}

SparseWeight SparseWeight::from_stored(SparseTensors stored, SparseFormat format, const std::string& name) {
  for (auto& [suffix, tensor] : stored.parts) tensor = tensor.contiguous();
  const auto shape = stored.parts.find("_shape");
  if (shape == stored.parts.end() || shape->second.scalar_type() != at::kLong || shape->second.numel() != 2)
    throw CorruptFile(name + ".weight_shape", "must be int64 [2]; it is not");
  stored.out = shape->second.data_ptr<int64_t>()[0];
  stored.in = shape->second.data_ptr<int64_t>()[1];
  check_stored(stored, format, name);
  return {std::move(stored), format};
}

at::Tensor SparseWeight::dense() const {
  return decode(stored_, format_).to(at::kFloat);
}

at::Tensor SparseWeight::apply(const at::Tensor& x, ThreadPool* pool) const {
  if (format_ == SparseFormat::kDense || x.size(0) > direct_tokens(format_)) return Weight::apply(x);
  return sparse_product(stored_, format_, x, pool);
}

int64_t SparseWeight::parameters() const {
  return kept().sum().item<int64_t>();
}

std::string SparseWeight::describe() const {
  const at::Tensor matrix = decode(stored_, format_);
  const auto zeros = static_cast<double>(matrix.numel() - matrix.count_nonzero().item<int64_t>());
  return fmt::format("{:.1f} % zeros, {} {}", 100 * zeros / static_cast<double>(matrix.numel()),
                     name_of(format_), dtype_name(matrix.scalar_type()));
}

void SparseWeight::save(TensorSink& sink, const std::string& name) const {
  for (const auto& [suffix, tensor] : stored_.parts)
    sink.add(fmt::format("{}.weight{}", name, suffix), tensor);
}

at::ScalarType SparseWeight::dtype() const {
  return stored_.parts.at(format_ == SparseFormat::kDense ? "" : "_values").scalar_type();
}

at::Tensor SparseWeight::kept() const {
  return decode(stored_, format_).ne(0);
}

namespace {

/// The sparse parts of a weight: itself, or those of a sum; none when anything else is among them.
std::vector<const SparseWeight*> sparse_parts(const Weight& weight) {
  if (const auto* pruned = dynamic_cast<const SparseWeight*>(&weight)) return {pruned};
  const auto* sum = dynamic_cast<const SumWeight*>(&weight);
  if (sum == nullptr) return {};
  std::vector<const SparseWeight*> parts;
  for (const WeightPtr& part : sum->parts()) {
    const auto* pruned = dynamic_cast<const SparseWeight*>(part.get());
    if (pruned == nullptr) return {};
    parts.push_back(pruned);
  }
  return parts;
}

}  // namespace

at::Tensor kept_mask(const Weight& weight) {
  at::Tensor kept;
  for (const SparseWeight* part : sparse_parts(weight))
    kept = kept.defined() ? kept.logical_or(part->kept()) : part->kept();
  return kept;
}

WeightPtr replaced_matrix(const Weight& before, const at::Tensor& matrix) {
  const auto parts = sparse_parts(before);
  if (parts.empty()) return std::make_shared<DenseWeight>(matrix);
  std::vector<WeightPtr> replaced;
  for (const SparseWeight* part : parts) {
    const bool wide = part->format() == SparseFormat::kTiledCsl && matrix.scalar_type() == at::kFloat;
    const SparseFormat format = wide ? SparseFormat::kBitmask : part->format();
    replaced.push_back(
        std::make_shared<SparseWeight>(parts.size() == 1 ? matrix : matrix * part->kept(), format));
  }
  if (replaced.size() == 1) return replaced.front();
  return std::make_shared<SumWeight>(std::move(replaced));
}

std::optional<at::ScalarType> matrix_type(const Weight& weight) {
  if (const auto* dense = dynamic_cast<const DenseWeight*>(&weight)) return dense->dtype();
  const auto parts = sparse_parts(weight);
  return parts.empty() ? std::nullopt : std::optional(parts.front()->dtype());
}

}  // namespace lcomp::sparse
