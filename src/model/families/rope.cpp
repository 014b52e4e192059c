#include <numbers>

#include "lcomp/core/error.h"
#include "model/families/family.h"

namespace lcomp::model {
namespace {

RopeSpec::Type read_type(const ConfigView& rope) {
  const std::string name = rope.string("rope_type").value_or(rope.string("type").value_or("default"));
  if (name == "default") return RopeSpec::Type::kDefault;
  if (name == "linear") return RopeSpec::Type::kLinear;
  if (name == "dynamic") return RopeSpec::Type::kDynamic;
  if (name == "llama3") return RopeSpec::Type::kLlama3;
  if (name == "yarn") return RopeSpec::Type::kYarn;
  if (name == "longrope" || name == "su") return RopeSpec::Type::kLongrope;
  throw Unsupported(
      rope.place("rope_type"),
      fmt::format("must be one of default, linear, dynamic, llama3, yarn, longrope; it is '{}'", name));
}

/// YaRN's 0.1 m ln(f) + 1 (Peng et al. 2023, section 3.4).
double yarn_scale(double factor, double m) {
  return factor <= 1.0 ? 1.0 : 0.1 * m * std::log(factor) + 1.0;
}

double read_yarn_attention_scaling(const ConfigView& rope, double factor) {
  if (const auto given = rope.number("attention_factor")) return *given;
  const double mscale = rope.number("mscale").value_or(0.0);
  const double all_dim = rope.number("mscale_all_dim").value_or(0.0);
  if (mscale != 0.0 && all_dim != 0.0) return yarn_scale(factor, mscale) / yarn_scale(factor, all_dim);
  return yarn_scale(factor, 1.0);
}

/// One factor per pair; a value of 0 or less would turn the angles around.
std::vector<double> read_factors(const ConfigView& rope, const char* field, int64_t dims) {
  const auto factors = rope.numbers(field);
  const bool fits = factors && static_cast<int64_t>(factors->size()) == dims / 2 &&
                    std::all_of(factors->begin(), factors->end(), [](double f) { return f > 0; });
  if (!fits) rope.reject(field, fmt::format("must be a list of {} positive numbers", dims / 2));
  return *factors;
}

/// LongRoPE (Ding et al. 2024): a factor per pair, of one list up to the original context and of another
/// beyond it.
void read_longrope(const ConfigView& rope, double max_positions, RopeSpec& spec) {
  spec.short_factor = read_factors(rope, "short_factor", spec.dims);
  spec.long_factor = read_factors(rope, "long_factor", spec.dims);
  const double original = spec.original_max_positions;
  spec.factor = rope.number("factor").value_or(max_positions / original);
  const double scaling =
      spec.factor <= 1.0 ? 1.0 : std::sqrt(1.0 + std::log(spec.factor) / std::log(original));
  spec.attention_scaling = rope.number("attention_factor").value_or(scaling);
}

/// Fields of the scaled types, read from the object that names the type.
void read_scaling(const ConfigView& rope, double max_positions, RopeSpec& spec) {
  spec.original_max_positions =
      rope.number("original_max_position_embeddings").value_or(spec.original_max_positions);
  if (!(spec.original_max_positions >= 1.0)) {
    rope.reject("original_max_position_embeddings", "must be at least 1");
  }
  if (spec.type == RopeSpec::Type::kLongrope) {
    read_longrope(rope, max_positions, spec);
    return;
  }
  spec.factor = rope.number("factor").value_or(0.0);
  if (!(spec.factor >= 1.0)) rope.reject("factor", "must be a number of at least 1");
  if (spec.type == RopeSpec::Type::kLlama3) {
    spec.low_freq_factor = rope.number("low_freq_factor").value_or(1.0);
    spec.high_freq_factor = rope.number("high_freq_factor").value_or(4.0);
    if (!(spec.high_freq_factor > spec.low_freq_factor)) {
      rope.reject("high_freq_factor", fmt::format("must exceed low_freq_factor = {}", spec.low_freq_factor));
    }
  }
  if (spec.type == RopeSpec::Type::kYarn) {
    spec.beta_fast = rope.number("beta_fast").value_or(32.0);
    spec.beta_slow = rope.number("beta_slow").value_or(1.0);
    spec.truncate = rope.boolean("truncate").value_or(true);
    spec.attention_scaling = read_yarn_attention_scaling(rope, spec.factor);
  }
}

std::vector<double> plain_frequencies(double theta, int64_t dims) {
  std::vector<double> out(static_cast<size_t>(dims / 2));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dims));
  }
  return out;
}

/// Llama 3.1: long waves are stretched, short ones kept, those between blended.
double llama3_frequency(const RopeSpec& spec, double frequency) {
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength < spec.original_max_positions / spec.high_freq_factor) return frequency;
  if (wavelength > spec.original_max_positions / spec.low_freq_factor) return frequency / spec.factor;
  const double share = (spec.original_max_positions / wavelength - spec.low_freq_factor) /
                       (spec.high_freq_factor - spec.low_freq_factor);
  return (1.0 - share) * frequency / spec.factor + share * frequency;
}

/// YaRN, "NTK by parts" (Peng et al. 2023, section 3.2).
void yarn_frequencies(const RopeSpec& spec, std::vector<double>& frequencies) {
  const auto dims = static_cast<double>(spec.dims);
  const auto correction = [&](double rotations) {
    return dims * std::log(spec.original_max_positions / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(spec.theta));
  };
  double low = correction(spec.beta_fast);
  double high = correction(spec.beta_slow);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dims - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / spec.factor * ramp + frequencies[i] * (1.0 - ramp);
  }
}

/// Transformers 5 may give an object for each type of layer. The angles of our families are those of all
/// layers, so these must agree.
ConfigView rope_of_all_layers(const ConfigView& rope) {
  std::optional<ConfigView> all;
  for (const char* type : {"full_attention", "sliding_attention"}) {
    if (!rope.mentions(type)) continue;
    auto of_type = rope.object(type);
    if (!of_type) rope.reject(type, "must be an object");
    if (all && !all->equals(*of_type)) {
      throw Unsupported(rope.place(type),
                        "must equal full_attention: angles that differ between layers are not supported");
    }
    all = std::move(of_type);
  }
  return all.value_or(rope);
}

}  // namespace

RopeSpec read_rope(const ConfigView& config, int64_t head_dim, int64_t max_positions) {
  RopeSpec spec;
  auto rope = config.object("rope_parameters");
  if (!rope) rope = config.object("rope_scaling");
  if (rope) rope = rope_of_all_layers(*rope);
  const auto older = config.object("rope_scaling");
  if (rope && older && config.has("rope_parameters") &&
      older->string("rope_type") != rope->string("rope_type"))
    config.reject("rope_scaling", "must not contradict rope_parameters, which names another rope_type");
  spec.theta = (rope ? rope->number("rope_theta") : std::nullopt)
                   .value_or(config.number("rope_theta").value_or(10000.0));
  if (!(spec.theta > 1.0)) config.reject("rope_theta", "must be a number above 1");
  const double partial = (rope ? rope->number("partial_rotary_factor") : std::nullopt)
                             .value_or(config.number("partial_rotary_factor").value_or(1.0));
  if (!(partial > 0.0 && partial <= 1.0)) config.reject("partial_rotary_factor", "must lie in (0, 1]");
  spec.dims = static_cast<int64_t>(static_cast<double>(head_dim) * partial);
  if (spec.dims < 2 || spec.dims % 2 != 0) {
    config.reject(
        "head_dim",
        fmt::format("the rotated part of a head must have an even number of elements; {} are rotated",
                    spec.dims));
  }
  spec.original_max_positions =
      config.number("original_max_position_embeddings").value_or(static_cast<double>(max_positions));
  if (rope) spec.type = read_type(*rope);
  if (spec.type != RopeSpec::Type::kDefault) read_scaling(*rope, static_cast<double>(max_positions), spec);
  // The dynamic type stretches relative to max_position_embeddings itself.
  if (spec.type == RopeSpec::Type::kDynamic) spec.original_max_positions = static_cast<double>(max_positions);
  return spec;
}

std::vector<float> RopeSpec::inverse_frequencies(int64_t length) const {
  double base = theta;
  if (type == Type::kDynamic) {
    const double span = std::max(static_cast<double>(length), original_max_positions);
    const auto d = static_cast<double>(dims);
    base = theta * std::pow(factor * span / original_max_positions - (factor - 1.0), d / (d - 2.0));
  }
  std::vector<double> frequencies = plain_frequencies(base, dims);
  if (type == Type::kLinear) {
    for (double& f : frequencies) f /= factor;
  } else if (type == Type::kLlama3) {
    for (double& f : frequencies) f = llama3_frequency(*this, f);
  } else if (type == Type::kYarn) {
    yarn_frequencies(*this, frequencies);
  } else if (type == Type::kLongrope) {
    const auto& factors = static_cast<double>(length) > original_max_positions ? long_factor : short_factor;
    for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] /= factors[i];
  }
  return {frequencies.begin(), frequencies.end()};
}

}  // namespace lcomp::model
