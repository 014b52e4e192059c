#include "lcomp/model/pooling.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"

namespace lcomp::model {
namespace {

constexpr std::pair<const char*, Pooling> kModes[] = {{"pooling_mode_mean_tokens", Pooling::kMean},
                                                      {"pooling_mode_cls_token", Pooling::kCls},
                                                      {"pooling_mode_max_tokens", Pooling::kMax}};

}  // namespace

Pooling read_pooling(const std::filesystem::path& directory) {
  const std::filesystem::path file = directory / "1_Pooling" / "config.json";
  if (!std::filesystem::exists(file)) return Pooling::kMean;
  const std::string where = file.string();
  const io::Json json = io::parse_json(io::read_file(file), where);
  const io::JsonView config(json, where);
  std::vector<Pooling> wanted;
  bool others = false;
  for (const auto& [name, value] : config.members()) {
    if (!name.starts_with("pooling_mode_") || !value.boolean()) continue;
    const auto mode = std::find_if(std::begin(kModes), std::end(kModes),
                                   [&name = name](const auto& known) { return name == known.first; });
    if (mode == std::end(kModes)) {
      others = true;
    } else {
      wanted.push_back(mode->second);
    }
  }
  if (others || wanted.size() != 1) {
    throw Unsupported(where,
                      fmt::format("exactly one of pooling_mode_mean_tokens, pooling_mode_cls_token and "
                                  "pooling_mode_max_tokens must be true, and no other mode; {} of them "
                                  "are",
                                  wanted.size()));
  }
  return wanted.front();
}

at::Tensor sentence_embedding(const at::Tensor& states, Pooling pooling) {
  at::Tensor pooled = pooling == Pooling::kMean  ? states.mean(0)
                      : pooling == Pooling::kCls ? states[0]
                                                 : states.amax(0);
  return pooled / pooled.norm();
}

}  // namespace lcomp::model
