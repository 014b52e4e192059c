#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <memory>

#include "cli/command.h"
#include "lcomp/core/error.h"
#include "lcomp/core/options.h"
#include "lcomp/eval/latency.h"
#include "lcomp/io/files.h"

namespace lcomp::cli {
namespace {

using eval::Latency;
using linalg::Precision;
using sparse::SparseFormat;

struct BenchArguments {
  std::string directory;
  std::string rival;
  std::string shape;
  std::vector<double> densities = {0.5, 0.3, 0.2, 0.1, 0.05};
  std::vector<std::string> storages = {"csr", "bitmask", "2:4", "tiled_csl", "blocked_ell"};
  std::vector<int64_t> batches = {1, 8, 64};
  int64_t tokens = 128;
  int64_t repeat = 15;
  std::string compute = "auto";
  std::string latency_table;
};

void declare(CLI::App& app, BenchArguments& arguments) {
  CLI::Option* directory = app.add_option("DIR", arguments.directory, "Model directory, dense or compressed");
  CLI::Option* vs = app.add_option("--vs", arguments.rival,
                                   "Model to compare with, run dense; without it the same matrices, dense");
  CLI::Option* shape =
      app.add_option("--shape", arguments.shape, "Random matrices of this shape in place of a model");
  app.add_option("--density", arguments.densities, "With --shape: shares of elements that are not 0")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::Range(1e-6, 1.0).description(""))
      ->needs(shape)
      ->type_name("LIST");
  app.add_option("--storage", arguments.storages, "With --shape: how they are stored")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember(arguments.storages).description(""))
      ->needs(shape)
      ->type_name("LIST");
  app.add_option("--batch", arguments.batches, "Tokens of the products")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16).description(""))
      ->type_name("LIST");
  app.add_option("--tokens", arguments.tokens, "Tokens of the sample that passes all blocks; 0: none does")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20).description(""))
      ->type_name("N");
  app.add_option("--repeat", arguments.repeat, "Rounds, in each of which both rivals are timed")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20).description(""))
      ->type_name("N");
  app.add_option("--compute", arguments.compute,
                 "Precision of dense products; auto: bf16 where the processor multiplies it")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "f32", "bf16"}));
  app.add_option("--latency-table", arguments.latency_table,
                 "Only measure what blocks of each width cost on samples of --tokens, and write it here: the "
                 "latency_table of fisher_mask")
      ->needs(directory)
      ->excludes(vs)
      ->type_name("FILE");
  shape->type_name("OUTxIN")->excludes(directory)->excludes(vs);
  vs->type_name("DIR")->needs(directory);
}

/// "1536x576".
std::pair<int64_t, int64_t> parse_shape(const std::string& text) {
  int64_t out = 0, in = 0;
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, out);
  if (first.ec == std::errc() && first.ptr != end && *first.ptr == 'x') {
    const auto second = std::from_chars(first.ptr + 1, end, in);
    if (second.ec == std::errc() && second.ptr == end && out > 0 && in > 0) return {out, in};
  }
  throw InvalidArgument("--shape", fmt::format("must be OUTxIN, two numbers from 1 up; got '{}'", text));
}

SparseFormat format_named(const std::string& name) {
  const auto& names = EnumNames<SparseFormat>::names;
  return static_cast<SparseFormat>(std::find(names.begin(), names.end(), name) - names.begin());
}

std::vector<Latency> storages(const BenchArguments& arguments, const eval::LatencyOptions& options,
                              ThreadPool& pool, Observer& observer) {
  const auto [out, in] = parse_shape(arguments.shape);
  std::vector<std::pair<SparseFormat, double>> cases;
  for (const std::string& name : arguments.storages) {
    const SparseFormat format = format_named(name);
    for (const double density : arguments.densities) {
      cases.emplace_back(format, density);
      if (format == SparseFormat::kTwoOfFour) break;  // has one density
    }
  }
  std::vector<Latency> rows;
  for (size_t i = 0; i < cases.size(); ++i) {
    const auto& [format, density] = cases[i];
    if (observer.cancelled()) throw Interrupted("bench", "the measurement was asked to stop");
    observer.progress({"timing storages", static_cast<int64_t>(i), static_cast<int64_t>(cases.size()),
                       std::string(name_of(format))});
    const auto more = eval::storage_latencies(out, in, density, format, options, pool);
    rows.insert(rows.end(), more.begin(), more.end());
  }
  return rows;
}

std::vector<Latency> models(const BenchArguments& arguments, const eval::LatencyOptions& options,
                            ThreadPool& pool, Observer& observer) {
  if (arguments.directory.empty()) throw InvalidArgument("bench", "DIR or --shape must be given; neither is");
  const model::Model model = model::Model::open(arguments.directory);
  std::optional<model::Model> rival;
  if (!arguments.rival.empty()) rival = model::Model::open(arguments.rival);
  const model::Model* vs = rival ? &*rival : nullptr;
  std::vector<Latency> rows = eval::operator_latencies(model, vs, options, pool, observer);
  if (arguments.tokens > 0)
    rows.push_back(eval::block_latency(model, vs, arguments.tokens, options, observer));
  return rows;
}

std::string text_of(const std::vector<Latency>& rows, const std::string& protocol, bool densities) {
  std::string text = fmt::format("{:<14}{:>8}{:>7}{:>12}{:>12}{:>9}\n", densities ? "storage" : "operator",
                                 densities ? "density" : "", "batch", "dense ms", "this ms", "ratio");
  for (const Latency& row : rows) {
    text +=
        fmt::format("{:<14}{:>8}{:>7}{:>12.4f}{:>12.4f}{:>8.2f}x{}\n", row.name,
                    densities ? fmt::format("{:.3f}", row.density) : "", row.tokens, 1e3 * row.dense.median(),
                    1e3 * row.measured.median(), eval::speedup(row.measured, row.dense),
                    eval::is_faster(row.measured, row.dense) ? "" : "  not faster");
  }
  return text + protocol + "\n";
}

Json json_of(const Latency& row) {
  const auto timing = [](const eval::Timing& of) {
    return Json{{"median_ms", 1e3 * of.median()}, {"p90_ms", 1e3 * of.p90()}};
  };
  return {{"name", row.name},
          {"stored", row.stored},
          {"density", row.density},
          {"tokens", row.tokens},
          {"measured", timing(row.measured)},
          {"dense", timing(row.dense)},
          {"speedup", eval::speedup(row.measured, row.dense)},
          {"faster", eval::is_faster(row.measured, row.dense)},
          {"bytes", row.bytes},
          {"dense_bytes", row.dense_bytes}};
}

/// Widths of the feed-forward part that are timed.
constexpr int64_t kTableSteps = 16;

Answer write_latency_table(const BenchArguments& arguments, ThreadPool& pool) {
  const model::Model model = model::Model::open(arguments.directory);
  const int64_t steps = std::min(kTableSteps, model.architecture().intermediate_size);
  eval::TimingOptions timing;
  timing.repeats = arguments.repeat;
  const eval::LatencyTable table =
      eval::latency_table(model.architecture(), std::max<int64_t>(1, arguments.tokens), steps, &pool, timing);
  io::write_file_atomic(arguments.latency_table, eval::to_json(table));
  Answer answer;
  answer.json = Json::parse(eval::to_json(table));
  answer.text =
      fmt::format("{}: attention {:.3g} to {:.3g} ms, mlp {:.3g} to {:.3g} ms a block of {} tokens\n",
                  arguments.latency_table, 1e3 * table.attention.at(1), 1e3 * table.attention.back(),
                  1e3 * table.mlp.at(1), 1e3 * table.mlp.back(), arguments.tokens);
  return answer;
}

Answer bench(const BenchArguments& arguments, int threads, Observer& observer) {
  ThreadPool pool(threads);
  if (!arguments.latency_table.empty()) return write_latency_table(arguments, pool);
  eval::LatencyOptions options;
  options.tokens = arguments.batches;
  options.timing.repeats = arguments.repeat;
  const bool bf16 = arguments.compute == "bf16" || (arguments.compute == "auto" && linalg::has_native_bf16());
  options.precision = bf16 ? Precision::kBf16 : Precision::kF32;
  const bool by_shape = !arguments.shape.empty();
  const auto rows =
      by_shape ? storages(arguments, options, pool, observer) : models(arguments, options, pool, observer);
  const std::string clock = pool.size() == 1 ? std::string("processor time of one thread")
                                             : fmt::format("wall time of {} threads", pool.size());
  const char* compute = bf16 ? "bf16" : "f32";
  const std::string protocol = fmt::format(
      "medians of {} rounds of both in turn, {}, dense products in {}; faster: a lower median and "
      "three of four rounds won",
      arguments.repeat, clock, compute);
  Json json = {{"threads", pool.size()},
               {"rounds", arguments.repeat},
               {"compute", compute},
               {"protocol", protocol},
               {"rows", Json::array()}};
  for (const Latency& row : rows) json["rows"].push_back(json_of(row));
  return {text_of(rows, protocol, by_shape), json};
}

}  // namespace

Command bench_command() {
  const auto arguments = std::make_shared<BenchArguments>();
  Command command;
  command.name = "bench";
  command.summary = "Measure how fast a compressed model or a storage is beside its dense rival";
  command.declare = [arguments](CLI::App& app) { declare(app, *arguments); };
  command.run = [arguments](const CommonOptions& common, Observer& observer) {
    return bench(*arguments, common.threads.value_or(1), observer);
  };
  return command;
}

}  // namespace lcomp::cli
