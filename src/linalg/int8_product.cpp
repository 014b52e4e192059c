#include "lcomp/linalg/int8_product.h"

#include <mutex>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "linalg/onednn.h"

namespace lcomp::linalg {
namespace {

using dnnl::memory;

constexpr int64_t kRowChunk = PackedMatrix::kRowChunk;
constexpr int64_t kMostColumns = ((int64_t{1} << 31) - 1) / (128 * 128);
/// 2 * 255 * 64 < 2^15: two products of any unsigned byte with such codes do not saturate.
constexpr int64_t kSmallCode = 64;

// Slots of Scratch used here; see kFirstFreeSlot.
enum Int8Slot : size_t { kHalves, kInt8Scratchpad, kHighSums };

dnnl::matmul::primitive_desc describe_product(int64_t rows, memory::data_type type,
                                              const memory::desc& weights) {
  const dnnl::matmul::desc product(row_major(rows, weights.dims()[0], type), weights,
                                   row_major(rows, weights.dims()[1], memory::data_type::s32));
  return {product, caller_scratchpad(), cpu_engine()};
}

struct Int8Product {
  dnnl::matmul primitive;
  memory::desc scratchpad;
};

void check_codes(const at::Tensor& codes) {
  if (codes.dim() != 2 || codes.scalar_type() != at::kChar) {
    throw InvalidArgument("Int8Matrix",
                          fmt::format("codes must be an int8 matrix [out, in]; received {} dimensions of {}",
                                      codes.dim(), dtype_name(codes.scalar_type())));
  }
  if (codes.size(1) > kMostColumns) {
    throw InvalidArgument("Int8Matrix",
                          fmt::format("codes must have at most {} columns, so that sums fit 32 bits; "
                                      "received {}",
                                      kMostColumns, codes.size(1)));
  }
}

}  // namespace

bool has_native_int8() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::avx512_core_vnni:
    case dnnl::cpu_isa::avx512_core_bf16:
    case dnnl::cpu_isa::avx512_core_amx:
      return true;
    default:
      return false;
  }
}

struct Int8Matrix::Impl {
  int64_t out = 0;
  int64_t in = 0;
  bool direct = false;
  bool small_codes = false;
  memory weights;
  std::vector<int32_t> sums;
  mutable std::mutex mutex;
  mutable std::map<int64_t, Int8Product> products;

  memory::data_type input_type() const { return direct ? memory::data_type::s8 : memory::data_type::u8; }

  Int8Product product_for(int64_t rows) const {
    const std::lock_guard lock(mutex);
    auto found = products.find(rows);
    if (found == products.end()) {
      const auto description = describe_product(rows, input_type(), weights.get_desc());
      found =
          products.emplace(rows, Int8Product{dnnl::matmul(description), description.scratchpad_desc()}).first;
    }
    return found->second;
  }

  void execute(const void* x, int64_t rows, int32_t* y, Scratch& scratch) const {
    const Int8Product product = product_for(rows);
    const auto pad_floats = static_cast<int64_t>(product.scratchpad.get_size() / sizeof(float)) + 1;
    const memory pad(product.scratchpad, cpu_engine(), scratch.floats(kInt8Scratchpad, pad_floats));
    const memory src(row_major(rows, in, input_type()), cpu_engine(), const_cast<void*>(x));
    const memory dst(row_major(rows, out, memory::data_type::s32), cpu_engine(), y);
    product.primitive.execute(
        thread_stream(),
        {{DNNL_ARG_SRC, src}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, dst}, {DNNL_ARG_SCRATCHPAD, pad}});
    thread_stream().wait();
  }

  /// With u = x + 128 = low + 128 high: x W^T = low W^T + 128 (high W^T - sums).
  void split(const int8_t* x, int64_t rows, int32_t* y, Scratch& scratch) const {
    const int64_t count = rows * in;
    auto* low = reinterpret_cast<uint8_t*>(scratch.floats(kHalves, (2 * count + 3) / 4));
    uint8_t* high = low + count;
    if (small_codes) {
      for (int64_t i = 0; i < count; ++i) low[i] = static_cast<uint8_t>(x[i]) ^ 0x80U;
      execute(low, rows, y, scratch);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t o = 0; o < out; ++o) y[r * out + o] -= 128 * sums[static_cast<size_t>(o)];
      }
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      const auto u = static_cast<uint8_t>(static_cast<uint8_t>(x[i]) ^ 0x80U);
      low[i] = u & 0x7fU;
      high[i] = u >> 7U;
    }
    auto* high_sums = reinterpret_cast<int32_t*>(scratch.floats(kHighSums, rows * out));
    execute(low, rows, y, scratch);
    execute(high, rows, high_sums, scratch);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < out; ++o)
        y[r * out + o] += 128 * (high_sums[r * out + o] - sums[static_cast<size_t>(o)]);
    }
  }
};

Int8Matrix::Int8Matrix(const at::Tensor& codes, Int8Way way) : impl_(std::make_unique<Impl>()) {
  check_codes(codes);
  if (way == Int8Way::kDirect && !has_native_int8()) {
    throw Unsupported("Int8Matrix",
                      "direct products need a processor with AVX-512 VNNI or AMX; this one has neither");
  }
  impl_->out = codes.size(0);
  impl_->in = codes.size(1);
  impl_->direct = way == Int8Way::kDirect || (way == Int8Way::kBest && has_native_int8());
  const at::Tensor plain = codes.contiguous();
  const at::Tensor sums = plain.sum(1, false, at::kInt).contiguous();
  impl_->sums.assign(sums.data_ptr<int32_t>(), sums.data_ptr<int32_t>() + impl_->out);
  impl_->small_codes = plain.numel() == 0 || (plain.max().item<int64_t>() <= kSmallCode &&
                                              plain.min().item<int64_t>() >= -kSmallCode);

  const memory::desc any({impl_->in, impl_->out}, memory::data_type::s8, memory::format_tag::any);
  const auto chosen = describe_product(kRowChunk, impl_->input_type(), any).weights_desc();
  // [out, in] row-major is [in, out] column-major.
  memory source(memory::desc({impl_->in, impl_->out}, memory::data_type::s8, memory::format_tag::ba),
                cpu_engine(), plain.data_ptr());
  impl_->weights = memory(chosen, cpu_engine());
  dnnl::reorder(source, impl_->weights).execute(thread_stream(), source, impl_->weights);
  thread_stream().wait();
}

Int8Matrix::~Int8Matrix() = default;
Int8Matrix::Int8Matrix(Int8Matrix&&) noexcept = default;
Int8Matrix& Int8Matrix::operator=(Int8Matrix&&) noexcept = default;

int64_t Int8Matrix::out_features() const {
  return impl_->out;
}
int64_t Int8Matrix::in_features() const {
  return impl_->in;
}
const int32_t* Int8Matrix::row_sums() const {
  return impl_->sums.data();
}

void Int8Matrix::multiply(const int8_t* x, int64_t rows, int32_t* y, Scratch& scratch) const {
  for (int64_t begin = 0; begin < rows; begin += kRowChunk) {
    const int64_t count = std::min(kRowChunk, rows - begin);
    const int8_t* from = x + begin * impl_->in;
    int32_t* to = y + begin * impl_->out;
    if (impl_->direct) {
      impl_->execute(from, count, to, scratch);
    } else {
      impl_->split(from, count, to, scratch);
    }
  }
}

}  // namespace lcomp::linalg
