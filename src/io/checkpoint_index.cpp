#include "io/checkpoint_index.h"

#include "io/json_util.h"

namespace lcomp::io {

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\\') == std::string::npos && name.find('\0') == std::string::npos;
}

CheckpointIndex parse_checkpoint_index(std::string_view text, const std::string& where) {
  const Json json = parse_json(text, where);
  const JsonView root(json, where);
  CheckpointIndex index;
  for (const auto& [tensor, file] : root.at("weight_map").members()) {
    const std::string name = file.text();
    if (!is_plain_name(name))
      file.fail(fmt::format("must be the name of a file in the same directory; it is {}", quote_name(name)));
    index.file_of_tensor[tensor] = name;
  }
  if (const auto metadata = root.find("metadata")) {
    // Some writers store a number with a fraction; it is only compared.
    if (const auto size = metadata->find("total_size")) {
      const double bytes = size->number();
      if (bytes >= 0 && bytes < 0x1p63) index.total_size = static_cast<uint64_t>(bytes);
    }
  }
  return index;
}

}  // namespace lcomp::io
