#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "lcomp/core/observer.h"
#include "lcomp/core/threads.h"
#include "lcomp/eval/timing.h"
#include "lcomp/linalg/gemm.h"
#include "lcomp/model/architecture.h"
#include "lcomp/model/model.h"
#include "lcomp/sparse/formats.h"

namespace lcomp::eval {

/// What a block of each width costs on this machine: a look-up table for searches under a latency budget
/// (Kwon, Kim, Mahoney, Hassoun, Keutzer, Gholami: A Fast Post-Training Pruning Framework for Transformers,
/// NeurIPS 2022, section 4.1).
struct LatencyTable {
  std::vector<double> attention;    ///< seconds with k groups of heads (key and value head k with the query
                                    ///< heads that read it), k = 0 ... kv_heads
  std::vector<double> mlp;          ///< seconds with mlp_widths[i] channels
  std::vector<int64_t> mlp_widths;  ///< ascending, from 0 to intermediate_size
};

/// Times the attention half (norm, projections, attention, output projection) and the MLP half (norm, gate,
/// up, down) of block 0 as dense float32 blocks of these widths run, for one sample of `tokens` tokens.
/// `steps`: the grid of MLP widths has that many steps of intermediate_size / steps, rounded. Width 0 costs
/// nothing. With a pool each of its threads takes a sample at the same time, as in a run. Medians as they
/// were measured: noise may make a wider half look cheaper. Throws InvalidArgument unless tokens and steps
/// are from 1 up and steps is at most intermediate_size.
LatencyTable latency_table(const model::Architecture& architecture, int64_t tokens, int64_t steps,
                           ThreadPool* pool = nullptr, const TimingOptions& options = {});

/// The table as JSON, and such a file read: CorruptFile names the file and the field where the three lists do
/// not belong together, or do not start at width 0.
std::string to_json(const LatencyTable& table);
LatencyTable read_latency_table(const std::filesystem::path& file);

/// A measured latency beside that of its dense rival, timed in the same rounds.
struct Latency {
  std::string name;    ///< a kind of operator ("q_proj"), "all operators", "all blocks", or a storage ("csr")
  std::string stored;  ///< how, in a line for people; empty for sums
  double density = 1;  ///< share of the elements that are not 0
  int64_t tokens = 0;  ///< in one call
  Timing measured, dense;
  int64_t bytes = 0, dense_bytes = 0;  ///< of the weights, as they are read
};

struct LatencyOptions {
  std::vector<int64_t> tokens = {1, 8, 64};
  /// Of dense products. Sparse ones are float32.
  linalg::Precision precision = linalg::Precision::kF32;
  TimingOptions timing;
};

/// Times the linear operators of a model, all blocks' of a kind one after the other, so that their weights
/// come from memory where they do not fit into a cache: a row for each kind and one for their sum, for each
/// number of tokens. An operator that is stored dense is multiplied as a block does it
/// (`linalg::PackedMatrix`), any other by `Weight::apply`. The dense rival is the operator of the same kind
/// in `rival`, or without one the same matrix decoded; always packed. Where the dense matrices of a kind take
/// more than 1 GB, evenly spread blocks stand for all. Dense and sparse products use all threads of the pool,
/// others the calling one. Throws InvalidArgument for tokens below 1 and `Interrupted`.
std::vector<Latency> operator_latencies(const model::Model& model, const model::Model* rival,
                                        const LatencyOptions& options, ThreadPool& pool, Observer& observer);

/// Times one sample of `tokens` tokens through all blocks as runs and evaluations take it, and through those
/// of `rival`, or without one those of the same matrices decoded: the sum over blocks, round by round, of one
/// thread. Models may differ in widths and in the number of blocks.
Latency block_latency(const model::Model& model, const model::Model* rival, int64_t tokens,
                      const LatencyOptions& options, Observer& observer);

/// Times products of a random bfloat16 matrix of this storage: a row for each number of tokens. `density`:
/// share of the elements that are not 0; of the blocks for Blocked-ELL; 2:4 has 0.5 whatever is asked. Both
/// rivals go through copies of their matrix that exceed the caches, as the matrices of a large model do.
/// Throws InvalidArgument for a shape that the storage does not take, and a density outside of (0, 1].
std::vector<Latency> storage_latencies(int64_t out, int64_t in, double density, sparse::SparseFormat format,
                                       const LatencyOptions& options, ThreadPool& pool);

}  // namespace lcomp::eval
