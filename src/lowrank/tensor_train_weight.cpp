#include "lcomp/lowrank/tensor_train_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lowrank/contraction.h"
#include "lowrank/stored_parts.h"

namespace lcomp::lowrank {
namespace {

/// More padding than this times the matrix is not formed.
constexpr int64_t kMostPadding = 4;

/// Dimension `dim` of every core.
std::vector<int64_t> core_sizes(const std::vector<at::Tensor>& cores, int64_t dim) {
  std::vector<int64_t> sizes(cores.size());
  std::transform(cores.begin(), cores.end(), sizes.begin(),
                 [&](const at::Tensor& core) { return core.size(dim); });
  return sizes;
}

/// Each core has four dimensions, the type of the first, and follows on the one before.
MaybePartFault find_core_fault(const std::vector<at::Tensor>& cores) {
  if (cores.empty()) return PartFault{"tt_core0", "must be there; there are no cores"};
  int64_t rank = 1;
  for (size_t k = 0; k < cores.size(); ++k) {
    const std::string part = fmt::format("tt_core{}", k);
    if (!is_float_part(cores[k], 4) || cores[k].scalar_type() != cores.front().scalar_type() ||
        cores[k].size(0) != rank) {
      return PartFault{part, fmt::format("must be [{}, rows, columns, rank], not empty, all cores of one "
                                         "type, float32, bfloat16 or float16; it is {}",
                                         rank, part_text(cores[k]))};
    }
    rank = cores[k].size(3);
    if (k + 1 == cores.size() && rank != 1)
      return PartFault{part, fmt::format("must have rank 1 at the end; it has {}", rank)};
  }
  return {};
}

/// Whether the multiply-adds of a train, and so the elements on the way, can be counted in 64 bits.
bool is_countable(const std::vector<at::Tensor>& cores) {
  double bound = 1, rank = 1;
  for (const at::Tensor& core : cores) {
    bound *= static_cast<double>(core.size(1)) * static_cast<double>(core.size(2));
    rank = std::max(rank, static_cast<double>(core.size(0)));
  }
  return bound * rank * rank <= 0x1p58;  // of a core, and there are at most 16, from both sides
}

/// The shape agrees with the cores.
MaybePartFault find_train_shape_fault(const at::Tensor& shape, const std::vector<at::Tensor>& cores) {
  const std::vector<int64_t> numbers = integers_of(shape);
  std::vector<int64_t> expected{numbers[0], numbers[1]};
  const std::vector<int64_t> rows = core_sizes(cores, 1), columns = core_sizes(cores, 2);
  expected.insert(expected.end(), rows.begin(), rows.end());
  expected.insert(expected.end(), columns.begin(), columns.end());
  if (numbers != expected) {
    return PartFault{"tt_shape", fmt::format("must be the shape of the cores, {}; it is {}",
                                             fmt::join(expected, ", "), fmt::join(numbers, ", "))};
  }
  if (const auto fault = padding_fault(rows, numbers[0], "rows")) return PartFault{"tt_shape", *fault};
  if (const auto fault = padding_fault(columns, numbers[1], "columns")) return PartFault{"tt_shape", *fault};
  if (!is_countable(cores)) {
    return PartFault{"tt_shape", fmt::format("must be of a matrix that can be multiplied by; it is [{}, {}]",
                                             numbers[0], numbers[1])};
  }
  return {};
}

MaybePartFault find_train_fault(const TensorTrainParts& parts) {
  const auto d = static_cast<int64_t>(parts.cores.size());
  if (!is_integer_part(parts.shape, 2 + 2 * d))
    return PartFault{"tt_shape",
                     fmt::format("must be int64 [{}]; it is {}", 2 + 2 * d, part_text(parts.shape))};
  MaybePartFault fault = find_core_fault(parts.cores);
  if (!fault) fault = find_train_shape_fault(parts.shape, parts.cores);
  if (fault || !parts.input_scale.defined()) return fault;
  const int64_t in = integers_of(parts.shape)[1];
  if (is_float_part(parts.input_scale, 1) && parts.input_scale.size(0) == in) return {};
  return PartFault{"tt_input_scale", fmt::format("must be float32, bfloat16 or float16 [{}]; it is {}", in,
                                                 part_text(parts.input_scale))};
}

TensorTrainParts parts_of(int64_t out, int64_t in, std::vector<at::Tensor> cores, at::Tensor input_scale) {
  std::vector<int64_t> shape{out, in};
  require_parts(find_core_fault(cores), "TensorTrainWeight");
  for (const int64_t dim : {1, 2}) {
    const std::vector<int64_t> sizes = core_sizes(cores, dim);
    shape.insert(shape.end(), sizes.begin(), sizes.end());
  }
  TensorTrainParts parts{integer_part(shape), std::move(cores), std::move(input_scale)};
  require_parts(find_train_fault(parts), "TensorTrainWeight");
  return parts;
}

std::vector<at::Tensor> cores_in(const TrainMatrix& matrix, at::ScalarType type) {
  check_part_type(type, "TensorTrainWeight");
  std::vector<at::Tensor> cores;
  for (const at::Tensor& core : matrix.cores) cores.push_back(core.to(type));
  return cores;
}

/// Elements per vector of the largest state between two contractions, from either side.
int64_t largest_state(const std::vector<int64_t>& rows, const std::vector<int64_t>& columns,
                      const std::vector<int64_t>& ranks, bool from_left) {
  int64_t largest = std::max(c10::multiply_integers(rows), c10::multiply_integers(columns));
  for (size_t cut = 1; cut < rows.size(); ++cut) {
    const auto done = static_cast<std::ptrdiff_t>(cut);
    const auto& first = from_left ? rows : columns;
    const auto& second = from_left ? columns : rows;
    largest = std::max(largest, c10::multiply_integers(first.begin(), first.begin() + done) * ranks[cut] *
                                    c10::multiply_integers(second.begin() + done, second.end()));
  }
  return largest;
}

/// state [count, p, r] times the slice of the core [r, m, n, s] that each one's digit chooses: [count, p, n
/// s]. Rows with the same digit are multiplied together.
at::Tensor times_slices(const at::Tensor& state, const at::Tensor& core, const at::Tensor& digits) {
  const int64_t r = state.size(2);
  at::Tensor product = at::empty({state.size(0), state.size(1), core.size(2) * core.size(3)}, at::kFloat);
  const auto [sorted, order] = digits.sort();
  const int64_t count = digits.numel();
  const int64_t* digit = sorted.data_ptr<int64_t>();
  for (int64_t begin = 0, end = 0; begin < count; begin = end) {
    while (end < count && digit[end] == digit[begin]) ++end;
    const at::Tensor slice = core.select(1, digit[begin]).to(at::kFloat).reshape({r, -1});
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = order.data_ptr<int64_t>()[i];
      at::Tensor made = product[row];
      at::mm_out(made, state[row], slice);
    }
  }
  return product;
}

}  // namespace

TensorTrainWeight::TensorTrainWeight(TensorTrainParts parts) : parts_(std::move(parts)) {
  parts_.shape = parts_.shape.contiguous();
  const std::vector<int64_t> shape = integers_of(parts_.shape);
  out_ = shape[0];
  in_ = shape[1];
  row_shape_ = core_sizes(parts_.cores, 1);
  col_shape_ = core_sizes(parts_.cores, 2);
  ranks_ = core_sizes(parts_.cores, 0);
  ranks_.push_back(1);
  cost_ = train_cost(row_shape_, col_shape_, ranks_);
  const bool from_left = cost_.macs_left <= cost_.macs_right;
  largest_state_ = largest_state(row_shape_, col_shape_, ranks_, from_left);
  for (at::Tensor& core : parts_.cores) {
    core = core.contiguous();
    // [m r', r n] from the left, [r m, n r'] from the right.
    const at::Tensor laid_out = from_left ? core.permute({1, 3, 0, 2}) : core;
    matrices_.push_back(laid_out.flatten(2, 3).flatten(0, 1).to(at::kFloat).contiguous());
  }
}

TensorTrainWeight::TensorTrainWeight(int64_t out, int64_t in, std::vector<at::Tensor> cores,
                                     at::Tensor input_scale)
    : TensorTrainWeight(parts_of(out, in, std::move(cores), std::move(input_scale))) {}

TensorTrainWeight::TensorTrainWeight(const TrainMatrix& matrix, at::ScalarType type, at::Tensor input_scale)
    : TensorTrainWeight(matrix.out, matrix.in, cores_in(matrix, type), std::move(input_scale)) {}

int64_t TensorTrainWeight::core_count(const at::Tensor& shape, const std::string& name) {
  const bool fits = shape.defined() && shape.scalar_type() == at::kLong && shape.dim() == 1 &&
                    shape.numel() >= 4 && shape.numel() % 2 == 0;
  if (fits) return shape.numel() / 2 - 1;
  require_stored_parts(
      PartFault{"tt_shape", "must be int64 [2 + 2 x number of cores]; it is " + part_text(shape)}, name);
  return 0;
}

TensorTrainWeight TensorTrainWeight::from_stored(TensorTrainParts parts, const std::string& name) {
  require_stored_parts(find_train_fault(parts), name);
  return TensorTrainWeight(std::move(parts));
}

at::Tensor TensorTrainWeight::dense() const {
  const int64_t padded = c10::multiply_integers(row_shape_) * c10::multiply_integers(col_shape_);
  if (padded / kMostPadding > out_ * in_) return rows(at::arange(out_, at::kLong));
  std::vector<at::Tensor> cores;
  for (const at::Tensor& core : parts_.cores) cores.push_back(core.to(at::kFloat));
  const at::Tensor matrix = full_matrix(cores).narrow(0, 0, out_).narrow(1, 0, in_);
  if (!parts_.input_scale.defined()) return matrix.contiguous();
  return matrix * parts_.input_scale.to(at::kFloat);
}

/// States are [m_1 ... m_k-1, (r_k-1, n_k), n_k+1 ... n_d x tokens].
at::Tensor TensorTrainWeight::contract_from_left(const at::Tensor& x) const {
  at::Tensor state = x;
  int64_t done = 1;
  for (size_t k = 0; k < matrices_.size(); ++k) {
    state = contract(matrices_[k], state.reshape({done, ranks_[k] * col_shape_[k], -1}));
    done *= row_shape_[k];
  }
  return state.reshape({done, -1});
}

/// States are [n_1 ... n_k-1, (n_k, r_k), m_k+1 ... m_d x tokens].
at::Tensor TensorTrainWeight::contract_from_right(const at::Tensor& x) const {
  at::Tensor state = x;
  int64_t left = x.size(0);
  for (size_t k = matrices_.size(); k > 0; --k) {
    left /= col_shape_[k - 1];
    state = contract(matrices_[k - 1], state.reshape({left, col_shape_[k - 1] * ranks_[k], -1}));
  }
  return state.reshape({c10::multiply_integers(row_shape_), -1});
}

at::Tensor TensorTrainWeight::apply(const at::Tensor& x) const {
  at::Tensor input = x.to(at::kFloat);
  if (parts_.input_scale.defined()) input = input * parts_.input_scale.to(at::kFloat);
  const int64_t tokens = input.size(0), padded = c10::multiply_integers(col_shape_);
  at::Tensor y = at::empty({tokens, out_}, at::kFloat);
  in_pieces(tokens, piece_size(largest_state_), [&](int64_t begin, int64_t count) {
    const at::Tensor columns =
        at::constant_pad_nd(input.narrow(0, begin, count), {0, padded - in_}).t().contiguous();
    const at::Tensor result =
        cost_.macs_left <= cost_.macs_right ? contract_from_left(columns) : contract_from_right(columns);
    y.narrow(0, begin, count).copy_(result.narrow(0, 0, out_).t());
  });
  return y;
}

at::Tensor TensorTrainWeight::rows(const at::Tensor& ids) const {
  check_row_ids(ids, out_, "TensorTrainWeight::rows");
  at::Tensor found = at::empty({ids.numel(), in_}, at::kFloat);
  int64_t each = 0, done = 1;  // of a row: what the cores so far make
  for (size_t k = 0; k < row_shape_.size(); ++k) {
    done *= col_shape_[k];
    each = std::max(each, done * ranks_[k + 1]);
  }
  in_pieces(ids.numel(), piece_size(each), [&](int64_t begin, int64_t count) {
    const std::vector<at::Tensor> digits = digits_of(ids.narrow(0, begin, count), row_shape_);
    at::Tensor state = at::ones({count, 1, 1}, at::kFloat);
    for (size_t k = 0; k < digits.size(); ++k)
      state = times_slices(state, parts_.cores[k], digits[k]).reshape({count, -1, ranks_[k + 1]});
    found.narrow(0, begin, count).copy_(state.reshape({count, -1}).narrow(1, 0, in_));
  });
  return parts_.input_scale.defined() ? found * parts_.input_scale.to(at::kFloat) : found;
}

int64_t TensorTrainWeight::parameters() const {
  return cost_.parameters + (parts_.input_scale.defined() ? in_ : 0);
}

int64_t TensorTrainWeight::macs_per_token() const {
  return cost_.macs() + (parts_.input_scale.defined() ? in_ : 0);
}

int64_t TensorTrainWeight::bytes() const {
  int64_t sum = part_bytes(parts_.shape);
  for (const at::Tensor& core : parts_.cores) sum += part_bytes(core);
  return sum + (parts_.input_scale.defined() ? part_bytes(parts_.input_scale) : 0);
}

std::string TensorTrainWeight::describe() const {
  const std::vector<int64_t> inner(ranks_.begin() + 1, ranks_.end() - 1);
  std::string text = fmt::format("tensor train of rows {} and columns {}", fmt::join(row_shape_, "x"),
                                 fmt::join(col_shape_, "x"));
  if (!inner.empty()) text += fmt::format(", ranks {}", fmt::join(inner, " "));
  if (parts_.input_scale.defined()) text += ", scaled inputs";
  return fmt::format("{} ({})", text, dtype_name(parts_.cores.front().scalar_type()));
}

void TensorTrainWeight::save(TensorSink& sink, const std::string& name) const {
  sink.add(name + ".weight_tt_shape", parts_.shape);
  for (size_t k = 0; k < parts_.cores.size(); ++k)
    sink.add(fmt::format("{}.weight_tt_core{}", name, k), parts_.cores[k]);
  if (parts_.input_scale.defined()) sink.add(name + ".weight_tt_input_scale", parts_.input_scale);
}

}  // namespace lcomp::lowrank
