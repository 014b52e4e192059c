#include <concepts>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/pipeline/report_data.h"

namespace lcomp::pipeline {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "lcomp-report";
constexpr int64_t kFormatVersion = 1;

// Each struct names its fields once; writing and reading are two visitors of the same list. `derived` names
// numbers that follow from the others: written for the reader's convenience, never read back.
template <class T, class Struct>
concept Is = std::same_as<std::remove_const_t<T>, Struct>;

template <class V>
void visit(V& v, Is<HostFacts> auto& f) {
  v("processor", f.processor);
  v("instructions", f.instructions);
  v("logical_cores", f.logical_cores);
  v("threads", f.threads);
  v("memory_bytes", f.memory_bytes);
  v("compute", f.compute);
}

template <class V>
void visit(V& v, Is<ModelFacts> auto& f) {
  v("path", f.path);
  v("family", f.family);
  v("dtype", f.dtype);
  v("parameters", f.parameters);
  v("blocks", f.blocks);
  v("bytes", f.bytes);
}

template <class V>
void visit(V& v, Is<LengthCount> auto& f) {
  v("length", f.length);
  v("count", f.count);
}

template <class V>
void visit(V& v, Is<CalibrationFacts> auto& f) {
  v("file", f.file);
  v("text_hash", f.text_hash);
  v("tokenizer_hash", f.tokenizer_hash);
  v("samples", f.samples);
  v("tokens", f.tokens);
  v("sequence_starts", f.sequence_starts);
  v("lengths", f.lengths);
  v("short_policy", f.short_policy);
  v("short_dropped", f.short_dropped);
  v("short_packed", f.short_packed);
}

template <class V>
void visit(V& v, Is<PassFacts> auto& f) {
  v("method", f.method);
  v("summary", f.summary);
  v("operators", f.operators);
}

template <class V>
void visit(V& v, Is<OutlierFeature> auto& f) {
  v("feature", f.feature);
  v("tokens", f.tokens);
}

template <class V>
void visit(V& v, Is<OutlierRow> auto& f) {
  v("kind", f.kind);
  v("feature", f.feature);
  v("layers", f.layers);
  v("tokens", f.tokens);
  v("systematic", f.systematic);
}

template <class V>
void visit(V& v, Is<OperatorRow> auto& f) {
  v("name", f.name);
  v("kind", f.kind);
  v("block", f.block);
  v("pass", f.pass);
  v("method", f.method);
  v("scheme", f.scheme);
  v("out_features", f.out_features);
  v("in_features", f.in_features);
  v("bits_per_weight", f.bits_per_weight);
  v("bytes_before", f.bytes_before);
  v("bytes_after", f.bytes_after);
  v("parameters", f.parameters);
  v("macs", f.macs);
  v("weight_error", f.weight_error);
  v("activation_error", f.activation_error);
  v("max_abs_error", f.max_abs_error);
  v("loss", f.loss);
  v("rtn_loss", f.rtn_loss);
  v("damping", f.damping);
  v("mismatch_weight", f.mismatch_weight);
  v("rung", f.rung);
  v("rung_index", f.rung_index);
  v("fell_back", f.fell_back);
  v("fallback", f.fallback);
  v("dead_columns", f.dead_columns);
  v("product", f.product);
  v("outliers", f.outliers);
  v("tokens", f.tokens);
  v("seconds", f.seconds);
}

template <class V>
void visit(V& v, Is<BlockRow> auto& f) {
  v("block", f.block);
  v("load_seconds", f.load_seconds);
  v("calibrate_seconds", f.calibrate_seconds);
  v("solve_seconds", f.solve_seconds);
  v("forward_seconds", f.forward_seconds);
  v("write_seconds", f.write_seconds);
  v("resumed", f.resumed);
  v("output_drift", f.output_drift);
}

template <class V>
void visit(V& v, Is<FileRow> auto& f) {
  v("path", f.path);
  v("bytes", f.bytes);
  v("hash", f.hash);
}

template <class V>
void visit(V& v, Is<Totals> auto& f) {
  v("parameters", f.parameters);
  v("parameters_after", f.parameters_after);
  v("numbers_after", f.numbers_after);
  v("macs_before", f.macs_before);
  v("macs_after", f.macs_after);
  v("compressed_parameters", f.compressed_parameters);
  v("bytes_before", f.bytes_before);
  v("bytes_after", f.bytes_after);
  v("bits_per_weight", f.bits_per_weight);
  v("operator_bits_per_weight", f.operator_bits_per_weight);
  v("files", f.files);
}

template <class V>
void visit(V& v, Is<PhaseRow> auto& f) {
  v("phase", f.phase);
  v("wall_seconds", f.wall_seconds);
  v("cpu_seconds", f.cpu_seconds);
}

template <class V>
void visit(V& v, Is<Timings> auto& f) {
  v("wall_seconds", f.wall_seconds);
  v("cpu_user_seconds", f.cpu_user_seconds);
  v("cpu_system_seconds", f.cpu_system_seconds);
  v("peak_rss_bytes", f.peak_rss_bytes);
  v("planned_peak_bytes", f.planned_peak_bytes);
  v("phases", f.phases);
}

template <class V>
void visit(V& v, Is<RooflineRow> auto& f) {
  v("phase", f.phase);
  v("precision", f.precision);
  v("flops", f.flops);
  v("seconds", f.seconds);
  v("peak_gflops", f.peak_gflops);
  v.derived("achieved_gflops", f.achieved_gflops());
  v.derived("share", f.share());
}

template <class V>
void visit(V& v, Is<EvaluationRow> auto& f) {
  v("model", f.model);
  v("text", f.text);
  v("text_hash", f.text_hash);
  v("tokenizer_hash", f.tokenizer_hash);
  v("perplexity", f.perplexity);
  v("tokens", f.tokens);
  v("windows", f.windows);
  v("window", f.window);
  v("stride", f.stride);
  v("kl_mean", f.kl_mean);
  v("top1_agreement", f.top1_agreement);
  v("embedding_cosine", f.embedding_cosine);
  v("embedding_cosine_min", f.embedding_cosine_min);
  v("rank_correlation", f.rank_correlation);
  v("seconds", f.seconds);
  v("protocol", f.protocol);
}

template <class V>
void visit(V& v, Is<Verification> auto& f) {
  v("passed", f.passed);
  v("tensors_decoded", f.tensors_decoded);
  v("tensors_compared", f.tensors_compared);
  v("files_hashed", f.files_hashed);
  v("seconds", f.seconds);
  v("message", f.message);
}

template <class V>
void visit(V& v, Is<RunReport> auto& f) {
  v("version", f.version);
  v("status", f.status);
  v("message", f.message);
  v("started_at", f.started_at);
  v("finished_at", f.finished_at);
  v("output", f.output);
  v.embedded("job", f.job_json);
  v("host", f.host);
  v("model", f.model);
  v("calibration", f.calibration);
  v("passes", f.passes);
  v("totals", f.totals);
  v("evaluation", f.evaluation);
  v("verification", f.verification);
  v("warnings", f.warnings);
  v("timings", f.timings);
  v("roofline", f.roofline);
  v("blocks", f.blocks);
  v("outliers", f.outliers);
  v("operators", f.operators);
}

class Writer {
 public:
  template <class T>
  void operator()(const char* key, const T& value) {
    out_[key] = encode(value);
  }

  template <class T>
  void derived(const char* key, const T& value) {
    out_[key] = encode(value);
  }

  /// JSON text becomes part of the document; other text (a job that could not be parsed) a string.
  void embedded(const char* key, const std::string& text) {
    Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (text.empty()) value = nullptr;
    out_[key] = value.is_discarded() ? Json(text) : std::move(value);
  }

  Json take() { return std::move(out_); }

 private:
  template <class T>
  static Json encode(const T& value) {
    if constexpr (std::is_enum_v<T>) {
      return std::string(name_of(value));
    } else if constexpr (std::is_arithmetic_v<T> || std::same_as<T, std::string>) {
      return value;
    } else {
      Writer nested;
      visit(nested, value);
      return nested.take();
    }
  }

  template <class T>
  static Json encode(const std::optional<T>& value) {
    return value ? encode(*value) : Json(nullptr);
  }

  template <class T>
  static Json encode(const std::vector<T>& values) {
    Json array = Json::array();
    for (const T& value : values) array.push_back(encode(value));
    return array;
  }

  Json out_ = Json::object();
};

class Reader {
 public:
  Reader(const Json& in, std::string pointer) : in_(in), pointer_(std::move(pointer)) {
    require(in_.is_object(), "an object", in_, pointer_);
  }

  template <class T>
  void operator()(const char* key, T& value) {
    const auto found = in_.find(key);
    if (found != in_.end()) decode(*found, value, pointer_ + "/" + key);
  }

  template <class T>
  void derived(const char* /*key*/, const T& /*value*/) {}

  void embedded(const char* key, std::string& text) {
    const auto found = in_.find(key);
    if (found == in_.end() || found->is_null()) return;
    text = found->is_string() ? found->get<std::string>() : found->dump(2);
  }

 private:
  static void require(bool holds, const char* what, const Json& in, const std::string& pointer) {
    if (holds) return;
    throw CorruptFile("report.json",
                      fmt::format("'{}' must be {}; its type is {}", pointer, what, in.type_name()));
  }

  static void decode(const Json& in, bool& value, const std::string& pointer) {
    require(in.is_boolean(), "true or false", in, pointer);
    value = in.get<bool>();
  }

  static void decode(const Json& in, int64_t& value, const std::string& pointer) {
    constexpr auto kMax = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    const bool fits = !in.is_number_unsigned() || in.get<uint64_t>() <= kMax;
    require(in.is_number_integer() && fits, "a 64-bit integer", in, pointer);
    value = in.get<int64_t>();
  }

  /// Null is what a number that is not finite was written as.
  static void decode(const Json& in, double& value, const std::string& pointer) {
    require(in.is_number() || in.is_null(), "a number", in, pointer);
    value = in.is_null() ? std::numeric_limits<double>::quiet_NaN() : in.get<double>();
  }

  static void decode(const Json& in, std::string& value, const std::string& pointer) {
    require(in.is_string(), "a string", in, pointer);
    value = in.get<std::string>();
  }

  static void decode(const Json& in, RunStatus& value, const std::string& pointer) {
    const auto& names = EnumNames<RunStatus>::names;
    std::string name;
    decode(in, name, pointer);
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end())
      throw CorruptFile("report.json", fmt::format("'{}' must be one of {}; it is '{}'", pointer,
                                                   fmt::join(names, ", "), name));
    value = static_cast<RunStatus>(found - names.begin());
  }

  template <class T>
  static void decode(const Json& in, std::optional<T>& value, const std::string& pointer) {
    value.reset();
    if (!in.is_null()) decode(in, value.emplace(), pointer);
  }

  template <class T>
  static void decode(const Json& in, std::vector<T>& values, const std::string& pointer) {
    require(in.is_array(), "an array", in, pointer);
    values.clear();
    for (size_t i = 0; i < in.size(); ++i)
      decode(in[i], values.emplace_back(), fmt::format("{}/{}", pointer, i));
  }

  template <class T>
  requires std::is_class_v<T>
  static void decode(const Json& in, T& value, const std::string& pointer) {
    Reader nested(in, pointer);
    visit(nested, value);
  }

  const Json& in_;
  std::string pointer_;
};

void check_format(const Json& document) {
  const auto format = document.is_object() ? document.value("format", Json()) : Json();
  const auto version = document.is_object() ? document.value("format_version", Json()) : Json();
  if (format == kFormat && version == kFormatVersion) return;
  throw CorruptFile("report.json", fmt::format("'/format' and '/format_version' must be '{}' and {}; they "
                                               "are {} and {}",
                                               kFormat, kFormatVersion, format.dump(), version.dump()));
}

}  // namespace

std::string to_json(const RunReport& report) {
  Writer writer;
  writer("format", std::string(kFormat));
  writer("format_version", kFormatVersion);
  visit(writer, report);
  // Names come from files and need not be UTF-8: what is not is replaced, not refused.
  return writer.take().dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

RunReport from_json(std::string_view text) {
  const Json document = io::parse_ordered_json(text, "report.json");
  check_format(document);
  RunReport report;
  Reader reader(document, "");
  visit(reader, report);
  return report;
}

}  // namespace lcomp::pipeline
