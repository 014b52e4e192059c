#include "lcomp/pipeline/job.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "lcomp/core/error.h"
#include "lcomp/core/nearest.h"
#include "pipeline/options_json.h"

namespace lcomp::pipeline {
namespace {

namespace fs = std::filesystem;

constexpr double kMaxTokens = 1 << 30;
/// Each sequence has a length in memory, in plans too. Statistics gain nothing from so many.
constexpr double kMaxSequences = 1 << 20;

// The help of the keys of a pass that are not options of its method.
constexpr std::string_view kMethodHelp = "The method's name; `lcomp list` shows all.";
constexpr std::string_view kTargetsHelp =
    "Patterns of the operators to compress; none: all. `*` and `?` match any characters, `re:` begins a "
    "regular "
    "expression; a pattern may leave out leading parts of the name.";
constexpr std::string_view kIgnoreHelp = "Patterns of operators to leave as they are.";
constexpr std::string_view kOverridesHelp =
    "Other settings for some operators; the last one that matches decides.";
constexpr std::string_view kMatchHelp = "Patterns of the operators that these settings are for.";
constexpr std::string_view kPassesHelp = "What is done to each block, in this order.";

/// Every key of a job except "passes", whose keys depend on the method. "evaluate" and "embedding" only where
/// the job has them.
void visit_job(Job& job, FieldVisitor& v) {
  constexpr double kMaxSeed =
      static_cast<double>(int64_t{1} << 53);  // so that other readers of JSON keep it exact
  v.field("model", job.model, "Directory of the checkpoint (Hugging Face layout).");
  v.field("output", job.output, "Directory to write; it must not exist.");
  v.field("seed", job.seed, {0, kMaxSeed}, "Seed of everything that is drawn at random.");
  v.bytes("max_memory", job.max_memory, "Peak memory that the run must keep to; 0: no bound.");
  v.field("compute", job.compute,
          "Precision of the forward passes: bf16 multiplies in bfloat16 and adds in float32; auto takes it "
          "where the "
          "processor has it.");
  v.field("threads", job.threads, {0, 4096},
          "Threads; 0: one per processor. The result does not depend on it.");
  v.field("strict", job.strict,
          "Numerical trouble ends the run instead of being worked around and reported.");
  v.object("calibration", "The text that statistics are taken from.",
           [&](FieldVisitor& nested) { job.calibration.visit(nested); });
  if (job.embedding) {
    v.object("embedding", "Compress the token embedding, and a head that is tied to it.",
             [&](FieldVisitor& nested) { job.embedding->visit(nested); });
  }
  v.object("write", "The form of the output.", [&](FieldVisitor& nested) { job.write.visit(nested); });
  if (job.evaluate) {
    v.object("evaluate", "Measure the result on a text.",
             [&](FieldVisitor& nested) { job.evaluate->visit(nested); });
  }
}

Json written(lowrank::EmbeddingOptions options) {
  Json object = Json::object();
  JsonWriter writer(object);
  options.visit(writer);
  return object;
}

// ---- Reading

/// Settles what an object leaves open; `given` says what it has.
using Settle = std::function<void(PassOptions&, const std::function<bool(std::string_view name)>& given)>;

/// Settings that have no effect, in an object that changes them from all that is `usual`. `settled`: every
/// setting as it holds. A method need not have all the settings that its parts name.
void refuse_idle(const std::vector<IdleSetting>& idle, const Json& object, const std::string& pointer,
                 const Json& settled, const std::vector<Json>& usual, Problems& problems) {
  for (const IdleSetting& setting : idle) {
    const std::string name(setting.name);
    if (!object.contains(name) || !settled.contains(name)) continue;
    const Json& value = settled[name];
    const auto is_usual = [&](const Json& other) { return other.at(name) == value; };
    if (std::any_of(usual.begin(), usual.end(), is_usual)) continue;
    problems.push_back({child(pointer, name), fmt::format("acts only {}, and must be left out here; got {}",
                                                          setting.needs, value.dump())});
  }
}

/// What is idle in the pass and in every override.
std::vector<IdleSetting> idle_everywhere(const PassSpec& pass) {
  std::vector<IdleSetting> idle = pass.options->idle();
  for (const Override& entry : pass.overrides) {
    const std::vector<IdleSetting> own = entry.options->idle();
    std::erase_if(idle, [&](const IdleSetting& setting) {
      return std::none_of(own.begin(), own.end(),
                          [&](const IdleSetting& other) { return other.name == setting.name; });
    });
  }
  return idle;
}

/// Reads the options of `method` out of `object`, which may also hold the keys `others`.
std::shared_ptr<const PassOptions> read_options(const Json& object, const std::string& pointer,
                                                std::unique_ptr<PassOptions> options,
                                                const std::vector<std::string_view>& others,
                                                const Settle& settle, Problems& problems) {
  JsonReader reader(object, pointer, problems);
  for (const std::string_view name : others) reader.also_known(name);
  options->visit(reader);
  reader.finish();
  settle(*options, [&](std::string_view name) { return object.contains(name); });
  return options;
}

/// Calls `read` for every object in the list `parent[name]`, and reports what is no list or no object.
template <class Read>
void for_each_object(const Json& parent, const std::string& parent_pointer, const std::string& name,
                     Problems& problems, const Read& read) {
  if (!parent.contains(name)) return;
  const Json& list = parent.at(name);
  const std::string pointer = child(parent_pointer, name);
  if (!list.is_array()) {
    problems.push_back({pointer, "must be a list of objects; got " + shown(list)});
    return;
  }
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].is_object()) {
      read(list[i], child(pointer, i));
    } else {
      problems.push_back({child(pointer, i), "must be an object; got " + shown(list[i])});
    }
  }
}

Override read_override(const Json& object, const std::string& pointer, const PassOptions& base,
                       const Settle& settle, Problems& problems) {
  Override result;
  result.options = read_options(object, pointer, base.clone(), {"match"}, settle, problems);
  JsonReader reader(object, pointer, problems);
  reader.field("match", result.match, kMatchHelp);
  if (!object.contains("match")) {
    problems.push_back({pointer, "an override must have \"match\", the operators it is for; it has none"});
  }
  return result;
}

PassSpec read_pass(const Json& object, const std::string& pointer, const MethodTable& methods, bool is_last,
                   Problems& problems) {
  PassSpec pass;
  JsonReader reader(object, pointer, problems);
  reader.field("method", pass.method, kMethodHelp);
  reader.field("targets", pass.targets, kTargetsHelp);
  reader.field("ignore", pass.ignore, kIgnoreHelp);

  const MethodInfo* method = methods.lookup(pass.method);
  if (method == nullptr) {
    // Without a method there is no telling which of the other keys are right.
    const bool given = object.contains("method") && object["method"].is_string();
    if (!object.contains("method")) {
      problems.push_back({pointer, fmt::format("a pass must have \"method\", one of {}; it has none",
                                               fmt::join(methods.names(), ", "))});
    } else if (given) {
      problems.push_back({child(pointer, "method"),
                          fmt::format("must be one of {}; got \"{}\"{}", fmt::join(methods.names(), ", "),
                                      pass.method, did_you_mean(pass.method, methods.names()))});
    }
    return pass;
  }

  const auto settle = [&](PassOptions& options, const std::function<bool(std::string_view)>& given) {
    if (method->settle) method->settle(options, given, is_last);
  };
  const std::unique_ptr<PassOptions> defaults = method->default_options();
  pass.options = read_options(object, pointer, defaults->clone(),
                              {"method", "targets", "ignore", "overrides"}, settle, problems);
  const Json usual = settings_to_json(*defaults), own = settings_to_json(*pass.options);
  for_each_object(object, pointer, "overrides", problems, [&](const Json& entry, const std::string& place) {
    const auto settle_override = [&](PassOptions& options,
                                     const std::function<bool(std::string_view)>& given) {
      settle(options, [&](std::string_view name) { return object.contains(name) || given(name); });
    };
    pass.overrides.push_back(read_override(entry, place, *pass.options, settle_override, problems));
    const PassOptions& options = *pass.overrides.back().options;
    refuse_idle(options.idle(), entry, place, settings_to_json(options), {usual, own}, problems);
  });
  refuse_idle(idle_everywhere(pass), object, pointer, own, {usual}, problems);
  return pass;
}

/// What must hold between the fields of a job.
void check_job(const Job& job, const MethodTable& methods, Problems& problems) {
  const auto require = [&problems](bool holds, std::string pointer, std::string message) {
    if (!holds) problems.push_back({std::move(pointer), std::move(message)});
  };
  require(!job.model.empty(), "/model", "must name the directory of a checkpoint; it is missing or empty");
  require(!job.output.empty(), "/output", "must name the directory to write; it is missing or empty");
  for (const PassSpec& pass : job.passes) {
    const MethodInfo* method = methods.lookup(pass.method);
    if (method == nullptr || !method->needs_calibration || !job.calibration.text.empty()) continue;
    problems.push_back(
        {"/calibration/text", fmt::format("must name a text, which the method {} takes its statistics "
                                          "from; it is missing or empty",
                                          pass.method)});
    break;
  }
  if (job.embedding) {
    require(job.embedding->order != 1, "/embedding/order", "must be 0 or from 2 up; got 1");
    const Json settings = written(*job.embedding);
    refuse_idle(job.embedding->idle(!job.calibration.text.empty()), settings, "/embedding", settings,
                {written(lowrank::EmbeddingOptions())}, problems);
    require(
        job.embedding->exceptions == 0 || !job.calibration.text.empty(), "/calibration/text",
        "must name a text, which tells the frequent tokens that /embedding/exceptions keeps; it is missing "
        "or empty");
  }
  const CalibrationOptions& calibration = job.calibration;
  require(calibration.starts == 0 || calibration.starts >= calibration.samples, "/calibration/starts",
          fmt::format("must be 0 or at least the number of samples, {}; got {}", calibration.samples,
                      calibration.starts));
  require(calibration.starts <= calibration.samples * calibration.length / 2, "/calibration/starts",
          fmt::format("must leave two tokens or more for each window of the budget of {} x {} tokens; got {}",
                      calibration.samples, calibration.length, calibration.starts));
  if (job.evaluate) {
    require(!job.evaluate->text.empty(), "/evaluate/text", "must name a text; it is missing or empty");
    require(job.evaluate->stride <= job.evaluate->window, "/evaluate/stride",
            fmt::format("must be at most the window of {} tokens; got {}", job.evaluate->window,
                        job.evaluate->stride));
  }
}

Job read_job(const Json& document, const std::string& where, const MethodTable& methods, Problems problems) {
  Job job;
  if (document.contains("evaluate")) job.evaluate.emplace();
  if (document.contains("embedding")) job.embedding.emplace();
  JsonReader reader(document, "", problems);
  visit_job(job, reader);
  reader.also_known("passes");
  reader.also_known("evaluate");
  reader.also_known("embedding");
  reader.also_known("$schema");
  reader.finish();

  if (job.embedding) {
    // Enough to do.
  } else if (!document.contains("passes")) {
    problems.push_back({"/passes", "must list at least one pass; it is missing"});
  } else if (document["passes"].is_array() && document["passes"].empty()) {
    problems.push_back({"/passes", "must list at least one pass; it is empty"});
  }
  for_each_object(document, "", "passes", problems, [&](const Json& entry, const std::string& place) {
    const bool is_last = job.passes.size() + 1 == document["passes"].size();
    job.passes.push_back(read_pass(entry, place, methods, is_last, problems));
  });
  check_job(job, methods, problems);
  throw_problems(where, problems);
  return job;
}

// ---- Paths

/// Makes the relative paths in a job relative to `directory`.
void anchor_paths(Json& document, const fs::path& directory) {
  std::vector<std::string> pointers = {"/model", "/output", "/calibration/text", "/evaluate/text",
                                       "/embedding/segments"};
  const size_t passes = document.contains("passes") ? document["passes"].size() : 0;
  for (size_t p = 0; p < passes; ++p) pointers.push_back(fmt::format("/passes/{}/latency_table", p));
  for (const std::string& pointer : pointers) {
    const Json::json_pointer place(pointer);
    if (!document.contains(place) || !document[place].is_string()) continue;
    const std::string path = document[place].get<std::string>();
    if (!path.empty()) document[place] = (directory / path).lexically_normal().string();
  }
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!fs::is_directory(path)) text << file.rdbuf();
  if (!file || fs::is_directory(path)) throw ConfigError(path, "the job file must be readable; it is not");
  return text.str();
}

// ---- Writing

Json written(const PassSpec& pass) {
  Json object = {{"method", pass.method}, {"targets", pass.targets}, {"ignore", pass.ignore}};
  object.update(settings_to_json(*pass.options));
  Json overrides = Json::array();
  for (const Override& entry : pass.overrides) {
    Json override_json = {{"match", entry.match}};
    override_json.update(settings_to_json(*entry.options));
    overrides.push_back(std::move(override_json));
  }
  object["overrides"] = std::move(overrides);
  return object;
}

// ---- Schema and tables

/// The schema of one entry of "passes" that names `method`.
Json pass_schema(const MethodInfo& method) {
  std::vector<std::string> none;
  std::string name = method.name;
  const std::unique_ptr<PassOptions> options = method.default_options();

  Json override_properties = Json::object();
  SchemaWriter override_writer(override_properties);
  override_writer.field("match", none, kMatchHelp);
  options->visit(override_writer);
  for (Json& property : override_properties)
    property.erase("default");  // the default is the pass's own setting
  Json override_schema = object_schema(std::move(override_properties));
  override_schema["required"] = {"match"};

  Json properties = {{"method", {{"const", name}, {"description", method.summary}}}};
  SchemaWriter writer(properties);
  writer.field("targets", none, kTargetsHelp);
  writer.field("ignore", none, kIgnoreHelp);
  options->visit(writer);
  properties["overrides"] = {{"type", "array"}, {"items", override_schema}, {"description", kOverridesHelp}};

  Json schema = object_schema(std::move(properties));
  schema["title"] = name;
  schema["required"] = {"method"};
  return schema;
}

/// A job in which every optional part is there, for visitors that describe.
Job complete_job() {
  Job job;
  job.evaluate.emplace();
  job.embedding.emplace();
  return job;
}

}  // namespace

void CalibrationOptions::visit(FieldVisitor& v) {
  v.field("text", text, "File with the text: .txt, .jsonl, or .json with a list (or lists) of token ids.");
  v.field("jsonl_field", jsonl_field, "The key that holds the text in each line of a .jsonl file.");
  v.field("samples", samples, {1, kMaxSequences}, "Number of samples.");
  v.field("length", length, {2, kMaxTokens}, "Tokens per sample.");
  v.field("starts", starts, {0, kMaxSequences},
          "Number of sequence starts: windows of mixed lengths that hold samples x length tokens in all; 0: "
          "one start "
          "per sample.");
  v.field("short", short_samples,
          "Samples with fewer tokens: pack joins them, drop leaves them out, error ends the run, keep takes "
          "each by "
          "itself (sentences, for encoders).");
  v.field("cache", cache, "Where hidden states are kept between blocks; auto decides by max_memory.");
}

void WriteOptions::visit(FieldVisitor& v) {
  v.field("format", format,
          "compressed-tensors packs quantized weights; dense writes the values they stand for.");
  v.bytes("shard_size", shard_size, "Largest size of one safetensors file; 0: one file.");
}

void EvaluateOptions::visit(FieldVisitor& v) {
  v.field("text", text, "Text file to measure perplexity on; for an encoder, sentences, one a line.");
  v.field("window", window, {2, kMaxTokens}, "Tokens per window; of an encoder, most tokens of a sentence.");
  v.field("stride", stride, {0, kMaxTokens},
          "Tokens between the starts of windows; 0: the window, without overlap.");
  v.field("max_windows", max_windows, {0, kMaxTokens},
          "Windows (sentences) to measure, from the start of the text; 0: all.");
  v.field("reference", reference,
          "Also measure KL divergence and top-1 agreement against the dense model; an encoder needs it.");
}

Job parse_job(std::string_view json_text, const std::string& where, const MethodTable& methods) {
  return read_job(parse_document(json_text, where), where, methods, {});
}

Job load_job(const std::string& path, const MethodTable& methods, const std::vector<std::string>& sets) {
  Json document = parse_document(read_text(path), path);
  anchor_paths(document, fs::absolute(path).parent_path());
  Problems problems;
  for (const std::string& assignment : sets) apply_assignment(document, assignment, problems);
  anchor_paths(document, fs::current_path());
  return read_job(document, path, methods, std::move(problems));
}

std::string to_json(const Job& job) {
  Job copy = job;
  Json document = Json::object();
  JsonWriter writer(document);
  visit_job(copy, writer);
  Json passes = Json::array();
  for (const PassSpec& pass : job.passes) passes.push_back(written(pass));
  document["passes"] = std::move(passes);
  return document.dump(2) + "\n";
}

std::string job_schema(const MethodTable& methods) {
  Job job = complete_job();
  Json properties = {{"$schema", {{"type", "string"}, {"description", "For editors; not read."}}}};
  SchemaWriter writer(properties);
  visit_job(job, writer);
  Json alternatives = Json::array();
  for (const MethodInfo& method : methods.methods()) alternatives.push_back(pass_schema(method));
  const Json item = {{"oneOf", std::move(alternatives)}};
  properties["passes"] = {{"type", "array"}, {"items", item}, {"description", kPassesHelp}};

  Json schema = {{"$schema", "http://json-schema.org/draft-07/schema#"}, {"title", "lcomp job"}};
  schema.update(object_schema(std::move(properties)));
  schema["required"] = {"model", "output"};
  const Json some_passes = {{"required", {"passes"}}, {"properties", {{"passes", {{"minItems", 1}}}}}};
  schema["anyOf"] = {some_passes, {{"required", {"embedding"}}}};
  return schema.dump(2) + "\n";
}

std::string job_tables(const MethodTable& methods) {
  Job job = complete_job();
  TableWriter writer;
  visit_job(job, writer);
  std::string text = writer.markdown();
  for (const MethodInfo& method : methods.methods()) {
    text += fmt::format("\n### {}\n\n{}\n\n{}", method.name, method.summary, method_table(method));
  }
  return text;
}

std::string method_table(const MethodInfo& method) {
  TableWriter writer;
  method.default_options()->visit(writer);
  return writer.markdown();
}

}  // namespace lcomp::pipeline
