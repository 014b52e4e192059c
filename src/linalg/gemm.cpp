#include "lcomp/linalg/gemm.h"

#include <cblas.h>
#include <omp.h>

#include <cstdlib>
#include <mutex>

#include "core/stopwatch.h"
#include "lcomp/core/error.h"
#include "linalg/bf16.h"
#include "linalg/onednn.h"

namespace lcomp::linalg {
namespace {

using dnnl::memory;

memory::data_type dnnl_type(Precision precision) {
  return precision == Precision::kBf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

dnnl::matmul::primitive_desc describe_product(int64_t rows, Precision precision, const memory::desc& weights,
                                              bool accumulate) {
  const int64_t in = weights.dims()[0];
  const int64_t out = weights.dims()[1];
  dnnl::primitive_attr attributes = caller_scratchpad();
  if (accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0F);
    attributes.set_post_ops(sum);
  }
  const dnnl::matmul::desc product(row_major(rows, in, dnnl_type(precision)), weights,
                                   row_major(rows, out, memory::data_type::f32));
  return dnnl::matmul::primitive_desc(product, attributes, cpu_engine());
}

struct Product {
  dnnl::matmul primitive;
  memory::desc scratchpad;
};

// Slots of Scratch used here; see kFirstFreeSlot.
enum Slot : size_t { kConversion, kScratchpad };

}  // namespace

bool has_native_bf16() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::avx512_core_bf16:
    case dnnl::cpu_isa::avx512_core_amx:
      return true;
    default:
      return false;
  }
}

struct Scratch::Buffer {
  float* data = nullptr;
  int64_t capacity = 0;

  Buffer() = default;
  Buffer(Buffer&& other) noexcept : data(std::exchange(other.data, nullptr)), capacity(other.capacity) {}
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { std::free(data); }
};

Scratch::Scratch() = default;
Scratch::~Scratch() = default;
Scratch::Scratch(Scratch&&) noexcept = default;

float* Scratch::floats(size_t slot, int64_t count) {
  while (buffers_.size() <= slot) buffers_.emplace_back();
  Buffer& buffer = buffers_[slot];
  if (buffer.capacity < count) {
    std::free(std::exchange(buffer.data, nullptr));
    buffer.capacity = 0;
    const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
    buffer.data = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (buffer.data == nullptr)
      throw ResourceError("Scratch", fmt::format("{} bytes must be available; allocation failed", bytes));
    buffer.capacity = count;
  }
  return buffer.data;
}

void Scratch::release() {
  buffers_.clear();
}

struct PackedMatrix::Impl {
  int64_t out = 0;
  int64_t in = 0;
  Precision precision = Precision::kF32;
  memory weights;
  // Products by (rows, accumulate). Full chunks are made once; the remainder of each sample length once more.
  mutable std::mutex mutex;
  mutable std::map<std::pair<int64_t, bool>, Product> products;

  Product product_for(int64_t rows, bool accumulate) const {
    const std::lock_guard lock(mutex);
    auto found = products.find({rows, accumulate});
    if (found == products.end()) {
      const auto description = describe_product(rows, precision, weights.get_desc(), accumulate);
      found = products
                  .emplace(std::pair{rows, accumulate},
                           Product{dnnl::matmul(description), description.scratchpad_desc()})
                  .first;
    }
    return found->second;
  }
};

PackedMatrix::PackedMatrix(const std::vector<at::Tensor>& weights, Precision precision)
    : impl_(std::make_unique<Impl>()) {
  if (weights.empty()) throw InvalidArgument("PackedMatrix", "at least one weight is needed; received none");
  if (precision == Precision::kBf16 && !has_native_bf16()) {
    throw Unsupported("PackedMatrix",
                      "bfloat16 products need a processor with AVX-512 BF16 or AMX; this one has neither");
  }
  impl_->precision = precision;
  impl_->in = weights[0].size(-1);
  for (const at::Tensor& weight : weights) {
    if (weight.dim() != 2 || weight.size(1) != impl_->in) {
      throw InvalidArgument(
          "PackedMatrix", fmt::format("all weights must be matrices [out, {}]; received one with {} columns",
                                      impl_->in, weight.size(-1)));
    }
    impl_->out += weight.size(0);
  }
  const auto type = dnnl_type(precision);
  const memory::desc any({impl_->in, impl_->out}, type, memory::format_tag::any);
  const auto chosen = describe_product(kRowChunk, precision, any, false).weights_desc();

  const at::ScalarType stacked_type = precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat;
  std::vector<at::Tensor> parts;
  parts.reserve(weights.size());
  for (const at::Tensor& weight : weights) parts.push_back(weight.to(stacked_type));
  const at::Tensor stacked = parts.size() == 1 ? parts[0].contiguous() : at::cat(parts, 0);
  parts.clear();

  // [out, in] row-major is [in, out] column-major.
  memory source(memory::desc({impl_->in, impl_->out}, type, memory::format_tag::ba), cpu_engine(),
                stacked.data_ptr());
  impl_->weights = memory(chosen, cpu_engine());
  dnnl::reorder(source, impl_->weights).execute(thread_stream(), source, impl_->weights);
  thread_stream().wait();
}

PackedMatrix::~PackedMatrix() = default;
PackedMatrix::PackedMatrix(PackedMatrix&&) noexcept = default;
PackedMatrix& PackedMatrix::operator=(PackedMatrix&&) noexcept = default;

int64_t PackedMatrix::out_features() const {
  return impl_->out;
}
int64_t PackedMatrix::in_features() const {
  return impl_->in;
}

void PackedMatrix::multiply(const float* x, int64_t rows, float* y, bool accumulate, Scratch& scratch) const {
  for (int64_t begin = 0; begin < rows; begin += kRowChunk) {
    const int64_t count = std::min(kRowChunk, rows - begin);
    const float* from = x + begin * impl_->in;
    const void* source = from;
    if (impl_->precision == Precision::kBf16) {
      auto* converted =
          reinterpret_cast<uint16_t*>(scratch.floats(kConversion, (kRowChunk * impl_->in + 1) / 2));
      floats_to_bf16(from, converted, count * impl_->in);
      source = converted;
    }
    const Product product = impl_->product_for(count, accumulate);
    const auto pad_floats = static_cast<int64_t>(product.scratchpad.get_size() / sizeof(float)) + 1;
    const memory pad(product.scratchpad, cpu_engine(), scratch.floats(kScratchpad, pad_floats));
    const memory src(row_major(count, impl_->in, dnnl_type(impl_->precision)), cpu_engine(),
                     const_cast<void*>(source));
    const memory dst(row_major(count, impl_->out, memory::data_type::f32), cpu_engine(),
                     y + begin * impl_->out);
    product.primitive.execute(thread_stream(), {{DNNL_ARG_SRC, src},
                                                {DNNL_ARG_WEIGHTS, impl_->weights},
                                                {DNNL_ARG_DST, dst},
                                                {DNNL_ARG_SCRATCHPAD, pad}});
    thread_stream().wait();
  }
}

void syrk_upper(ThreadPool* pool, const float* x, int64_t rows, int64_t n, float* gram) {
  constexpr int64_t kTile = 288;
  std::vector<std::pair<int64_t, int64_t>> tiles;
  for (int64_t i = 0; i < n; i += kTile) {
    for (int64_t j = i; j < n; j += kTile) tiles.emplace_back(i, j);
  }
  parallel_for(pool, static_cast<int64_t>(tiles.size()), [&](int64_t t, int) {
    const auto [i, j] = tiles[static_cast<size_t>(t)];
    const auto height = static_cast<int>(std::min(kTile, n - i));
    const auto width = static_cast<int>(std::min(kTile, n - j));
    const auto stride = static_cast<int>(n);
    const auto depth = static_cast<int>(rows);
    float* tile = gram + i * n + j;
    if (i == j) {
      cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, height, depth, 1.0F, x + i, stride, 1.0F, tile,
                  stride);
    } else {
      cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, height, width, depth, 1.0F, x + i, stride, x + j,
                  stride, 1.0F, tile, stride);
    }
  });
}

void add_cross_products(ThreadPool* pool, const float* d, const float* x, int64_t rows, int64_t n,
                        float* sum) {
  constexpr int64_t kTile = 288;
  const int64_t tiles = (n + kTile - 1) / kTile;
  parallel_for(pool, tiles * tiles, [&](int64_t t, int) {
    const int64_t i = t / tiles * kTile, j = t % tiles * kTile;
    const auto stride = static_cast<int>(n);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, static_cast<int>(std::min(kTile, n - i)),
                static_cast<int>(std::min(kTile, n - j)), static_cast<int>(rows), 1.0F, d + i, stride, x + j,
                stride, 1.0F, sum + i * n + j, stride);
  });
}

void mirror_upper(at::Tensor& gram) {
  const int64_t n = gram.size(0);
  float* g = gram.data_ptr<float>();
  constexpr int64_t kTile = 32;  // both tiles stay in the first-level cache
  for (int64_t bi = 0; bi < n; bi += kTile) {
    for (int64_t bj = bi; bj < n; bj += kTile) {
      for (int64_t i = bi; i < std::min(bi + kTile, n); ++i) {
        for (int64_t j = std::max(bj, i + 1); j < std::min(bj + kTile, n); ++j) g[j * n + i] = g[i * n + j];
      }
    }
  }
}

double measure_gemm_peak(Precision precision) {
  constexpr int64_t kSide = 768;
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const PackedMatrix weights({at::ones({kSide, kSide})}, precision);
  const at::Tensor x = at::ones({kSide, kSide});
  at::Tensor y = at::zeros({kSide, kSide});
  Scratch scratch;
  double best = 0;
  for (int repeat = 0; repeat < 6; ++repeat) {
    // Processor time, as that of the phases which are compared with it: other programs may be running.
    const double begin = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
    weights.multiply(x.data_ptr<float>(), kSide, y.data_ptr<float>(), false, scratch);
    best = std::max(best, 2e-9 * kSide * kSide * kSide / (cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - begin));
  }
  omp_set_num_threads(before);
  return best;
}

}  // namespace lcomp::linalg
