#include "quant/gptq_order.h"

#include <algorithm>
#include <numeric>

namespace lcomp::quant {
namespace {

/// first, first + 1, ... (count of them), by descending value of `key`.
std::vector<int64_t> descending(int64_t first, int64_t count, const std::vector<double>& key) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), first);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return key[static_cast<size_t>(a)] > key[static_cast<size_t>(b)];
  });
  return order;
}

}  // namespace

std::vector<int64_t> gptq_order(const std::vector<double>& diagonal, ActOrder act_order,
                                int64_t columns_per_group) {
  const auto n = static_cast<int64_t>(diagonal.size());
  if (act_order == ActOrder::kNone) return {};
  if (act_order != ActOrder::kGroupAware) return descending(0, n, diagonal);

  const int64_t groups = n / columns_per_group;
  std::vector<double> group_largest;
  for (int64_t g = 0; g < groups; ++g) {
    const auto first = diagonal.begin() + g * columns_per_group;
    group_largest.push_back(*std::max_element(first, first + columns_per_group));
  }
  std::vector<int64_t> order;
  for (const int64_t g : descending(0, groups, group_largest)) {
    const std::vector<int64_t> columns = descending(g * columns_per_group, columns_per_group, diagonal);
    order.insert(order.end(), columns.begin(), columns.end());
  }
  return order;
}

}  // namespace lcomp::quant
