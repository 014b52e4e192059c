#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lcomp::model {

enum class Activation { kSilu, kGeluTanh, kGelu, kRelu };

/// RMSNorm has a weight, LayerNorm also a bias.
enum class NormKind { kRms, kLayer };

/// How a position becomes rotation angles (rotary position embedding, half-split pairs (i, i + dims/2)).
struct RopeSpec {
  enum class Type { kDefault, kLinear, kDynamic, kLlama3, kYarn, kLongrope };

  Type type = Type::kDefault;
  double theta = 10000.0;
  int64_t dims = 0;  ///< elements of a head that are rotated
  double factor = 1.0;
  double original_max_positions = 0.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  ///< llama3
  double beta_fast = 32.0, beta_slow = 1.0;              ///< yarn
  bool truncate = true;                                  ///< yarn
  std::vector<double> short_factor, long_factor;         ///< longrope, one per pair
  double attention_scaling = 1.0;                        ///< multiplies cosines and sines

  /// Whether the angles depend on the length of the sequence (dynamic, longrope).
  bool depends_on_length() const { return type == Type::kDynamic || type == Type::kLongrope; }

  /// Angle per position of each of the `dims / 2` pairs, float32, for a sequence of `length` tokens.
  std::vector<float> inverse_frequencies(int64_t length) const;
};

/// What an operator does in its block. A block has them in this order; without a gate there is no kGate.
enum class OperatorRole { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown };

/// What a family calls one operator of a block: "self_attn.q_proj" and, in reports, "q_proj".
struct OperatorName {
  std::string path;
  std::string kind;
};

/// Where a family keeps its tensors. Operators and norms of a block stand behind
/// `Architecture::block_prefix`, everything else but the head behind `prefix`. Empty names: the family has no
/// such part.
struct TensorNames {
  std::string prefix = "model.";
  bool prefix_optional = false;  ///< encoders are also stored without it, when no task is on top of them
  std::string blocks = "layers.";
  std::string embedding = "embed_tokens";
  std::string positions;       ///< learned position embeddings
  std::string token_types;     ///< embeddings of the segments
  std::string embedding_norm;  ///< applied to the sum of the embeddings
  std::string final_norm = "norm";
  std::string head = "lm_head";
  std::string attention_norm = "input_layernorm";
  std::string mlp_norm = "post_attention_layernorm";
  std::array<OperatorName, 7> operators = {{{"self_attn.q_proj", "q_proj"},  // by OperatorRole
                                            {"self_attn.k_proj", "k_proj"},
                                            {"self_attn.v_proj", "v_proj"},
                                            {"self_attn.o_proj", "o_proj"},
                                            {"mlp.gate_proj", "gate_proj"},
                                            {"mlp.up_proj", "up_proj"},
                                            {"mlp.down_proj", "down_proj"}}};
  std::string norm_weight = ".weight";  ///< ending of a norm's weight; BERT's first files have ".gamma"
  std::string norm_bias = ".bias";      ///< or ".beta"
  /// Beginnings of the names of what may stand on top of an encoder, which is only copied.
  std::vector<std::string> task_heads;
};

/// What config.json calls the widths. Empty: it has no such field.
struct WidthFields {
  std::string heads = "num_attention_heads";
  std::string kv_heads = "num_key_value_heads";
  std::string intermediate = "intermediate_size";
};

/// One linear operator of a block, as the architecture knows it before any weight is read.
struct OperatorInfo {
  std::string name;  ///< tensor name without ".weight": "model.layers.3.mlp.up_proj"
  std::string kind;  ///< short name for reports: "up_proj"
  int64_t out_features = 0;
  int64_t in_features = 0;
  bool has_bias = false;
  OperatorRole role = OperatorRole::kQuery;
};

/// How wide one block is. Blocks of one model may differ after structured pruning.
struct BlockWidths {
  int64_t heads = 0;     ///< query heads
  int64_t kv_heads = 0;  ///< key-value heads, each read by heads / kv_heads query heads
  int64_t intermediate = 0;

  bool operator==(const BlockWidths&) const = default;
};

/// A part of an operator that belongs to the units of a dependency group: rows (or columns) `u * per_unit` to
/// `(u + 1) * per_unit` are those of unit u.
struct UnitSlice {
  size_t op = 0;  ///< position in the block's list of operators
  bool rows = true;
  int64_t per_unit = 1;
};

enum class UnitKind {
  kAttention,  ///< a key-value head with the query heads that read it
  kChannel,    ///< a feed-forward channel
};

/// What must go together when something of a block is deleted: every slice of a unit. Units make the input of
/// one operator, which closes the dependency group; what leaves the block keeps its width.
struct DependencyGroup {
  UnitKind kind = UnitKind::kChannel;
  std::string name;  ///< "attention", "mlp"
  int64_t units = 0;
  std::vector<UnitSlice> slices;
  size_t input_group = 0;  ///< group of operators that reads what the units make

  /// The slice of columns that closes the group.
  const UnitSlice& closing() const { return slices.back(); }
};

/// Operators that read the same activation: one calibration statistic serves them all.
struct GroupInfo {
  std::string name;               ///< "attention_input", "attention_output", "mlp_input", "mlp_output"
  std::vector<size_t> operators;  ///< positions in the block's list of operators
  std::string absorber;  ///< norm or operator that a scale of this input can be folded into; may be empty
  bool input_in_work = false;  ///< `Block::advance` leaves this input in `SampleState::work`
  /// Grouped query attention: input channel (h * head_width + c) is row (h / heads_per_source * head_width +
  /// c) of the absorber, because heads_per_source query heads read one value head. 0: channel j is row j.
  int64_t head_width = 0;
  int64_t heads_per_source = 1;
};

/// The facts about a transformer of one kind of block, as data. Each of its two halves is
///
///     x += half(norm(x))        `norm_first`: decoders of the Llama skeleton
///     x  = norm(x + half(x))    otherwise: BERT and its kin
///
/// with attention, then mlp(x) = down(act(gate(x)) * up(x)), or down(act(up(x))) when it is not `gated`.
/// Everything that differs between the families is a field; a family is a function from config.json to this
/// struct.
struct Architecture {
  std::string family;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  int64_t token_types = 0;  ///< segments that have an embedding; 0: none has
  double norm_eps = 1e-6;
  NormKind norm = NormKind::kRms;
  bool norm_first = true;
  bool causal = true;  ///< a token sees those up to itself; else all
  bool gated = true;
  Activation activation = Activation::kSilu;
  bool qkv_bias = false;
  bool output_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;  ///< RMSNorm over every query and key head before rotation
  bool tied_embeddings = false;
  RopeSpec rope;                 ///< of 0 dims where positions are learned
  std::vector<int64_t> windows;  ///< per layer: keys a token sees, itself included; 0 = all
  /// Per layer. `heads`, `kv_heads` and `intermediate_size` above are those of config.json, the widths of all
  /// layers unless it has others of its own for each (`lcomp.block_widths`).
  std::vector<BlockWidths> widths;

  TensorNames names;
  WidthFields width_fields;

  /// Whether a head gives the probabilities of the next token.
  bool is_language_model() const { return !names.head.empty(); }
  std::string block_prefix(int64_t block) const {
    return names.prefix + names.blocks + std::to_string(block) + ".";
  }
  std::string embedding_name() const { return names.prefix + names.embedding + ".weight"; }
  std::string head_name() const { return names.head + ".weight"; }
  /// The values of a norm, by tensor name: `name` is that of the norm itself, its prefix included.
  std::vector<std::string> norm_tensors(const std::string& name) const;
  /// The norms of a block by tensor name, with their lengths.
  std::map<std::string, int64_t> block_norms(int64_t block) const;
  /// Position of an operator in a block's list.
  size_t position(OperatorRole role) const {
    return static_cast<size_t>(role) - (!gated && role > OperatorRole::kGate ? 1 : 0);
  }
  std::vector<OperatorInfo> operators(int64_t block) const;
  std::vector<GroupInfo> groups(int64_t block) const;
  const BlockWidths& block_widths(int64_t block) const { return widths.at(static_cast<size_t>(block)); }
  /// Units that structured pruning may delete from a block: key-value heads with the query heads that read
  /// them, and feed-forward channels. An operator may be in several dependency groups.
  std::vector<DependencyGroup> dependency_groups(int64_t block) const;
  /// The dependency groups of a block of these widths.
  std::vector<DependencyGroup> dependency_groups(const BlockWidths& of) const;
  /// The largest of each width over the layers.
  BlockWidths widest() const;
  /// The widths of config.json's usual fields that have room for all layers and that other software loads: a
  /// number of heads that divides the hidden size, and all of them where that is the only way.
  BlockWidths common_widths() const;
  /// Floating-point operations of the linear operators for one token, and of attention over a sequence of
  /// `length` tokens, over all blocks (multiplications and additions counted).
  double linear_flops_per_token() const;
  double attention_flops(int64_t length) const;
};

/// Model families this version reads, in the order of the docs.
std::vector<std::string> known_families();

/// Reads config.json. Every field is checked; an unknown `model_type`, activation or rope type is
/// `Unsupported` and names the known ones. `where` is the file's path, for messages. Both the transformers 4
/// and 5 spellings are read.
Architecture read_architecture(std::string_view config_json, const std::string& where);

/// What config.json must say for blocks of these widths, key by key, as JSON; an empty text removes the key.
/// Equal widths are those of an ordinary checkpoint; others are listed under `lcomp.block_widths` besides,
/// which other software does not read.
std::vector<std::pair<std::string, std::string>> width_entries(const Architecture& architecture,
                                                               const std::vector<BlockWidths>& widths);

/// A warning for people when sequences of `length` tokens go beyond max_position_embeddings, where no
/// training has been; "" when they do not.
std::string beyond_positions(const Architecture& architecture, int64_t length);

/// Throws ConfigError in the name of `where` when positions are learned and a sequence of `length` tokens has
/// some that have no embedding.
void require_positions(const Architecture& architecture, int64_t length, const std::string& where);

}  // namespace lcomp::model
