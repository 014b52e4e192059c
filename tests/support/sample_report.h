#pragma once

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "lcomp/pipeline/report_data.h"

/// Made-up reports that look like real ones, for tests of what is done with a report.
namespace lcomp::test {

/// Shape of the pretended model.
struct SampleModel {
  std::string name = "smollm2-135m-instruct";
  int64_t blocks = 30;
  int64_t hidden = 576;
  int64_t intermediate = 1536;
  int64_t key_value = 192;
  int64_t vocabulary = 49152;
};

/// A number in [0, 1) that depends on its arguments alone.
inline double sample_noise(int64_t a, int64_t b) {
  const double x = std::sin(static_cast<double>(a) * 12.9898 + static_cast<double>(b) * 78.233) * 43758.5453;
  return x - std::floor(x);
}

struct SampleKind {
  std::string kind;
  std::string path;
  int64_t out = 0;
  int64_t in = 0;
  double error = 0;
};

inline std::vector<SampleKind> sample_kinds(const SampleModel& m) {
  return {{"q_proj", "self_attn.q_proj", m.hidden, m.hidden, 0.041},
          {"k_proj", "self_attn.k_proj", m.key_value, m.hidden, 0.036},
          {"v_proj", "self_attn.v_proj", m.key_value, m.hidden, 0.083},
          {"o_proj", "self_attn.o_proj", m.hidden, m.hidden, 0.088},
          {"gate_proj", "mlp.gate_proj", m.intermediate, m.hidden, 0.064},
          {"up_proj", "mlp.up_proj", m.intermediate, m.hidden, 0.079},
          {"down_proj", "mlp.down_proj", m.hidden, m.intermediate, 0.097}};
}

/// Bytes of a symmetric group-quantized matrix with 16-bit scales.
inline int64_t sample_bytes(int64_t out, int64_t in, int64_t bits) {
  return out * in * bits / 8 + out * (in / 64) * 2;
}

inline pipeline::OperatorRow sample_operator(const SampleKind& k, int64_t block, int64_t position) {
  const double noise = sample_noise(block, position);
  const int64_t bits = k.kind == "down_proj" && block < 2 ? 8 : 4;
  pipeline::OperatorRow row;
  row.name = fmt::format("model.layers.{}.{}", block, k.path);
  row.kind = k.kind;
  row.block = block;
  row.method = "gptq";
  row.scheme = fmt::format("int{} symmetric, groups of 64", bits);
  row.out_features = k.out;
  row.in_features = k.in;
  row.bytes_before = 2 * k.out * k.in;
  row.bytes_after = sample_bytes(k.out, k.in, bits);
  row.bits_per_weight = 8.0 * static_cast<double>(row.bytes_after) / static_cast<double>(k.out * k.in);
  const double scale = bits == 8 ? 0.07 : 1.0;
  row.weight_error = scale * (0.102 + 0.02 * noise);
  row.activation_error = scale * k.error * (0.75 + 0.6 * noise + 0.012 * static_cast<double>(block));
  row.max_abs_error = scale * (0.11 + 0.3 * noise);
  row.loss = 1.5e3 * *row.activation_error * *row.activation_error;
  row.rtn_loss = *row.loss * (1.18 + 0.9 * sample_noise(position, block));
  row.damping = 0.01;
  row.rung = "cholesky";
  row.tokens = 16384;
  row.seconds = 0.03 + 0.05 * noise * static_cast<double>(k.in) / 576.0;
  return row;
}

/// One operator that needed more damping and one that fell back, where there are blocks enough.
inline void add_numerical_trouble(std::vector<pipeline::OperatorRow>& rows) {
  if (rows.size() < 21) return;
  auto& damped = rows[9];
  damped.rung = "more damping";
  damped.rung_index = 1;
  damped.damping = 0.1;
  damped.dead_columns = 12;
  auto& replaced = rows[rows.size() - 8];
  replaced.rung = "more damping";
  replaced.rung_index = 1;
  replaced.damping = 0.03;
  replaced.fell_back = true;
  replaced.loss = 1.07 * *replaced.rtn_loss;
  replaced.fallback = fmt::format("rtn: the loss {:.4g} is above that of rounding, {:.4g}", *replaced.loss,
                                  *replaced.rtn_loss);
}

inline pipeline::BlockRow sample_block(int64_t block) {
  pipeline::BlockRow row;
  row.block = block;
  row.load_seconds = 0.05 + 0.03 * sample_noise(block, 101);
  row.calibrate_seconds = 1.21 + 0.2 * sample_noise(block, 102);
  row.solve_seconds = 0.52 + 0.1 * sample_noise(block, 103);
  row.forward_seconds = 0.74 + 0.1 * sample_noise(block, 104);
  row.write_seconds = 0.04 + 0.02 * sample_noise(block, 105);
  row.output_drift = 0.02 + 0.004 * static_cast<double>(block) + 0.01 * sample_noise(block, 106);
  return row;
}

inline pipeline::CalibrationFacts sample_calibration() {
  pipeline::CalibrationFacts facts;
  facts.file = "texts/calibration-wiki.txt";
  facts.text_hash = "5f1d7a84ff2f8cbbd30a0fb2d2a7c9f1";
  facts.tokenizer_hash = "0a9be1c2d3f4455667788990aabbccdd";
  facts.samples = 74;
  facts.tokens = 16384;
  facts.sequence_starts = 74;
  facts.lengths = {{64, 32}, {128, 24}, {256, 8}, {512, 4}, {1024, 5}, {2048, 1}};
  facts.short_policy = "pack";
  facts.short_packed = 212;
  return facts;
}

inline std::vector<pipeline::EvaluationRow> sample_evaluation() {
  pipeline::EvaluationRow dense;
  dense.model = "dense";
  dense.text = "texts/wikitext2-test.txt";
  dense.text_hash = "c0ffee5f1d7a84ff2f8cbbd30a0fb2d2";
  dense.tokenizer_hash = "0a9be1c2d3f4455667788990aabbccdd";
  dense.perplexity = 20.70993;
  dense.tokens = 32752;
  dense.windows = 16;
  dense.window = 2048;
  dense.stride = 2048;
  dense.seconds = 71.2;
  dense.protocol =
      "Text tokenized whole without special tokens; windows of 2048 tokens without overlap, the first 16; "
      "mean "
      "loss over the last 2047 tokens of each; float32 arithmetic.";
  auto compressed = dense;
  compressed.model = "compressed";
  compressed.perplexity = 25.93127;
  compressed.kl_mean = 0.21934;
  compressed.top1_agreement = 0.78431;
  compressed.seconds = 73.9;
  return {dense, compressed};
}

inline void add_totals(pipeline::RunReport& report, const SampleModel& model) {
  auto& totals = report.totals;
  int64_t operators_after = 0;
  for (const auto& row : report.operators) {
    totals.compressed_parameters += row.out_features * row.in_features;
    operators_after += row.bytes_after;
  }
  const int64_t rest = model.vocabulary * model.hidden + (2 * model.blocks + 1) * model.hidden;
  totals.parameters = totals.compressed_parameters + rest;
  totals.bytes_before = 2 * totals.parameters;
  totals.bytes_after = operators_after + 2 * rest;
  totals.bits_per_weight =
      8.0 * static_cast<double>(totals.bytes_after) / static_cast<double>(totals.parameters);
  if (totals.compressed_parameters > 0)
    totals.operator_bits_per_weight =
        8.0 * static_cast<double>(operators_after) / static_cast<double>(totals.compressed_parameters);
  totals.files = {{"model.safetensors", totals.bytes_after + 98304, "8d3c5ad4f7b0441aa3b5ed4e4f0e6d11"},
                  {"config.json", 1874, "77aa02b6de5d4b1cb4e68e9a26ad6f5e"},
                  {"tokenizer.json", 2104556, "0a9be1c2d3f4455667788990aabbccdd"},
                  {"lcomp.json", 81234, "1b2c3d4e5f60718293a4b5c6d7e8f901"}};
}

inline void add_times(pipeline::RunReport& report) {
  auto& timings = report.timings;
  pipeline::BlockRow sum;
  for (const auto& row : report.blocks) {
    sum.load_seconds += row.load_seconds;
    sum.calibrate_seconds += row.calibrate_seconds;
    sum.solve_seconds += row.solve_seconds;
    sum.forward_seconds += row.forward_seconds;
    sum.write_seconds += row.write_seconds;
  }
  timings.phases = {{"load", sum.load_seconds, 0.9 * sum.load_seconds},
                    {"calibrate", sum.calibrate_seconds, 1.93 * sum.calibrate_seconds},
                    {"solve", sum.solve_seconds, 1.88 * sum.solve_seconds},
                    {"forward", sum.forward_seconds, 1.95 * sum.forward_seconds},
                    {"write", sum.write_seconds, 0.6 * sum.write_seconds},
                    {"verify", 1.9, 2.1},
                    {"evaluate", 145.1, 281.7}};
  for (const auto& phase : timings.phases) {
    timings.wall_seconds += phase.wall_seconds;
    timings.cpu_user_seconds += 0.96 * phase.cpu_seconds;
    timings.cpu_system_seconds += 0.04 * phase.cpu_seconds;
  }
  timings.wall_seconds += 1.4;
  timings.peak_rss_bytes = 431'226'880;
  timings.planned_peak_bytes = 450'000'000;
  report.roofline = {{"forward", "f32", 6.42e10 * sum.forward_seconds, sum.forward_seconds, 96.4},
                     {"statistics", "f32", 5.87e10 * sum.calibrate_seconds, sum.calibrate_seconds, 96.4}};
}

/// A finished W4 GPTQ run over `model`.
inline pipeline::RunReport sample_report(const SampleModel& model = {}) {
  pipeline::RunReport report;
  report.version = "0.1.0";
  report.status = pipeline::RunStatus::kDone;
  report.started_at = "2024-05-01T12:00:00Z";
  report.finished_at = "2024-05-01T12:04:31Z";
  report.output = "out/" + model.name + "-w4";
  report.job_json =
      "{\n  \"model\": \"models/" + model.name + "\",\n  \"output\": \"" + report.output +
      "\",\n  \"seed\": 0,\n  \"passes\": [\n    {\n      \"method\": \"gptq\",\n      \"bits\": 4,"
      "\n      \"group_size\": 64\n    }\n  ]\n}";
  report.host = {"AMD EPYC 7B13", {"avx2", "fma", "f16c"}, 2, 2, 8'323'391'488, "f32"};
  report.calibration = sample_calibration();
  report.passes = {
      {"gptq", "int4 symmetric, groups of 64, activation order (static groups)", 7 * model.blocks}};
  for (int64_t block = 0; block < model.blocks; ++block) {
    int64_t position = 0;
    for (const auto& kind : sample_kinds(model))
      report.operators.push_back(sample_operator(kind, block, position++));
    report.blocks.push_back(sample_block(block));
  }
  add_numerical_trouble(report.operators);
  add_totals(report, model);
  add_times(report);
  report.model = {"models/" + model.name,   "llama",      "bfloat16",
                  report.totals.parameters, model.blocks, report.totals.bytes_before};
  report.evaluation = sample_evaluation();
  report.verification =
      pipeline::Verification{true, 30 * model.blocks + 3, 30 * model.blocks + 3, 4, 1.9, ""};
  report.warnings = {
      "the calibration set has 74 sequence starts; fewer than 64 would make the second moments depend on "
      "them",
      "lm_head is tied to the embeddings and was left dense"};
  return report;
}

/// The same run, seen after `blocks_done` blocks.
inline pipeline::RunReport sample_running_report(const SampleModel& model, int64_t blocks_done) {
  pipeline::RunReport report = sample_report(model);
  report.status = pipeline::RunStatus::kRunning;
  report.finished_at.clear();
  report.operators.resize(static_cast<size_t>(7 * blocks_done));
  report.blocks.resize(static_cast<size_t>(blocks_done));
  report.evaluation.clear();
  report.verification.reset();
  report.totals = {};
  report.totals.parameters = report.model.parameters;
  report.totals.bytes_before = report.model.bytes;
  report.timings = {};
  add_times(report);
  report.timings.phases.resize(5);
  return report;
}

inline SampleModel demo_model() {
  return {"lcomp-demo", 4, 192, 512, 64, 2048};
}

inline SampleModel big_model() {
  return {"llama-3-70b", 80, 8192, 28672, 1024, 128256};
}

}  // namespace lcomp::test
