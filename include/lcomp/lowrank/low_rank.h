#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"
#include "lcomp/core/weight.h"
#include "lcomp/linalg/svd.h"

namespace lcomp::lowrank {

/// How the errors of a matrix are counted by its inputs: tr(D H D^T) for an error D [out, in]. The methods of
/// the SVD family differ in H alone:
///     plain SVD   H = 1
///     FWSVD       H = diag(sum_o F_oj), the Fisher information of the weights (Hsu et al., ICLR 2022)
///     ASVD        H = diag(s_j^(2 alpha)), s = mean |x_j| (Yuan et al. 2023, section 3.2)
///     SVD-LLM     H = sum x x^T (Wang et al., ICLR 2025, section 3.1)
/// One object serves all operators that read one input: what it has to factor is factored once.
class InputMetric {
 public:
  /// H = 1.
  static InputMetric plain(int64_t in);
  /// H = diag(scale^2); scale: [in], not negative.
  static InputMetric diagonal(const at::Tensor& scale);
  /// H itself: [in, in] symmetric, positive semidefinite, any positive factor.
  static InputMetric moment(const at::Tensor& h);

  int64_t in_features() const;
  /// W H, float64 [out, in].
  at::Tensor weighted(const at::Tensor& weight, ThreadPool* pool = nullptr) const;
  /// W H W^T, float64 [out, out].
  at::Tensor energy(const at::Tensor& weight, ThreadPool* pool = nullptr) const;
  /// W S, float64 [out, in], with some S S^T = H: the Cholesky factor, or, where H is singular, that of its
  /// eigenvalues (SVD-LLM V2, NAACL 2025, section 3.1), which needs no positive definite H.
  at::Tensor scaled(const at::Tensor& weight, ThreadPool* pool = nullptr) const;
  /// tr(D H D^T).
  double loss(const at::Tensor& difference, ThreadPool* pool = nullptr) const;
  /// Whether S was needed so far.
  bool is_factored() const { return root_->s.defined(); }
  /// Whether S had to come from eigenvalues; false before it was needed.
  bool is_singular() const { return root_->singular; }

 private:
  /// S, made when it is first asked for; copies share it.
  struct Root {
    std::once_flag made;
    at::Tensor s;
    bool singular = false;
  };

  InputMetric() = default;
  const at::Tensor& root(ThreadPool* pool) const;

  at::Tensor scale_;  // float64 [in], of a diagonal
  at::Tensor h_;      // float64 [in, in]
  std::shared_ptr<Root> root_ = std::make_shared<Root>();
};

enum class Solver {
  kAuto,        ///< randomized for a 32nd of the directions of a side from 1024 up, or fewer; else gram
  kExact,       ///< singular values of the scaled matrix (`linalg::SvdSolver`)
  kGram,        ///< eigenvalues of the smaller of its two Gram matrices
  kRandomized,  ///< a random subspace with power iterations
};

/// W ~ A B.
struct Factors {
  at::Tensor left;                      ///< A, float64 [out, rank]
  at::Tensor right;                     ///< B, float64 [rank, in]
  std::vector<double> singular_values;  ///< of the scaled matrix, the `rank` largest
  double energy = 0;                    ///< sum of the squares of all of them
  double tail = 0;                      ///< sum of the squares of those cut off: the loss of A B

  /// A B, float64 [out, in].
  at::Tensor product() const;
};

/// The best approximation of rank `rank`,
///     min over A, B of tr(E (W - A B) H (W - A B)^T),   E = diag(row_weights),
/// by the projection of the outputs on their strongest directions: with E^1/2 W S = U diag(s) V^T,
///     A = E^-1/2 U_k,   B = U_k^T E^1/2 W,
/// which is the truncation U_k diag(s_k) V_k^T S^-1 without an inverse of S. Its loss is the sum of the cut
/// s_i^2 (Wang et al., ICLR 2025, theorem 3.2, for H = sum x x^T; Eckart and Young).
///
/// weight: [out, in], any floating-point type. row_weights: [out], positive; undefined for 1. Work in
/// float64: out in^2 + out^2 in multiply-adds and eigenvalues of a matrix of size min(out, in). Throws
/// InvalidArgument for shapes and ranks that do not fit, NumericalError when something is not finite.
Factors low_rank(const at::Tensor& weight, const InputMetric& metric, int64_t rank,
                 Solver solver = Solver::kAuto, const at::Tensor& row_weights = {},
                 ThreadPool* pool = nullptr);

/// The same from factors of a matrix that is nearly this one, by one step of subspace iteration: out in rank
/// instead of an eigenvalue problem. Not the best, but no worse than the projection on the directions of
/// `start`, whose left factor must have orthonormal columns.
Factors low_rank_from(const at::Tensor& weight, const InputMetric& metric, const Factors& start,
                      ThreadPool* pool = nullptr);

/// All squared singular values of E^1/2 W S, descending: entry i is what cutting component i costs.
std::vector<double> component_losses(const at::Tensor& weight, const InputMetric& metric,
                                     const at::Tensor& row_weights = {}, ThreadPool* pool = nullptr);

/// Projection of the inputs on the strongest directions P of H: A = W P_k, B = P_k^T. Simpler than
/// `low_rank`, and never better in tr(D H D^T). `tail` is that loss.
Factors project_inputs(const at::Tensor& weight, const InputMetric& metric, int64_t rank,
                       ThreadPool* pool = nullptr);

/// The second factor solved anew for the first, which may come from another metric:
///     min over A of tr((W - A B) H (W - A B)^T),   A = W H B^T (B H B^T)^-1,
/// the gradient-free update of SVD-LLM (its code's second step) from the second moment of the inputs that the
/// operator now gets. Never raises that loss. Directions of B that H does not see are left as they are.
void update_left(Factors& factors, const at::Tensor& weight, const InputMetric& metric,
                 ThreadPool* pool = nullptr);

/// How a pair of factors is stored.
enum class Form {
  kPair,     ///< A and B: rank (out + in) numbers
  kPivoted,  ///< rank rows of the product, and the others as combinations of them: rank^2 numbers less
};

/// Numbers that a rank takes.
int64_t factored_size(Form form, int64_t out, int64_t in, int64_t rank);

/// The largest rank, a multiple of `multiple`, that takes at most `size` numbers; 0 when there is none.
int64_t largest_rank(Form form, int64_t out, int64_t in, int64_t size, int64_t multiple = 1);

/// Stores a factor: B (`right` is null), or A, or its rows that are no identity, for the B that was stored.
using StoreFactor = std::function<WeightPtr(const at::Tensor& values, const Weight* right)>;

/// A B in a form. Pivoted: the rows of A that QR with column pivoting takes first are its basis; B becomes
/// these rows of the product, and A the identity there (`IdentityRowsWeight`): the same product with rank^2
/// fewer numbers and multiply-adds, since any factorisation has an invertible matrix to spare (PIFA: Zhao et
/// al., ICML 2025). With a target [out, in] and its metric, what is left of A is solved anew for B as it was
/// stored (`update_left`).
WeightPtr factored_weight(const Factors& factors, Form form, const StoreFactor& store,
                          const at::Tensor& target = {}, const InputMetric* metric = nullptr);

/// An operator whose outputs are some of the rows of a stacked matrix.
struct StackedRows {
  std::string name;  ///< of the operator
  int64_t rows = 0;
};

/// The same for factors of several matrices below each other that read one input: each operator gets its rows
/// of A, and B is stored with the first and shared by the others (`SharedWeight`). Empty where, pivoted, an
/// operator would consist of pivots alone. The sizes of A B as one matrix count (`factored_size`).
std::vector<WeightPtr> shared_factored_weights(const Factors& factors, Form form,
                                               const std::vector<StackedRows>& operators,
                                               const StoreFactor& store, const at::Tensor& target = {},
                                               const InputMetric* metric = nullptr);

}  // namespace lcomp::lowrank

namespace lcomp {
template <>
struct EnumNames<lowrank::Solver> {
  static constexpr std::array<std::string_view, 4> names = {"auto", "exact", "gram", "randomized"};
};
template <>
struct EnumNames<lowrank::Form> {
  static constexpr std::array<std::string_view, 2> names = {"pair", "pivoted"};
};
}  // namespace lcomp
