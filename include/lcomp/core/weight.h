#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>

namespace lcomp {

/// Receives the tensors that a weight is stored as.
class TensorSink {
 public:
  virtual ~TensorSink() = default;
  virtual void add(const std::string& name, const at::Tensor& tensor) = 0;

  /// A tensor of 8-bit floating-point numbers (OCP E4M3, without infinities), a type that LibTorch 1.13 does
  /// not have: `codes` are their bytes, uint8 or int8.
  virtual void add_float8_e4m3(const std::string& name, const at::Tensor& codes) = 0;
};

/// What the matrix of a linear operator has become: dense, quantized, sparse, factored, or a sum of such.
/// A weight is immutable. Shapes are `[out, in]`: y = x W^T.
class Weight {
 public:
  virtual ~Weight() = default;

  virtual int64_t out_features() const = 0;
  virtual int64_t in_features() const = 0;

  /// The matrix itself, float32 `[out, in]`.
  virtual at::Tensor dense() const = 0;

  /// x `[tokens, in]` -> x W^T `[tokens, out]`, float32. The default multiplies by `dense()`.
  virtual at::Tensor apply(const at::Tensor& x) const;

  /// Rows of the matrix, float32 `[count, in]`; ids: int64 `[count]` in [0, out). What an embedding looks up;
  /// kinds that can do it without the whole matrix override it.
  virtual at::Tensor rows(const at::Tensor& ids) const;

  /// Numbers that it is made of: the elements of the matrix, of a sparse one those that are kept, of a
  /// factored one those of its factors.
  virtual int64_t parameters() const { return out_features() * in_features(); }
  /// Multiply-adds of `apply` for a token. Where they are fewer than those of the matrix, models run `apply`
  /// instead of laying out the matrix.
  virtual int64_t macs_per_token() const { return out_features() * in_features(); }

  /// Whether `apply` rounds x first, so that it is another function than the product by `dense()`. Whoever
  /// runs the model must then call it, with the tokens of one sequence at a time: ranges may depend on them.
  virtual bool quantizes_input() const { return false; }

  /// Bytes that `save` stores, all parts counted (codes, scales, zero points).
  virtual int64_t bytes() const = 0;

  /// One line for people: "int4 symmetric, groups of 64".
  virtual std::string describe() const = 0;

  /// Adds the tensors that store this weight; their names begin with `name`, the operator's name
  /// ("model.layers.0.mlp.up_proj").
  virtual void save(TensorSink& sink, const std::string& name) const = 0;
};

using WeightPtr = std::shared_ptr<const Weight>;

/// The matrix as it is, in the dtype it was given in (float32, bfloat16, float16); saved as `<name>.weight`.
class DenseWeight final : public Weight {
 public:
  /// `weight` is a 2-D floating-point tensor `[out, in]`; it is shared, not copied.
  explicit DenseWeight(at::Tensor weight);

  int64_t out_features() const override;
  int64_t in_features() const override;
  at::Tensor dense() const override;
  at::Tensor rows(const at::Tensor& ids) const override;
  int64_t bytes() const override;
  std::string describe() const override;
  void save(TensorSink& sink, const std::string& name) const override;

  at::ScalarType dtype() const { return weight_.scalar_type(); }

 private:
  at::Tensor weight_;
};

}  // namespace lcomp
