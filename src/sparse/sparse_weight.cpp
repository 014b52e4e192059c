#include "lcomp/sparse/sparse_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
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

at::Tensor SparseWeight::apply(const at::Tensor& x) const {
  if (format_ == SparseFormat::kDense || x.size(0) > direct_tokens(format_)) return Weight::apply(x);
  return sparse_product(stored_, format_, x);
}

std::string SparseWeight::describe() const {
  const at::Tensor matrix = decode(stored_, format_);
  const auto zeros = static_cast<double>(matrix.numel() - matrix.count_nonzero().item<int64_t>());
  return fmt::format("{:.1f} % zeros, {} {}", 100 * zeros / static_cast<double>(matrix.numel()),
                     name_of(format_), dtype_name(matrix.scalar_type()));
}

void SparseWeight::save(TensorSink& sink, const std::string& name) const {
  for (const auto& [suffix, tensor] : stored_.parts) sink.add(name + ".weight" + suffix, tensor);
}

at::ScalarType SparseWeight::dtype() const {
  return stored_.parts.at(format_ == SparseFormat::kDense ? "" : "_values").scalar_type();
}

at::Tensor SparseWeight::kept() const {
  return decode(stored_, format_).ne(0);
}

at::Tensor kept_mask(const Weight& weight) {
  const auto* pruned = dynamic_cast<const SparseWeight*>(&weight);
  return pruned != nullptr ? pruned->kept() : at::Tensor();
}

WeightPtr replaced_matrix(const Weight& before, const at::Tensor& matrix) {
  const auto* pruned = dynamic_cast<const SparseWeight*>(&before);
  if (pruned == nullptr) return std::make_shared<DenseWeight>(matrix);
  const bool narrow = pruned->format() == SparseFormat::kTiledCsl;  // knows no float32
  return std::make_shared<SparseWeight>(matrix, narrow ? SparseFormat::kBitmask : pruned->format());
}

}  // namespace lcomp::sparse
