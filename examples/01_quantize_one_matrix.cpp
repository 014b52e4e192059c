// Quantizes one matrix, without a model, a job or a pipeline: to 4 bits in groups of 64, once by rounding to
// nearest and once with GPTQ, which knows what inputs the matrix will meet. Prints what each loses, stores
// the better one as compressed-tensors does, and reads it back. Link with lcomp::lcomp for the files; the
// quantization by itself needs lcomp::math only.

#include <ATen/ATen.h>

#include <cstdio>

#include "lcomp/core/rng.h"
#include "lcomp/core/weight_error.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/io/safetensors_writer.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/rtn.h"

namespace io = lcomp::io;
namespace quant = lcomp::quant;

namespace {

at::Tensor random_matrix(lcomp::Rng& rng, int64_t rows, int64_t columns) {
  at::Tensor matrix = at::empty({rows, columns}, at::kFloat);
  float* values = matrix.data_ptr<float>();
  for (int64_t i = 0; i < rows * columns; ++i) values[i] = static_cast<float>(rng.normal());
  return matrix;
}

/// Inputs as transformers have them: a few directions carry most of the energy.
at::Tensor correlated_inputs(lcomp::Rng& rng, int64_t tokens, int64_t features) {
  constexpr int64_t kDirections = 24;
  return random_matrix(rng, tokens, kDirections).matmul(random_matrix(rng, kDirections, features)) +
         0.5 * random_matrix(rng, tokens, features);
}

/// Receives the tensors that a weight is stored as.
struct Collector final : lcomp::TensorSink {
  io::NamedTensors tensors;
  void add(const std::string& name, const at::Tensor& tensor) override { tensors.emplace_back(name, tensor); }
  void add_float8_e4m3(const std::string& name, const at::Tensor& codes) override { add(name, codes); }
};

void print_error(const char* method, const lcomp::WeightError& error) {
  std::printf("%-5s weight error %.4f, output error %.6f\n", method, error.relative, *error.activation);
}

}  // namespace

int main() {
  lcomp::Rng rng(/*seed=*/0);
  const at::Tensor weight = random_matrix(rng, 256, 512);  // [out, in]
  const at::Tensor inputs = correlated_inputs(rng, 2048, 512);
  const at::Tensor second_moment = inputs.t().matmul(inputs);  // H = sum over tokens of x x^T

  quant::QuantScheme scheme;
  scheme.bits = 4;
  scheme.group_size = 64;
  scheme.scale_dtype = quant::ScaleDtype::kFloat16;

  const quant::QuantizedWeight nearest = quant::rtn(weight, scheme);
  const quant::GptqResult solved = quant::gptq(weight, second_moment, scheme);

  const auto nearest_error = lcomp::weight_error(weight, nearest.dense(), second_moment);
  const auto solved_error = lcomp::weight_error(weight, solved.weight.dense(), second_moment);
  print_error("rtn", nearest_error);
  print_error("gptq", solved_error);

  Collector stored;
  solved.weight.save(stored, "proj");
  io::write_safetensors("proj.safetensors", stored.tensors);
  std::printf("stored %lld bytes: %s\n", static_cast<long long>(solved.weight.bytes()),
              solved.weight.describe().c_str());

  const io::SafetensorsFile file("proj.safetensors");
  quant::PackedTensors packed;
  packed.packed = file.read("proj.weight_packed");
  packed.scale = file.read("proj.weight_scale");
  packed.shape = file.read("proj.weight_shape");
  const auto restored = quant::QuantizedWeight::from_packed(packed, scheme, "proj");

  const bool same = at::equal(restored.dense(), solved.weight.dense());
  const bool better = *solved_error.activation < *nearest_error.activation;
  std::printf("read back: %s\n", same ? "the same matrix" : "ANOTHER MATRIX");
  return same && better ? 0 : 1;
}
