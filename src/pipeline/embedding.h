#pragma once

#include <filesystem>
#include <string>

#include "lcomp/lowrank/embedding.h"

namespace lcomp::pipeline {

/// Every token of a vocabulary in the morphemes that `options` ask for: those of the file `segments`, or
/// common affixes. Reads tokenizer.json in the directory of the model; throws what reading these files does.
lowrank::MorphemeIndex token_morphemes(const std::filesystem::path& model, int64_t vocabulary,
                                       const lowrank::EmbeddingOptions& options);

/// "low_rank, 5 times smaller, 20 tokens exact".
std::string embedding_summary(const lowrank::EmbeddingOptions& options);

}  // namespace lcomp::pipeline
