#include "lcomp/core/error.h"
#include "model/families/family.h"

namespace lcomp::model {
namespace {

/// The fields of config.json that BERT and DistilBERT call by different names.
struct EncoderFields {
  const char* hidden_size;
  const char* intermediate_size;
  const char* layers;
  const char* heads;
  const char* activation;
};

/// What the encoders share: norms behind the sums, attention in both directions, learned positions, biases
/// everywhere, no gate.
Architecture read_encoder(const ConfigView& config, const std::string& family, const EncoderFields& fields) {
  Architecture a;
  a.family = family;
  a.hidden_size = config.positive(fields.hidden_size);
  a.intermediate_size = config.positive(fields.intermediate_size);
  a.layers = read_layers(config, fields.layers);
  a.heads = config.positive(fields.heads);
  a.kv_heads = a.heads;
  // Only where heads were deleted is there a head_dim.
  if (!config.has("head_dim") && a.hidden_size % a.heads != 0)
    config.reject(fields.hidden_size, fmt::format("must be a multiple of {} = {}", fields.heads, a.heads));
  a.head_dim = config.positive_or("head_dim", a.hidden_size / a.heads);
  a.vocab_size = config.positive("vocab_size");
  a.max_positions = config.positive_or("max_position_embeddings", 512);
  a.norm_eps = config.number("layer_norm_eps").value_or(1e-12);
  if (!(a.norm_eps > 0)) config.reject("layer_norm_eps", "must be positive");
  a.activation = read_activation(config, fields.activation, Activation::kGelu);
  a.norm = NormKind::kLayer;
  a.norm_first = a.causal = a.gated = false;
  a.qkv_bias = a.output_bias = a.mlp_bias = true;
  a.windows.assign(static_cast<size_t>(a.layers), 0);
  a.width_fields = {fields.heads, "", fields.intermediate_size};
  a.names.prefix = family + ".";
  a.names.prefix_optional = true;
  a.names.embedding = "embeddings.word_embeddings";
  a.names.positions = "embeddings.position_embeddings";
  a.names.embedding_norm = "embeddings.LayerNorm";
  a.names.final_norm = a.names.head = "";
  return a;
}

/// "must be false; it is true", for variants of the encoder that compute something else.
void refuse(const ConfigView& config, const char* field) {
  if (!config.boolean(field).value_or(false)) return;
  throw Unsupported(config.place(field), "must be false: only encoders are supported; it is true");
}

}  // namespace

/// BERT (Devlin et al. 2018) and what kept its form, MiniLM for one. What stands on top of the encoder is
/// not run.
Architecture read_bert(const ConfigView& config) {
  for (const char* field : {"is_decoder", "add_cross_attention"}) refuse(config, field);
  const std::string positions = config.string("position_embedding_type").value_or("absolute");
  if (positions != "absolute") {
    throw Unsupported(config.place("position_embedding_type"),
                      fmt::format("must be absolute; it is '{}'", positions));
  }
  Architecture a = read_encoder(
      config, "bert",
      {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"});
  a.token_types = config.positive_or("type_vocab_size", 2);
  a.names.token_types = "embeddings.token_type_embeddings";
  a.names.blocks = "encoder.layer.";
  a.names.attention_norm = "attention.output.LayerNorm";
  a.names.mlp_norm = "output.LayerNorm";
  a.names.operators = {{{"attention.self.query", "query"},
                        {"attention.self.key", "key"},
                        {"attention.self.value", "value"},
                        {"attention.output.dense", "attention.output"},
                        {},
                        {"intermediate.dense", "intermediate"},
                        {"output.dense", "output"}}};
  a.names.task_heads = {"pooler.", "cls.", "classifier.", "qa_outputs."};
  return a;
}

/// DistilBERT (Sanh et al. 2019): BERT without segments and pooler, under names of its own.
Architecture read_distilbert(const ConfigView& config) {
  Architecture a =
      read_encoder(config, "distilbert", {"dim", "hidden_dim", "n_layers", "n_heads", "activation"});
  a.names.blocks = "transformer.layer.";
  a.names.attention_norm = "sa_layer_norm";
  a.names.mlp_norm = "output_layer_norm";
  a.names.operators = {{{"attention.q_lin", "q_lin"},
                        {"attention.k_lin", "k_lin"},
                        {"attention.v_lin", "v_lin"},
                        {"attention.out_lin", "out_lin"},
                        {},
                        {"ffn.lin1", "lin1"},
                        {"ffn.lin2", "lin2"}}};
  a.names.task_heads = {"vocab_transform.", "vocab_layer_norm.", "vocab_projector.",
                        "pre_classifier.",  "classifier.",       "qa_outputs."};
  return a;
}

}  // namespace lcomp::model
