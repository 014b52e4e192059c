#include "pipeline/compare_report.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/core/weight_error.h"
#include "lcomp/sparse/sparsity.h"

namespace lcomp::pipeline {
namespace {

using Rows = std::vector<const OperatorRow*>;

/// Sums in float64, whose order may differ between processors.
constexpr double kTolerance = 1e-9;

/// The N:M pattern that a pass leaves in all operators it works on. Recovered weights are beside the pattern,
/// and an override may set another one.
std::optional<sparse::NofM> pattern_of(const io::JsonView& pass) {
  const auto pattern = pass.find("pattern");
  if (!pattern || pass.find("recover_as")) return std::nullopt;
  const auto overrides = pass.find("overrides");
  if (overrides && overrides->value().dump().find("\"pattern\"") != std::string::npos) return std::nullopt;
  try {
    return sparse::Sparsity{.pattern = pattern->text()}.n_of_m(pattern->place());
  } catch (const InvalidArgument& error) {
    throw CorruptFile(error);
  }
}

/// By pass of the job.
std::vector<std::optional<sparse::NofM>> patterns_of(const std::string& job_json) {
  const io::Json job = io::parse_json(job_json, "report.json: /job");
  std::vector<std::optional<sparse::NofM>> patterns;
  if (const auto passes = io::JsonView(job, "report.json: /job").find("passes")) {
    for (const io::JsonView& pass : passes->elements()) patterns.push_back(pattern_of(pass));
  }
  return patterns;
}

bool keeps(const at::Tensor& matrix, const sparse::NofM& pattern) {
  const int64_t whole = matrix.size(1) / pattern.of * pattern.of;
  const at::Tensor kept = matrix.narrow(1, 0, whole).ne(0).reshape({matrix.size(0), -1, pattern.of}).sum(2);
  return kept.le(pattern.kept).all().item<bool>();
}

/// A sum of a sparse part and others has the zeros in that part only.
bool is_plainly_sparse(const OperatorRow& row) {
  return row.scheme.find("% zeros") != std::string::npos && row.scheme.find(" + ") == std::string::npos;
}

/// Half a unit in the last place of 1: what rounding a whole matrix to the type may add to a relative error.
double rounding_of(at::ScalarType type) {
  return type == at::kBFloat16 ? 0x1p-8 : type == at::kHalf ? 0x1p-11 : 0x1p-23;
}

/// What is stored of one operator beside the rows of the report on it.
class ReportedOperator {
 public:
  ReportedOperator(const Rows& rows, WeightPtr weight)
      : rows_(rows), weight_(std::move(weight)), matrix_(weight_->dense()) {}

  std::string compare_storage() const {
    const OperatorRow& last = *rows_.back();
    // Of what a job writes dense, the report says what it was before.
    if (as_dense() == nullptr && weight_->describe() != last.scheme)
      return fmt::format("{}; it is {}", last.scheme, weight_->describe());
    if (weight_->bytes() == last.bytes_after) return "";
    return fmt::format("{} bytes; it has {}", last.bytes_after, weight_->bytes());
  }

  std::string compare_zeros(const std::vector<std::optional<sparse::NofM>>& patterns) const {
    if (rows_.back()->scheme.find(" + ") != std::string::npos) return "";
    for (const OperatorRow* row : rows_) {
      if (row->out_features != matrix_.size(0) || row->in_features != matrix_.size(1)) continue;
      std::string difference = compare_count(*row);
      if (!difference.empty()) return difference;
      const auto pass = static_cast<size_t>(row->pass);
      if (pass < patterns.size() && patterns[pass] && !keeps(matrix_, *patterns[pass]))
        return fmt::format("the pattern {}:{}; it has not", patterns[pass]->kept, patterns[pass]->of);
    }
    return "";
  }

  /// Whether the report has the error of what is stored against the source's matrix.
  bool has_error_against(const model::OperatorInfo& source) const {
    return rows_.size() == 1 && rows_[0]->weight_error && source.out_features == matrix_.size(0) &&
           source.in_features == matrix_.size(1);
  }

  std::string compare_error(const at::Tensor& original) const {
    const DenseWeight* dense = as_dense();
    const double tolerance = dense == nullptr ? kTolerance : rounding_of(dense->dtype());
    const double reported = rows_[0]->weight_error.value();
    const double found = weight_error(original, matrix_).relative;
    if (std::abs(found - reported) <= tolerance) return "";
    return fmt::format("the weight error {:.9g} against its source; it has {:.9g}", reported, found);
  }

 private:
  /// Later passes may add zeros; of what is written dense only the share is known.
  std::string compare_count(const OperatorRow& row) const {
    if (!is_plainly_sparse(row)) return "";
    const int64_t kept = matrix_.count_nonzero().item<int64_t>();
    if (row.parameters && kept > *row.parameters)
      return fmt::format("at most {} elements that are not 0; it has {}", *row.parameters, kept);
    const auto all = static_cast<double>(matrix_.numel());
    const std::string zeros = fmt::format("{:.1f} % zeros", 100 * (all - static_cast<double>(kept)) / all);
    if (row.parameters || row.scheme.starts_with(zeros)) return "";
    return fmt::format("{}; it has {}", row.scheme, zeros);
  }
  const DenseWeight* as_dense() const { return dynamic_cast<const DenseWeight*>(weight_.get()); }

  const Rows& rows_;
  WeightPtr weight_;
  at::Tensor matrix_;
};

WeightPtr load(const model::Model& model, const model::OperatorInfo& op) {
  if (op.name != model.embedding().name) return model.load_weight(op);
  if (model.compressed_embedding()) return model.compressed_embedding();
  return std::make_shared<DenseWeight>(model.read_finite(op.name + ".weight"));
}

/// One comparison: the state that its steps share.
class ReportComparison {
 public:
  ReportComparison(const model::Model& model, const RunReport& report, const model::Model* source,
                   OutputCheck& result)
      : model_(model), source_(source), result_(result), patterns_(patterns_of(report.job_json)) {
    for (const OperatorRow& row : report.operators) {
      rows_[row.name].push_back(&row);
      if (!row.weight_error) moved_.insert(row.block);
    }
  }

  /// The operator in the output and in the source; "" or the first difference.
  std::string compare(const model::OperatorInfo& stored, const model::OperatorInfo& original) {
    const auto rows = rows_.find(stored.name);
    if (rows == rows_.end()) return "";
    const ReportedOperator op(rows->second, load(model_, stored));
    std::string difference = op.compare_storage();
    if (difference.empty()) difference = op.compare_zeros(patterns_);
    if (difference.empty() && source_ != nullptr) {
      const bool is_comparable = !moved_.contains(rows->second[0]->block) && op.has_error_against(original);
      ++(is_comparable ? result_.errors_compared : result_.errors_left);
      if (is_comparable) difference = op.compare_error(load(*source_, original)->dense());
    }
    if (difference.empty()) return "";
    return fmt::format("'{}' must have, as report.json says, {}", stored.name, difference);
  }

 private:
  const model::Model& model_;
  const model::Model* source_;
  OutputCheck& result_;
  std::vector<std::optional<sparse::NofM>> patterns_;
  std::map<std::string, Rows> rows_;
  std::set<int64_t> moved_;  ///< blocks in which a pass moved scales from one operator to another
};

}  // namespace

std::string compare_report(const model::Model& model, const RunReport& report, const model::Model* source,
                           OutputCheck& result) {
  ReportComparison comparison(model, report, source, result);
  const model::Model& before = source != nullptr ? *source : model;
  std::string difference = comparison.compare(model.embedding(), before.embedding());
  for (int64_t block = 0; block < model.size() && difference.empty(); ++block) {
    const auto stored = model.architecture().operators(block),
               original = before.architecture().operators(block);
    for (size_t i = 0; i < stored.size() && difference.empty(); ++i)
      difference = comparison.compare(stored[i], original[i]);
  }
  return difference;
}

}  // namespace lcomp::pipeline
