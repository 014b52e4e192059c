#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

/// Small jobs of every method, to be killed, starved and interrupted.
namespace lcomp::test {

using Json = nlohmann::json;

struct NamedJob {
  std::string name;
  Json job;              ///< without model, output and texts
  bool is_tiny = false;  ///< on the tiny model
};

/// A job for every method on the bundled model, with what else changes the way of a run: allocation under a
/// budget, the embedding, evaluation, several shards, samples on disk, two streams, two threads.
std::vector<NamedJob> torture_jobs();

/// On a decoder of two blocks of random weights, with everything that makes files: samples and their second
/// stream on disk, two shards, evaluation; gradients and a survey where `surveyed`.
NamedJob tiny_job(bool surveyed = false);

void write_tiny_model(const std::filesystem::path& folder);

}  // namespace lcomp::test
