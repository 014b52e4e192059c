#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <filesystem>
#include <string_view>

#include "lcomp/core/options.h"

namespace lcomp::model {

/// How the last hidden states of a sentence become one vector.
enum class Pooling { kMean, kCls, kMax };

/// What `1_Pooling/config.json` of a model directory asks for (the form of Sentence-BERT, Reimers and
/// Gurevych 2019, section 3); the mean when there is no such file. Throws CorruptFile for a broken file and
/// Unsupported for another kind of pooling, or several at once.
Pooling read_pooling(const std::filesystem::path& directory);

/// The embedding `[hidden]` of a sentence, of length 1: mean over the tokens, first token, or maximum over
/// the tokens of `states` `[tokens, hidden]`, then divided by its length. Can be differentiated.
at::Tensor sentence_embedding(const at::Tensor& states, Pooling pooling);

}  // namespace lcomp::model

namespace lcomp {

template <>
struct EnumNames<model::Pooling> {
  static constexpr std::array<std::string_view, 3> names = {"mean", "cls", "max"};
};

}  // namespace lcomp
