#include "torture/disk_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <sstream>
#include <stdexcept>

#include "lcomp/io/files.h"

namespace fs = std::filesystem;

namespace lcomp::test {

struct DiskModel::Node {
  bool is_directory = false;
  std::string data;
  std::string synced;
  std::map<std::string, NodePtr> entries;
  std::map<std::string, NodePtr> durable;
};

std::vector<LoggedCall> read_log(const fs::path& file) {
  const std::string data = io::read_file(file.string() + ".data");
  std::istringstream lines(io::read_file(file));
  std::vector<LoggedCall> calls;
  size_t at = 0;
  for (std::string line; std::getline(lines, line);) {
    std::vector<std::string> fields;
    std::istringstream split(line);
    for (std::string field; std::getline(split, field, '\t');) fields.push_back(field);
    fields.resize(7);
    LoggedCall call{std::stol(fields[0]),
                    fields[1],
                    std::stoul(fields[2]),
                    std::stoul(fields[3]),
                    fields[5],
                    fields[6],
                    ""};
    if (call.kind == "write") {
      call.data = data.substr(at, std::stoul(fields[4]));
      at += call.data.size();
    }
    calls.push_back(std::move(call));
  }
  return calls;
}

Tree read_tree(const fs::path& folder) {
  Tree tree;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    auto& content = tree[fs::relative(entry.path(), folder).string()];
    if (!entry.is_directory()) content = io::read_file(entry.path());
  }
  return tree;
}

void write_tree(const fs::path& folder, const Tree& tree) {
  fs::create_directories(folder);
  for (const auto& [name, content] : tree) {  // a directory comes before what is in it
    if (content) {
      std::FILE* file = std::fopen((folder / name).c_str(), "wb");
      std::fwrite(content->data(), 1, content->size(), file);
      std::fclose(file);
    } else {
      fs::create_directory(folder / name);
    }
  }
}

DiskModel::DiskModel(fs::path root) : root_path_(std::move(root)), root_(std::make_shared<Node>()) {
  root_->is_directory = true;
}

DiskModel::NodePtr DiskModel::find(const fs::path& path) const {
  NodePtr node = root_;
  for (const fs::path& part : path.lexically_relative(root_path_)) {
    if (part == ".") continue;
    const auto found = node->entries.find(part.string());
    if (found == node->entries.end())
      throw std::runtime_error("the log never said how this came to be: " + path.string());
    node = found->second;
  }
  return node;
}

DiskModel::Edit DiskModel::edit(const fs::path& path, NodePtr node) {
  return {find(path.parent_path()), path.filename().string(), std::move(node)};
}

void DiskModel::change(Change change) {
  for (const auto& [directory, name, node] : change) {
    if (node) {
      directory->entries[name] = node;
    } else {
      directory->entries.erase(name);
    }
  }
  pending_.push_back(std::move(change));
}

namespace {

template <class Change, class Entries>
void put(const Change& change, const Entries& entries_of) {
  for (const auto& [directory, name, node] : change) {
    auto& entries = entries_of(directory);
    if (node) {
      entries[name] = node;
    } else {
      entries.erase(name);
    }
  }
}

}  // namespace

void DiskModel::sync(const NodePtr& node) {
  node->synced = node->data;
  std::erase_if(pending_, [&](const Change& change) {
    const bool touches =
        std::any_of(change.begin(), change.end(), [&](const Edit& edit) { return edit.directory == node; });
    if (touches)
      put(
          change, [](const NodePtr& directory) -> auto& { return directory->durable; });
    return touches;
  });
}

void DiskModel::apply(const LoggedCall& call) {
  if (call.kind == "read") return;
  if (call.kind == "create" || call.kind == "mkdir") {
    const auto node = std::make_shared<Node>();
    node->is_directory = call.kind == "mkdir";
    inodes_[call.inode] = node;
    change({edit(call.path, node)});
  } else if (call.kind == "rename") {
    change({edit(call.path, nullptr), edit(call.other, find(call.path))});
  } else if (call.kind == "link") {
    change({edit(call.other, find(call.path))});
  } else if (call.kind == "unlink" || call.kind == "rmdir") {
    change({edit(call.path, nullptr)});
  } else if (call.kind == "sync") {
    sync(call.path == root_path_ ? root_ : inodes_.at(call.inode));
  } else {
    std::string& data = inodes_.at(call.inode)->data;
    if (call.kind == "truncate") data.clear();
    if (call.kind == "resize") data.resize(call.offset);
    if (call.kind == "write") {
      data.resize(std::max(data.size(), call.offset + call.data.size()));
      data.replace(call.offset, call.data.size(), call.data);
    }
  }
}

Tree DiskModel::after_power_cut(Loss loss, Rng& rng) const {
  std::map<const Node*, std::map<std::string, NodePtr>> entries;
  const auto entries_of = [&](const NodePtr& directory) -> auto& {
    return entries.try_emplace(directory.get(), directory->durable).first->second;
  };
  for (const Change& change : pending_) {
    const bool survives = loss == Loss::kRandom ? rng.uniform() < 0.5 : loss != Loss::kAll;
    if (survives) put(change, entries_of);
  }
  const auto bytes_of = [&](const Node& file) {
    if (loss == Loss::kAll || file.data == file.synced) return file.synced;
    if (loss == Loss::kNothing) return file.data;
    std::string bytes = file.synced;
    if (loss == Loss::kRandom && file.data.size() > bytes.size()) {
      const auto more =
          static_cast<size_t>(rng.uniform() * static_cast<double>(file.data.size() - bytes.size() + 1));
      bytes = file.data.substr(0, bytes.size() + more);
    }
    if (rng.uniform() < 0.5) bytes.resize(file.data.size(), '\0');
    return bytes;
  };
  Tree tree;
  const std::function<void(const NodePtr&, const std::string&)> visit = [&](const NodePtr& directory,
                                                                            const std::string& prefix) {
    for (const auto& [name, node] : entries_of(directory)) {
      auto& content = tree[prefix + name];
      if (node->is_directory) {
        visit(node, prefix + name + "/");
      } else {
        content = bytes_of(*node);
      }
    }
  };
  visit(root_, "");
  return tree;
}

}  // namespace lcomp::test
