#include "lcomp/lowrank/identity_rows_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <limits>

#include "lcomp/core/error.h"

namespace lcomp::lowrank {

IdentityRowsWeight::IdentityRowsWeight(const at::Tensor& pivots, WeightPtr rest) : rest_(std::move(rest)) {
  const int64_t in = rest_->in_features();
  const bool integers = pivots.scalar_type() == at::kInt || pivots.scalar_type() == at::kLong;
  if (pivots.dim() != 1 || pivots.numel() != in || !integers || rest_->out_features() == 0) {
    throw InvalidArgument("IdentityRowsWeight",
                          fmt::format("pivots must be {} integers and the rest at least one row; there are "
                                      "{} of them and {} rows",
                                      in, pivots.numel(), rest_->out_features()));
  }
  if (rest_->quantizes_input())
    throw InvalidArgument("IdentityRowsWeight", "the rest must not round its input; it does");
  pivots_ = pivots.clamp(-2, std::numeric_limits<int32_t>::max()).to(at::kInt).contiguous();
  const int64_t out = rest_->out_features() + (pivots_ >= 0).sum().item<int64_t>();
  std::vector<int64_t> places(static_cast<size_t>(out), -1);
  for (int64_t i = 0; i < in; ++i) {
    const int64_t row = pivots_.data_ptr<int32_t>()[i];
    if (row == -1) continue;
    if (row < 0 || row >= out) {
      throw InvalidArgument("IdentityRowsWeight",
                            fmt::format("pivots must be rows below {}, or -1; one is {}", out, row));
    }
    if (places[static_cast<size_t>(row)] != -1) {
      throw InvalidArgument("IdentityRowsWeight",
                            fmt::format("pivots must be different rows; {} comes twice", row));
    }
    places[static_cast<size_t>(row)] = i;
  }
  int64_t next = in;
  for (int64_t& place : places) {
    if (place == -1) place = next++;
  }
  places_ = at::tensor(places, at::kLong);
}

at::Tensor IdentityRowsWeight::dense() const {
  return at::cat({at::eye(in_features(), at::kFloat), rest_->dense()}).index_select(0, places_);
}

at::Tensor IdentityRowsWeight::apply(const at::Tensor& x) const {
  return at::cat({x, rest_->apply(x)}, 1).index_select(1, places_);
}

int64_t IdentityRowsWeight::bytes() const {
  return pivots_.numel() * pivots_.element_size() + rest_->bytes();
}

std::string IdentityRowsWeight::describe() const {
  return "pivots and " + rest_->describe();
}

void IdentityRowsWeight::save(TensorSink& sink, const std::string& name) const {
  sink.add(name + ".weight_pivots", pivots_);
  rest_->save(sink, rest_name(name));
}

}  // namespace lcomp::lowrank
