// Any bytes as lcomp.json: refused as corrupt, or the very text that the record is written as, whose files
// lie in the directory.
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/io/hash.h"
#include "mutator.h"
#include "pipeline/output_record.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const auto record = lcomp::pipeline::OutputRecord::from_json(text, "fuzz");
    for (const lcomp::io::FileRecord& file : record.files) {
      const auto path = ("dir" / std::filesystem::path(file.name)).lexically_normal();
      if (*path.begin() != "dir" || path == "dir") std::abort();
    }
  } catch (const lcomp::CorruptFile&) {
  }
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  return lcomp::fuzz::mutate_and_repair(data, size, most, seed, [](std::string& text) {
    try {
      auto json = lcomp::io::parse_ordered_json(text, "fuzz");
      if (!json.is_object()) return;
      json.erase("checksum");
      json["checksum"] = lcomp::io::hash_of(json.dump());
      text = json.dump(1) + "\n";
    } catch (const lcomp::CorruptFile&) {
    }
  });
}
