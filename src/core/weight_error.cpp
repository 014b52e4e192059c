#include "lcomp/core/weight_error.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"

namespace lcomp {
namespace {

/// Rows of a piece of work: bounds the float64 copies.
constexpr int64_t kRows = 256;

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.sizes().begin(), tensor.sizes().end(), ", "));
}

void check_second_moment(const at::Tensor& second_moment, int64_t in) {
  if (second_moment.dim() == 2 && second_moment.size(0) == in && second_moment.size(1) == in) return;
  throw InvalidArgument("weight_error", fmt::format("the second moment must be [{}, {}]; received {}", in, in,
                                                    shape_text(second_moment)));
}

int64_t piece_count(const at::Tensor& matrix) {
  return (matrix.size(0) + kRows - 1) / kRows;
}

at::Tensor piece(const at::Tensor& matrix, int64_t index) {
  return matrix.narrow(0, index * kRows, std::min(kRows, matrix.size(0) - index * kRows)).to(at::kDouble);
}

/// Row by row, then the rows in order: a full reduction would depend on the number of threads.
double ordered_sum(const at::Tensor& matrix) {
  const at::Tensor rows = matrix.sum(1).contiguous();
  const double* values = rows.data_ptr<double>();
  return std::accumulate(values, values + rows.numel(), 0.0);
}

/// tr(D H D^T) over some rows of D, in tiles of columns: bounds the float64 copy of H.
double energy_of(const at::Tensor& rows, const at::Tensor& moment) {
  constexpr int64_t kColumns = 256;
  double sum = 0;
  for (int64_t begin = 0; begin < moment.size(1); begin += kColumns) {
    const int64_t count = std::min(kColumns, moment.size(1) - begin);
    const at::Tensor tile = moment.narrow(1, begin, count).to(at::kDouble);
    sum += ordered_sum(at::matmul(rows, tile).mul_(rows.narrow(1, begin, count)));
  }
  return sum;
}

struct Sums {
  double difference = 0;
  double original = 0;
  double largest = 0;
  double difference_energy = 0;
  double original_energy = 0;
  int64_t flips = 0;
  int64_t zeroed = 0;

  void add(const Sums& other) {
    difference += other.difference;
    original += other.original;
    largest = std::max(largest, other.largest);
    difference_energy += other.difference_energy;
    original_energy += other.original_energy;
    flips += other.flips;
    zeroed += other.zeroed;
  }
};

/// w, q: float64 rows of the two matrices.
Sums sums_of(const at::Tensor& w, const at::Tensor& q, const at::Tensor& moment) {
  const at::Tensor d = w - q;
  Sums sums;
  sums.difference = ordered_sum(d.square());
  sums.original = ordered_sum(w.square());
  if (d.numel() > 0) sums.largest = d.abs().max().item<double>();
  sums.flips = (w.sign() * q.sign()).lt(0).sum().item<int64_t>();
  sums.zeroed = w.ne(0).logical_and(q.eq(0)).sum().item<int64_t>();
  if (moment.defined()) {
    sums.difference_energy = energy_of(d, moment);
    sums.original_energy = energy_of(w, moment);
  }
  return sums;
}

}  // namespace

double activation_energy(const at::Tensor& difference, const at::Tensor& second_moment, ThreadPool* pool) {
  check_second_moment(second_moment, difference.size(1));
  std::vector<double> energy(static_cast<size_t>(piece_count(difference)));
  parallel_for(pool, piece_count(difference), [&](int64_t index, int) {
    energy[static_cast<size_t>(index)] = energy_of(piece(difference, index), second_moment);
  });
  return std::accumulate(energy.begin(), energy.end(), 0.0);
}

WeightError weight_error(const at::Tensor& original, const at::Tensor& compressed,
                         const at::Tensor& second_moment, ThreadPool* pool) {
  if (original.dim() != 2 || original.sizes() != compressed.sizes()) {
    throw InvalidArgument("weight_error",
                          fmt::format("the two matrices must have one shape [out, in]; received {} and {}",
                                      shape_text(original), shape_text(compressed)));
  }
  at::Tensor moment;
  if (second_moment.defined()) {
    check_second_moment(second_moment, original.size(1));
    moment = second_moment;
  }
  std::vector<Sums> pieces(static_cast<size_t>(piece_count(original)));
  parallel_for(pool, piece_count(original), [&](int64_t index, int) {
    pieces[static_cast<size_t>(index)] = sums_of(piece(original, index), piece(compressed, index), moment);
  });
  Sums total;
  for (const Sums& sums : pieces) total.add(sums);

  const auto ratio = [](double a, double b) { return a == 0 ? 0 : a / b; };
  const double elements = static_cast<double>(std::max<int64_t>(original.numel(), 1));
  WeightError result;
  result.relative = std::sqrt(ratio(total.difference, total.original));
  result.largest = total.largest;
  result.sign_flips = static_cast<double>(total.flips) / elements;
  result.zeroed = static_cast<double>(total.zeroed) / elements;
  if (moment.defined()) result.activation = ratio(total.difference_energy, total.original_energy);
  return result;
}

}  // namespace lcomp
