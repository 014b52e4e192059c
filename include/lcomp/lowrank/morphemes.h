#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

/// Tokens as sequences of morphemes, for MorphTE (Gan et al., NeurIPS 2022, and its code).
namespace lcomp::lowrank {

/// Splits tokens into morphemes.
class Segmenter {
 public:
  virtual ~Segmenter() = default;
  /// The morphemes of a token in their order, whose concatenation need not be the token. Empty when the
  /// segmenter does not know it.
  virtual std::vector<std::string> segment(const std::string& token) const = 0;
};

using SegmenterPtr = std::shared_ptr<const Segmenter>;

/// Segmentations by hand or by another program, such as Morfessor: io::read_segmentations reads them.
class TableSegmenter final : public Segmenter {
 public:
  explicit TableSegmenter(std::unordered_map<std::string, std::vector<std::string>> words);
  std::vector<std::string> segment(const std::string& token) const override;

 private:
  std::unordered_map<std::string, std::vector<std::string>> words_;
};

/// What AffixSegmenter takes off words.
struct AffixTable {
  std::vector<std::string> prefixes, suffixes;
  int64_t shortest_stem = 3;  ///< letters that must be left

  /// The common affixes of English.
  static AffixTable english();
};

/// Takes the longest prefix of the table off a word of ASCII letters, again and again while the stem stays
/// long enough, then suffixes likewise: "unhelpfulness" is un, help, ful, ness. Affixes are taken as they are
/// written: "Unhelpful" keeps its "Un". Other tokens are not known.
class AffixSegmenter final : public Segmenter {
 public:
  explicit AffixSegmenter(AffixTable table = AffixTable::english());
  std::vector<std::string> segment(const std::string& token) const override;

 private:
  AffixTable table_;
};

/// Makes a marker at the beginning of a token (the space of byte-level BPE, U+0120; "##" of WordPiece) or at
/// its end ("@@") a morpheme of its own; what is left goes to another segmenter, and is one morpheme when
/// that does not know it. The first marker that fits is taken, once. A token that is nothing but a marker
/// stays.
class MarkerSegmenter final : public Segmenter {
 public:
  MarkerSegmenter(SegmenterPtr inner, std::vector<std::string> leading,
                  std::vector<std::string> trailing = {});
  /// With the markers of common vocabularies: U+0120 (space), U+010A (line end), U+0109 (tab), U+2581
  /// (SentencePiece), "##"; at the end "@@", "</w>".
  explicit MarkerSegmenter(SegmenterPtr inner);
  std::vector<std::string> segment(const std::string& token) const override;

 private:
  SegmenterPtr inner_;
  std::vector<std::string> leading_, trailing_;
};

/// What the tables of a MorphemeWeight are indexed by.
struct MorphemeIndex {
  at::Tensor index;                    ///< int32 [tokens, order]
  std::vector<std::string> morphemes;  ///< in order of first appearance
  int64_t collisions = 0;              ///< tokens less distinct rows: rows that cannot tell tokens apart
};

/// The morphemes of tokens as `order` (1 to 16) numbers each. Of more morphemes than that, the tail is
/// concatenated into the last; where there are fewer, slot p (from 1) holds "[PAD-p]", a morpheme with a
/// vector of its own, because one of zeros would make the whole product zero. A token that the segmenter does
/// not know, and every special one (`specials`: positions in `tokens`), is a single morpheme. `known`: when
/// not empty, a morpheme that is not in it and no whole token is "[UNK]". Throws InvalidArgument for an order
/// or a special that does not fit, or when there are no tokens.
MorphemeIndex morpheme_index(const std::vector<std::string>& tokens, const Segmenter& segmenter,
                             int64_t order, const std::vector<int64_t>& specials = {},
                             const std::vector<std::string>& known = {});

}  // namespace lcomp::lowrank
