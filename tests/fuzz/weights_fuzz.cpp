// Any bytes as the safetensors file of a model of one block, in which operators are stored in all dense
// formats, in all sparse ones, or in all formats of factors and sums: refused as corrupt, or every weight
// decodes and can be applied, and the block runs. The first two seeds are outputs of jobs on random llamas of
// that size, weights_config.json and sparse_weights_config.json their config.json; the third and
// factor_weights_config.json are tests/support/factored_llama.h, as tests/corrupt/factored_corrupt_test.cpp
// writes it.
#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <string_view>

#include "io/safetensors_header.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/model/model.h"
#include "lcomp/quant/quantized_weight.h"
#include "mutator.h"

namespace {

using namespace lcomp;

/// The file's tensors in memory; those of types that LibTorch has no name for are left out.
io::CheckpointPtr checkpoint_of(std::string_view file) {
  const uint64_t length = io::safetensors_header_length(file.substr(0, 8), file.size(), "fuzz");
  const auto header = io::parse_safetensors_header(file.substr(8, length), file.size(), "fuzz");
  std::map<std::string, at::Tensor> tensors;
  std::set<std::string> float8;
  for (const io::TensorInfo& info : header.tensors) {
    const bool is_float8 = info.dtype == io::StoredDtype::kF8E4M3;
    const auto type = is_float8 ? std::optional(at::kByte) : io::scalar_type_of(info.dtype);
    if (!type) continue;
    at::Tensor tensor = at::empty(info.shape, *type);
    if (tensor.nbytes() > 0)
      std::memcpy(tensor.data_ptr(), file.data() + header.data_begin + info.begin, tensor.nbytes());
    tensors[info.name] = tensor;
    if (is_float8) float8.insert(info.name);
  }
  return std::make_shared<io::MemoryCheckpoint>(tensors, float8);
}

/// Numbers may overflow on the way, and inputs that are not finite are refused.
void run_block(const model::Model& model, model::Block& block) {
  for (size_t group = 0; group < block.groups().size(); ++group)
    block.prepare(group, linalg::Precision::kF32);
  model::SampleState state{model.embed(std::array<int64_t, 3>{0, 7, 3}), {}};
  linalg::Scratch scratch;
  try {
    block.forward(state, scratch);
  } catch (const NumericalError&) {
  }
}

/// Throws what reading throws.
void decode_block(const std::string& config, std::string_view file) {
  const model::Model model(config, checkpoint_of(file), "fuzz");
  model::Block block = model.load_block(0);
  for (const model::LinearOp& op : block.ops()) {
    op.weight->dense();
    if (dynamic_cast<const quant::QuantizedWeight*>(op.weight.get()) == nullptr)
      op.weight->apply(at::ones({2, op.info.in_features}));
  }
  if (const WeightPtr& embedding = model.compressed_embedding()) {
    embedding->dense();
    embedding->apply(at::ones({2, embedding->in_features()}));
    model.head_rows(2, 5);
  }
  run_block(model, block);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::array configs = {io::read_file(LCOMP_FUZZ_DIR "/weights_config.json"),
                                     io::read_file(LCOMP_FUZZ_DIR "/sparse_weights_config.json"),
                                     io::read_file(LCOMP_FUZZ_DIR "/factor_weights_config.json")};
  for (const std::string& config : configs) {
    try {
      decode_block(config, {reinterpret_cast<const char*>(data), size});
    } catch (const CorruptFile&) {
    } catch (const Unsupported&) {
    }
  }
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  return lcomp::fuzz::mutate_and_repair(data, size, most, seed, lcomp::fuzz::repair_safetensors);
}
