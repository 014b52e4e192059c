#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string_view>

#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"
#include "lcomp/quant/codebook_weight.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::quant {

/// How the centers of a row are found.
enum class CodebookSolver {
  kExact,  ///< the optimum, by dynamic programming
  kLloyd,  ///< Lloyd's iterations from quantiles and from an even grid, the better of the two
};

/// What weighs the errors of a row.
enum class CodebookWeighting {
  kGradients,  ///< squared gradients of the loss
  kNone,       ///< every entry alike: plain k-means
};

struct SqueezeLlmOptions {
  int64_t bits = 4;
  CodebookWeighting weighting = CodebookWeighting::kGradients;
  CodebookSolver solver = CodebookSolver::kExact;
  int64_t iterations = 50;
  double sensitive = 0;
  double outliers = 0;
  double outlier_range = 0;
  ScaleDtype codebook_dtype = ScaleDtype::kFloat16;

  void visit(FieldVisitor& v);
  /// Throws InvalidArgument("[squeezellm] ...") unless every field lies in its range.
  void validate(std::string_view name = {}) const;
  /// Whether the squared gradients are read at all.
  bool reads_gradients() const { return weighting == CodebookWeighting::kGradients || sensitive > 0; }
  /// Entries kept beside the codes of a matrix of `count`; with `outlier_range` not known beforehand, and
  /// then counted as if it were `outliers`.
  int64_t planned_entries(int64_t count) const;
};

struct SqueezeLlmResult {
  CodebookWeight weight;
  double loss = 0;       ///< sum of F (w - w^)^2 over the entries that have codes, all rows
  double grid_loss = 0;  ///< the same of an even grid per row
};

/// SqueezeLLM (Kim et al. 2023, arXiv 2306.07629, sections 4.1 and 4.2): a code book of 2^b values per row,
/// chosen by k-means weighted with the diagonal of the Fisher information, so that
///
///     sum_j F_rj (w_rj - codebook[r, code_rj])^2
///
/// is least per row r; and, when asked for, a few entries kept beside the codes: the most sensitive ones, and
/// outliers, which would stretch the code books.
///
/// weight: [out, in], floating point. fisher: [out, in], >= 0, the sum over samples of squared gradients;
/// only ratios within a row matter. May be undefined when `options.reads_gradients()` is false.
///
/// Centers are rounded to the stored type, and codes are those of the nearest center after that. Beside the
/// optimum an even grid between a row's extremes is tried, so that the result is never worse than that grid
/// stored the same way. A kept entry decodes to the center nearest to 0, so what is stored for it is its
/// difference from that center.
///
/// Cost O(2^b in log in) per row (exact), rows in parallel; the same at any number of threads. Throws
/// InvalidArgument for shapes or values that do not fit, NumericalError when a center overflows the stored
/// type. Use it for 3 and 4 bits where a decoder for code books is at hand; a uniform grid by GPTQ is what
/// other programs read.
SqueezeLlmResult squeezellm(const at::Tensor& weight, const at::Tensor& fisher,
                            const SqueezeLlmOptions& options, ThreadPool* pool = nullptr);

/// T = max(|q1 - r (q3 - q1)|, |q3 + r (q3 - q1)|) with the quartiles q1, q3 of all entries (linear
/// interpolation): entries of at least this magnitude are outliers.
double outlier_threshold(const at::Tensor& weight, double range);

/// The entries of `weight` that are kept beside the codes, bool [out, in]: those whose F exceeds the k-th
/// largest, k = floor(sensitive out in); and those with |w| >= T, where T follows from `outlier_range`, or,
/// when that is 0, is the k-th largest magnitude with k = floor(outliers out in).
at::Tensor kept_entries(const at::Tensor& weight, const at::Tensor& fisher, const SqueezeLlmOptions& options);

}  // namespace lcomp::quant

namespace lcomp {

template <>
struct EnumNames<quant::CodebookSolver> {
  static constexpr std::array<std::string_view, 2> names = {"exact", "lloyd"};
};
template <>
struct EnumNames<quant::CodebookWeighting> {
  static constexpr std::array<std::string_view, 2> names = {"gradients", "none"};
};

}  // namespace lcomp
