#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/core/options.h"

/// What a run has to say about itself, as data. Every number is measured in the run that reports it; what was
/// not measured is `std::nullopt`, never zero. `docs/report.md` says how each number is measured.
/// Units: bytes, seconds, floating-point operations (a multiply-add counts as two); shares are in [0, 1].
namespace lcomp::pipeline {

enum class RunStatus {
  kRunning,      ///< the writer was at work when this was written; a killed run stays so
  kDone,         ///< published, verified and, if the job asks for it, evaluated
  kInterrupted,  ///< stopped on request; the same command continues it
  kFailed,       ///< ended by an error; `RunReport::message` is its text
};

/// The machine, and what of it the run used.
struct HostFacts {
  std::string processor;                  ///< the name the processor gives itself
  std::vector<std::string> instructions;  ///< instruction sets that matter here: "avx2", "avx512_bf16" ...
  int64_t logical_cores = 0;
  int64_t threads = 0;       ///< threads of this run
  int64_t memory_bytes = 0;  ///< physical memory
  std::string compute;       ///< precision of forward passes that ran: "f32" or "bf16"

  bool operator==(const HostFacts&) const = default;
};

/// The model as it came.
struct ModelFacts {
  std::string path;
  std::string family;      ///< "llama", "qwen2" ...
  std::string dtype;       ///< of most weights: "bfloat16"
  int64_t parameters = 0;  ///< all weights, tied ones counted once
  int64_t blocks = 0;
  int64_t bytes = 0;  ///< of all tensors, as stored

  bool operator==(const ModelFacts&) const = default;
};

/// `count` calibration windows of `length` tokens.
struct LengthCount {
  int64_t length = 0;
  int64_t count = 0;

  bool operator==(const LengthCount&) const = default;
};

/// What the statistics were taken from.
struct CalibrationFacts {
  std::string file;
  std::string text_hash;             ///< content hash of the file
  std::string tokenizer_hash;        ///< content hash of tokenizer.json
  int64_t samples = 0;               ///< windows that went through the model
  int64_t tokens = 0;                ///< tokens in them
  int64_t sequence_starts = 0;       ///< windows that begin a sequence (their first token is a sink)
  std::vector<LengthCount> lengths;  ///< histogram of window lengths, ascending
  std::string short_policy;          ///< "pack", "drop" or "error"
  int64_t short_dropped = 0;         ///< short samples left out
  int64_t short_packed = 0;          ///< short samples joined with others

  bool operator==(const CalibrationFacts&) const = default;
};

/// The method of the entry for a compressed embedding, which stands behind those of the job's passes.
inline constexpr std::string_view kEmbeddingPass = "embedding";

/// One entry of the job's list of passes.
struct PassFacts {
  std::string method;     ///< "gptq"
  std::string summary;    ///< settings in a line: "int4 symmetric, groups of 64"
  int64_t operators = 0;  ///< operators it changes

  bool operator==(const PassFacts&) const = default;
};

/// An input feature of an operator that was an outlier (LLM.int8()) on some calibration tokens.
struct OutlierFeature {
  int64_t feature = 0;
  double tokens = 0;  ///< share of the tokens

  bool operator==(const OutlierFeature&) const = default;
};

/// What one pass did to one linear operator. When several passes change an operator it has a row for each, in
/// order, and the last one describes what was stored.
struct OperatorRow {
  std::string name;    ///< "model.layers.3.mlp.down_proj"
  std::string kind;    ///< "down_proj"
  int64_t block = -1;  ///< -1: outside the blocks (head, embeddings)
  int64_t pass = 0;    ///< position in `RunReport::passes`
  std::string method;  ///< of that pass
  std::string scheme;  ///< what is stored, for people: "int4 symmetric, groups of 64"
  int64_t out_features = 0;
  int64_t in_features = 0;
  double bits_per_weight = 0;  ///< 8 * bytes_after / (out * in): codes, scales and zero points counted
  int64_t bytes_before = 0;
  int64_t bytes_after = 0;
  /// Of what is no longer made of the elements of the matrix: numbers, and multiply-adds per token.
  std::optional<int64_t> parameters;
  std::optional<int64_t> macs;

  std::optional<double> weight_error;      ///< |W - Q|_F / |W|_F
  std::optional<double> activation_error;  ///< sqrt(tr(D H D^T) / tr(W H W^T)), D = W - Q, H second moment
  std::optional<double> max_abs_error;     ///< max |W - Q|
  /// What the method minimised: tr(D H D^T) for gptq. When it fell back, that of what it fell back to.
  std::optional<double> loss;
  std::optional<double> rtn_loss;  ///< the same loss of plain rounding to nearest in the same scheme
  std::optional<double> damping;   ///< share of the mean diagonal of H that was added to it
  /// Share of the correction for inputs that compression had changed already; the loss is then that against
  /// the corrected target.
  std::optional<double> mismatch_weight;

  std::string rung;          ///< step of the numerical ladder that succeeded: "cholesky"; empty: no ladder
  int64_t rung_index = 0;    ///< its position, 0 being the regular way
  bool fell_back = false;    ///< the method's result was replaced by another's
  std::string fallback;      ///< by which and why: "rtn: loss 1.2 above that of rounding 1.1"
  int64_t dead_columns = 0;  ///< input channels that were zero on all calibration tokens
  /// How the operator multiplies a rounded input: "int8 product" or "simulation"; empty: the input is not
  /// rounded.
  std::string product;
  /// Of the input that the operator shares with its group, at the first operator of the group.
  std::vector<OutlierFeature> outliers;
  int64_t tokens = 0;  ///< calibration tokens seen by its statistics
  double seconds = 0;  ///< wall time of the solve

  bool operator==(const OperatorRow&) const = default;
};

/// Wall seconds of one block by phase, and what the compression did to its output.
struct BlockRow {
  int64_t block = 0;
  double load_seconds = 0;
  double calibrate_seconds = 0;
  double solve_seconds = 0;
  double forward_seconds = 0;
  double write_seconds = 0;
  bool resumed = false;  ///< taken from the journal of an earlier run; its seconds are of that run
  /// |Y - Y'|_F / |Y|_F of the hidden states behind it on the windows of the evaluation, dense against ours;
  /// only an evaluation with `reference` measures it.
  std::optional<double> output_drift;

  double seconds() const {
    return load_seconds + calibrate_seconds + solve_seconds + forward_seconds + write_seconds;
  }
  bool operator==(const BlockRow&) const = default;
};

/// A feature dimension that had outliers, over all blocks, by the criteria of Dettmers et al. 2022.
struct OutlierRow {
  std::string kind;  ///< first operator that reads the features: "q_proj"
  int64_t feature = 0;
  double layers = 0;        ///< share of the blocks in which some token had an outlier there
  double tokens = 0;        ///< share of the tokens that had one, over these blocks
  bool systematic = false;  ///< at least 25 % of the layers and 6 % of the tokens

  bool operator==(const OutlierRow&) const = default;
};

/// The features of the operators' rows, gathered over the blocks: those of one kind together, the most layers
/// and tokens first.
std::vector<OutlierRow> outlier_features(const std::vector<OperatorRow>& operators, int64_t blocks);

/// A published file.
struct FileRow {
  std::string path;  ///< relative to the output directory
  int64_t bytes = 0;
  std::string hash;  ///< content hash (XXH3-128)

  bool operator==(const FileRow&) const = default;
};

/// Size of the model before and after: tensors only, as stored, without file headers and tokenizer.
struct Totals {
  int64_t parameters = 0;
  /// Of the matrices that the output stands for: fewer where units were deleted; zeros count, factors do not.
  std::optional<int64_t> parameters_after;
  /// Of operators that became factors or sums of such, where there are any: the numbers that the whole output
  /// is made of, and multiply-adds per token of all operators of its blocks.
  std::optional<int64_t> numbers_after;
  std::optional<int64_t> macs_before;
  std::optional<int64_t> macs_after;
  int64_t compressed_parameters = 0;  ///< of them in operators that a pass changed
  int64_t bytes_before = 0;
  int64_t bytes_after = 0;
  std::optional<double> bits_per_weight;           ///< 8 * bytes_after / parameters_after
  std::optional<double> operator_bits_per_weight;  ///< the same over the operators that a pass changed
  std::vector<FileRow> files;

  bool operator==(const Totals&) const = default;
};

/// Wall and processor seconds of one phase of the run ("load", "calibrate", "solve", "verify" ...).
struct PhaseRow {
  std::string phase;
  double wall_seconds = 0;
  double cpu_seconds = 0;  ///< user and system, over all threads

  bool operator==(const PhaseRow&) const = default;
};

/// Where the time went. A resumed run counts its own process only.
struct Timings {
  double wall_seconds = 0;
  double cpu_user_seconds = 0;
  double cpu_system_seconds = 0;   ///< in the kernel: page faults, reading, writing
  int64_t peak_rss_bytes = 0;      ///< highest resident set of the process
  int64_t planned_peak_bytes = 0;  ///< what was estimated for it before the run
  std::vector<PhaseRow> phases;    ///< disjoint, in order of first use

  bool operator==(const Timings&) const = default;
};

/// The matrix products of one phase against what this machine's GEMM reaches in the same run.
struct RooflineRow {
  std::string phase;      ///< "forward", "statistics" ...
  std::string precision;  ///< "f32" or "bf16"
  double flops = 0;       ///< counted from the shapes
  double seconds = 0;     ///< processor seconds of the phase, over all threads
  double peak_gflops =
      0;  ///< best matrix product of one thread at this precision, measured in this run; 0: not measured

  std::optional<double> achieved_gflops() const;  ///< flops / seconds / 1e9
  std::optional<double> share() const;            ///< achieved / peak
  bool operator==(const RooflineRow&) const = default;
};

/// One model on one text.
struct EvaluationRow {
  std::string model;  ///< "dense" or "compressed"
  std::string text;   ///< file
  std::string text_hash;
  std::string tokenizer_hash;
  std::optional<double> perplexity;
  int64_t tokens = 0;  ///< predicted tokens that the mean is over
  int64_t windows = 0;
  int64_t window = 0;                    ///< tokens in one
  int64_t stride = 0;                    ///< tokens from one start to the next
  std::optional<double> kl_mean;         ///< nats per token, KL(dense || this)
  std::optional<double> top1_agreement;  ///< share of tokens where both rank the same token first
  /// Of encoders, whose windows are sentences: cosine of the sentence embedding with the dense model's, mean
  /// and minimum over the sentences.
  std::optional<double> embedding_cosine;
  std::optional<double> embedding_cosine_min;
  std::optional<double> rank_correlation;  ///< Spearman's, of the similarities of all pairs of sentences
  double seconds = 0;
  std::string protocol;  ///< the measurement in a sentence

  bool operator==(const EvaluationRow&) const = default;
};

/// The output reopened from disk, every tensor decoded and compared with what the passes computed.
struct Verification {
  bool passed = false;
  int64_t tensors_decoded = 0;
  int64_t tensors_compared = 0;
  int64_t files_hashed = 0;
  double seconds = 0;
  std::string message;  ///< what differed, when it did not pass

  bool operator==(const Verification&) const = default;
};

/// A run from start to end, or to where it has come.
struct RunReport {
  std::string version;  ///< of lcomp
  RunStatus status = RunStatus::kRunning;
  std::string message;      ///< of the error, when the run failed
  std::string started_at;   ///< UTC, "2024-05-01T12:00:00Z"
  std::string finished_at;  ///< empty while running
  std::string output;       ///< directory that the run publishes

  std::string job_json;  ///< the resolved job: run again, it gives the same bytes
  HostFacts host;
  ModelFacts model;
  std::optional<CalibrationFacts> calibration;  ///< absent when no pass needs data
  std::vector<PassFacts> passes;

  std::vector<OperatorRow> operators;
  std::vector<BlockRow> blocks;
  std::vector<OutlierRow> outliers;  ///< empty when no pass looked for any
  Totals totals;
  Timings timings;
  std::vector<RooflineRow> roofline;
  std::vector<EvaluationRow> evaluation;
  std::optional<Verification> verification;
  std::vector<std::string> warnings;

  bool operator==(const RunReport&) const = default;
};

/// The report as JSON (keys in `docs/report.md`). Numbers that are not finite are written as null.
std::string to_json(const RunReport& report);

/// Reads what `to_json` wrote: `from_json(to_json(r)) == r` when all numbers are finite and the job is JSON
/// indented by two. Missing keys keep their defaults and unknown ones are skipped, so that reports of other
/// versions can be read. Throws `CorruptFile` naming the JSON pointer of a value of the wrong type.
RunReport from_json(std::string_view text);

}  // namespace lcomp::pipeline

namespace lcomp {

template <>
struct EnumNames<pipeline::RunStatus> {
  static constexpr std::array<std::string_view, 4> names = {"running", "done", "interrupted", "failed"};
};

}  // namespace lcomp
