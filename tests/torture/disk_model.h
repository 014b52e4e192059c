#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lcomp/core/rng.h"

/// What a folder holds after a power cut, from the log of the fault layer.
namespace lcomp::test {

/// One line of the log (see fault_layer.cpp), with the bytes of a write.
struct LoggedCall {
  long number = 0;
  std::string kind;
  unsigned long inode = 0;
  size_t offset = 0;
  std::filesystem::path path;
  std::filesystem::path other;
  std::string data;
};

std::vector<LoggedCall> read_log(const std::filesystem::path& file);

/// What of all that was not yet synchronised is on the disk.
enum class Loss {
  kAll,      ///< nothing
  kNothing,  ///< everything: as after a kill
  kData,     ///< every name and every size, but zeros or nothing for the bytes
  kRandom,   ///< each change of names or none of it, each file up to a random byte, real ones or zeros
};

/// Files by path relative to the folder, with their bytes; directories have none.
using Tree = std::map<std::string, std::optional<std::string>>;

Tree read_tree(const std::filesystem::path& folder);
void write_tree(const std::filesystem::path& folder, const Tree& tree);

/// A file system that keeps only what it was asked to keep: the bytes of a file at its last fsync, the names
/// in a directory at that directory's. A rename is one change, on the disk once either directory is.
class DiskModel {
 public:
  explicit DiskModel(std::filesystem::path root);

  void apply(const LoggedCall& call);
  /// What a power cut leaves now.
  Tree after_power_cut(Loss loss, Rng& rng) const;

 private:
  struct Node;
  using NodePtr = std::shared_ptr<Node>;
  struct Edit {
    NodePtr directory;
    std::string name;
    NodePtr node;  ///< none where the name goes
  };
  using Change = std::vector<Edit>;

  NodePtr find(const std::filesystem::path& path) const;
  Edit edit(const std::filesystem::path& path, NodePtr node);
  void change(Change change);
  void sync(const NodePtr& node);

  std::filesystem::path root_path_;
  NodePtr root_;
  std::map<unsigned long, NodePtr> inodes_;
  std::vector<Change> pending_;
};

}  // namespace lcomp::test
