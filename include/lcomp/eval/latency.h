#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "lcomp/core/threads.h"
#include "lcomp/eval/timing.h"
#include "lcomp/model/architecture.h"

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

}  // namespace lcomp::eval
