#include "lcomp/pipeline/report_data.h"

namespace lcomp::pipeline {

std::optional<double> RooflineRow::achieved_gflops() const {
  if (!(seconds > 0)) return std::nullopt;
  return flops / seconds / 1e9;
}

std::optional<double> RooflineRow::share() const {
  const auto achieved = achieved_gflops();
  if (!achieved || !(peak_gflops > 0)) return std::nullopt;
  return *achieved / peak_gflops;
}

std::vector<OutlierRow> outlier_features(const std::vector<OperatorRow>& operators, int64_t blocks) {
  // The criteria of Dettmers et al. 2022, section 4.1.
  constexpr double kLayers = 0.25, kTokens = 0.06;
  std::vector<std::string> kinds;  // in the order in which a block reads them
  std::map<std::pair<size_t, int64_t>, std::pair<int64_t, double>> seen;  // blocks, sum of token shares
  for (const OperatorRow& row : operators) {
    if (row.outliers.empty()) continue;
    const auto found = std::find(kinds.begin(), kinds.end(), row.kind);
    const auto kind = static_cast<size_t>(found - kinds.begin());
    if (found == kinds.end()) kinds.push_back(row.kind);
    for (const OutlierFeature& feature : row.outliers) {
      auto& [count, tokens] = seen[{kind, feature.feature}];
      ++count;
      tokens += feature.tokens;
    }
  }
  std::vector<OutlierRow> rows;
  for (const auto& [key, value] : seen) {
    OutlierRow row{kinds[key.first], key.second, 0, 0, false};
    row.layers = static_cast<double>(value.first) / static_cast<double>(blocks);
    row.tokens = value.second / static_cast<double>(value.first);
    row.systematic = row.layers >= kLayers && row.tokens >= kTokens;
    rows.push_back(row);
  }
  std::stable_sort(rows.begin(), rows.end(), [&](const OutlierRow& a, const OutlierRow& b) {
    if (a.kind != b.kind)
      return std::find(kinds.begin(), kinds.end(), a.kind) < std::find(kinds.begin(), kinds.end(), b.kind);
    return std::pair(a.layers, a.tokens) > std::pair(b.layers, b.tokens);
  });
  return rows;
}

}  // namespace lcomp::pipeline
