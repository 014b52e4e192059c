#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/calib/token_samples.h"
#include "lcomp/core/options.h"
#include "lcomp/lowrank/embedding.h"
#include "lcomp/pipeline/method.h"

namespace lcomp::pipeline {

/// Precision of the matrix products of the forward passes; sums are always float32.
enum class Compute { kAuto, kF32, kBf16 };

using calib::ShortSamples;

/// Where the hidden states between two blocks are kept.
enum class CachePlace { kAuto, kMemory, kDisk };

enum class WriteFormat { kCompressedTensors, kDense };

struct CalibrationOptions {
  std::string text;  ///< .txt, .jsonl, or .json with token ids; empty when no pass needs it
  std::string jsonl_field = "text";
  int64_t samples = 32;
  int64_t length = 2048;  ///< tokens per sample
  int64_t starts = 0;     ///< 0: one per sample; else windows of mixed lengths in the same token budget
  ShortSamples short_samples = ShortSamples::kPack;  ///< "short" in job files
  CachePlace cache = CachePlace::kAuto;

  void visit(FieldVisitor& v);
};

struct WriteOptions {
  WriteFormat format = WriteFormat::kCompressedTensors;
  int64_t shard_size = 4'000'000'000;  ///< bytes

  void visit(FieldVisitor& v);
};

struct EvaluateOptions {
  std::string text;
  int64_t window = 2048;    ///< tokens
  int64_t stride = 0;       ///< tokens between the starts of windows; 0: the window, no overlap
  int64_t max_windows = 0;  ///< 0: all
  bool reference = false;   ///< also KL and top-1 agreement against the dense model

  void visit(FieldVisitor& v);
};

/// Other settings for some of the operators of a pass.
struct Override {
  std::vector<std::string> match;  ///< patterns, as in `PassSpec::targets`
  /// All settings, not only those that differ from the pass's own.
  std::shared_ptr<const PassOptions> options;
};

/// One entry of "passes". How patterns match: `pipeline/targets.h`.
struct PassSpec {
  std::string method;
  std::vector<std::string> targets;  ///< patterns of operators to compress; empty: all
  std::vector<std::string> ignore;   ///< patterns of operators to leave alone
  std::shared_ptr<const PassOptions> options;
  std::vector<Override> overrides;  ///< the last one that matches an operator decides
};

/// What `lcomp run` is asked to do. The JSON names are those of the fields, except "short" for
/// `short_samples`.
struct Job {
  std::string model;   ///< checkpoint directory
  std::string output;  ///< directory to be made
  int64_t seed = 0;
  int64_t max_memory = 0;  ///< bytes; 0: no bound
  Compute compute = Compute::kAuto;
  int64_t threads = 0;  ///< 0: all processors
  bool strict = false;  ///< numerical trouble ends the run instead of being worked around
  CalibrationOptions calibration;
  std::optional<lowrank::EmbeddingOptions> embedding;  ///< compress the token embedding as well
  std::vector<PassSpec> passes;                        ///< may be empty where the embedding is compressed
  WriteOptions write;
  std::optional<EvaluateOptions> evaluate;
};

/// Reads a job from strict JSON with comments. Paths stay as they are written. Throws `ConfigError` that
/// lists every error on a line of its own: `[where: /json/pointer] what must hold; what came`.
Job parse_job(std::string_view json_text, const std::string& where, const MethodTable& methods);

/// Reads a job file, after writing `sets` ("/json/pointer=value") into it. A value is read as JSON and, where
/// it is none, taken as a string; `null` removes the key. Relative paths of the file are relative to its
/// directory, those in `sets` to the current directory; the job has absolute ones.
Job load_job(const std::string& path, const MethodTable& methods, const std::vector<std::string>& sets = {});

/// The job with every default spelled out; `parse_job` of it gives the same job.
std::string to_json(const Job& job);

/// JSON Schema (draft 7) of job files.
std::string job_schema(const MethodTable& methods);

/// Markdown tables of every key of a job file: first the job's own, then those of each method.
std::string job_tables(const MethodTable& methods);

/// Markdown table of the settings of one method.
std::string method_table(const MethodInfo& method);

}  // namespace lcomp::pipeline

namespace lcomp {

template <>
struct EnumNames<pipeline::Compute> {
  static constexpr std::array<std::string_view, 3> names = {"auto", "f32", "bf16"};
};
template <>
struct EnumNames<pipeline::CachePlace> {
  static constexpr std::array<std::string_view, 3> names = {"auto", "memory", "disk"};
};
template <>
struct EnumNames<pipeline::WriteFormat> {
  static constexpr std::array<std::string_view, 2> names = {"compressed-tensors", "dense"};
};

}  // namespace lcomp
