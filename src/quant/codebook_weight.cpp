#include "lcomp/quant/codebook_weight.h"

#include <ATen/ATen.h>

#include <limits>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lcomp/quant/packing.h"
#include "quant/codebook_kernels.h"

namespace lcomp::quant {
namespace {

/// Rows of x up to which multiplying from the codes beats decoding the matrix once.
constexpr int64_t kDirectRows = 16;

bool is_stored_type(at::ScalarType type) {
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
}

std::string shape_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return "missing";
  return fmt::format("{} [{}]", dtype_name(tensor.scalar_type()), fmt::join(tensor.sizes(), ", "));
}

/// What is wrong with a set of stored tensors: the part at fault ("codebook") and what must hold of it.
struct Fault {
  const char* part;
  std::string text;
};

using MaybeFault = std::optional<Fault>;

MaybeFault find_shape_fault(const CodebookTensors& t, int64_t bits, int64_t out, int64_t in) {
  const auto is = [](const at::Tensor& tensor, at::ScalarType type, at::IntArrayRef shape) {
    return tensor.defined() && tensor.scalar_type() == type && tensor.sizes() == shape;
  };
  const int64_t entries = int64_t{1} << bits;
  if (!is(t.codes, at::kInt, {out, packed_words(in, static_cast<int>(bits))})) {
    return Fault{"codes", fmt::format("must be int32 [{}, {}]; it is {}", out,
                                      packed_words(in, static_cast<int>(bits)), shape_of(t.codes))};
  }
  if (!t.codebook.defined() || !is_stored_type(t.codebook.scalar_type()) ||
      t.codebook.sizes() != at::IntArrayRef({out, entries})) {
    return Fault{"codebook", fmt::format("must be float32, bfloat16 or float16 [{}, {}]; it is {}", out,
                                         entries, shape_of(t.codebook))};
  }
  if (!at::isfinite(t.codebook).all().item<bool>()) return Fault{"codebook", "must hold finite values only"};
  return {};
}

/// Offsets must rise from 0 to the number of entries, columns within each row.
MaybeFault find_order_fault(const SparseEntries& s, int64_t out, int64_t in) {
  const auto* offsets = s.offsets.data_ptr<int32_t>();
  const auto* columns = s.columns.data_ptr<int32_t>();
  const int64_t entries = s.values.numel();
  if (offsets[0] != 0 || offsets[out] != entries) {
    return Fault{"sparse_offsets",
                 fmt::format("must begin with 0 and end with {}; it begins with {} and ends "
                             "with {}",
                             entries, offsets[0], offsets[out])};
  }
  for (int64_t r = 0; r < out; ++r) {
    if (offsets[r] > offsets[r + 1] || offsets[r + 1] > entries) {
      return Fault{"sparse_offsets",
                   fmt::format("must never decrease nor exceed {}; row {} goes from {} to {}", entries, r,
                               offsets[r], offsets[r + 1])};
    }
    for (int32_t e = offsets[r]; e < offsets[r + 1]; ++e) {
      const int32_t before = e == offsets[r] ? -1 : columns[e - 1];
      if (columns[e] <= before || columns[e] >= in) {
        return Fault{"sparse_columns", fmt::format("must ascend within a row and be below {}; row {} has {} "
                                                   "after {}",
                                                   in, r, columns[e], before)};
      }
    }
  }
  return {};
}

/// Values have the type of the code books.
MaybeFault find_sparse_fault(const SparseEntries& s, int64_t out, int64_t in, at::ScalarType type) {
  if (!s.offsets.defined() && !s.columns.defined() && !s.values.defined()) return {};
  if (!s.offsets.defined() || s.offsets.scalar_type() != at::kInt ||
      s.offsets.sizes() != at::IntArrayRef({out + 1})) {
    return Fault{"sparse_offsets", fmt::format("must be int32 [{}]; it is {}", out + 1, shape_of(s.offsets))};
  }
  if (!s.values.defined() || s.values.scalar_type() != type || s.values.dim() != 1 ||
      s.values.numel() > std::numeric_limits<int32_t>::max()) {
    return Fault{"sparse_values",
                 fmt::format("must be a {} vector; it is {}", dtype_name(type), shape_of(s.values))};
  }
  if (!s.columns.defined() || s.columns.scalar_type() != at::kInt || s.columns.sizes() != s.values.sizes()) {
    return Fault{"sparse_columns",
                 fmt::format("must be int32 [{}]; it is {}", s.values.numel(), shape_of(s.columns))};
  }
  if (!at::isfinite(s.values).all().item<bool>())
    return Fault{"sparse_values", "must hold finite values only"};
  return find_order_fault(s, out, in);
}

void make_contiguous(CodebookTensors& t) {
  for (at::Tensor* tensor :
       {&t.codes, &t.codebook, &t.shape, &t.sparse.offsets, &t.sparse.columns, &t.sparse.values}) {
    if (tensor->defined()) *tensor = tensor->contiguous();
  }
}

void check_codes(int64_t bits, const at::Tensor& codes) {
  constexpr const char* kWhere = "CodebookWeight";
  if (bits < 2 || bits > 8)
    throw InvalidArgument(kWhere, fmt::format("bits must be in [2, 8]; received {}", bits));
  if (codes.dim() != 2 || codes.scalar_type() != at::kByte) {
    throw InvalidArgument(kWhere, fmt::format("codes must be a uint8 matrix; received {}", shape_of(codes)));
  }
  const int64_t largest = codes.numel() == 0 ? 0 : codes.max().item<int64_t>();
  if (largest >= int64_t{1} << bits) {
    throw InvalidArgument(
        kWhere, fmt::format("codes of {} bits must be below {}; one is {}", bits, 1 << bits, largest));
  }
}

/// Codes as a bit stream: packing.h wants them signed.
at::Tensor packed_codes(int64_t bits, const at::Tensor& codes) {
  const at::Tensor centred = codes.to(at::kShort) - (int64_t{1} << (bits - 1));
  return pack_codes(centred.to(at::kChar), static_cast<int>(bits), 1);
}

/// What the weight is stored as, checked.
CodebookTensors packed_tensors(int64_t bits, const at::Tensor& codes, at::Tensor codebook,
                               SparseEntries sparse) {
  check_codes(bits, codes);
  const int64_t out = codes.size(0), in = codes.size(1);
  CodebookTensors stored{packed_codes(bits, codes), std::move(codebook),
                         at::tensor(std::vector<int64_t>{out, in}, at::kLong), std::move(sparse)};
  make_contiguous(stored);
  MaybeFault fault = find_shape_fault(stored, bits, out, in);
  if (!fault) fault = find_sparse_fault(stored.sparse, out, in, stored.codebook.scalar_type());
  if (fault) throw InvalidArgument("CodebookWeight", fmt::format("the {} {}", fault->part, fault->text));
  return stored;
}

}  // namespace

CodebookWeight::CodebookWeight(int64_t bits, CodebookTensors stored)
    : bits_(bits),
      out_(stored.codes.size(0)),
      in_(stored.shape.data_ptr<int64_t>()[1]),
      stored_(std::move(stored)) {
  const int64_t entries = int64_t{1} << bits;
  table_ = at::zeros({out_, std::max(entries, kernels::kTableEntries)}, at::kFloat);
  table_.slice(1, 0, entries).copy_(stored_.codebook);
}

CodebookWeight::CodebookWeight(int64_t bits, const at::Tensor& codes, at::Tensor codebook,
                               SparseEntries sparse)
    : CodebookWeight(bits, packed_tensors(bits, codes, std::move(codebook), std::move(sparse))) {}

CodebookWeight CodebookWeight::from_stored(CodebookTensors tensors, int64_t bits, const std::string& name) {
  const auto fail = [&](const Fault& fault) -> void {
    throw CorruptFile(fmt::format("{}.weight_{}", name, fault.part), fault.text);
  };
  if (bits < 2 || bits > 8)
    fail({"codebook", fmt::format("must have codes of 2 to 8 bits; they have {}", bits)});
  if (!tensors.shape.defined() || tensors.shape.scalar_type() != at::kLong || tensors.shape.numel() != 2)
    fail({"shape", fmt::format("must be int64 [2]; it is {}", shape_of(tensors.shape))});
  make_contiguous(tensors);
  const int64_t out = tensors.shape.data_ptr<int64_t>()[0], in = tensors.shape.data_ptr<int64_t>()[1];
  // The words bound the columns: nothing below computes with sizes that no stored tensor has.
  if (out < 1 || in < 1 || !tensors.codes.defined() || tensors.codes.dim() != 2 ||
      in / 32 > tensors.codes.size(1) || out != tensors.codes.size(0)) {
    fail({"shape", fmt::format("must fit the codes; it says [{}, {}] and they are {}", out, in,
                               shape_of(tensors.codes))});
  }
  MaybeFault fault = find_shape_fault(tensors, bits, out, in);
  if (!fault) fault = find_sparse_fault(tensors.sparse, out, in, tensors.codebook.scalar_type());
  if (fault) fail(*fault);
  return {bits, std::move(tensors)};
}

at::Tensor CodebookWeight::codes() const {
  const at::Tensor centred = unpack_codes(stored_.codes, static_cast<int>(bits_), in_, 1);
  return (centred.to(at::kShort) + (int64_t{1} << (bits_ - 1))).to(at::kByte);
}

at::Tensor CodebookWeight::dense() const {
  at::Tensor out = at::empty({out_, in_}, at::kFloat);
  const at::Tensor values = stored_.sparse.count() > 0 ? stored_.sparse.values.to(at::kFloat) : at::Tensor();
  const int64_t words = stored_.codes.size(1);
  for (int64_t r = 0; r < out_; ++r) {
    float* row = out.data_ptr<float>() + r * in_;
    kernels::decode_row({stored_.codes.data_ptr<int32_t>() + r * words, in_, bits_,
                         table_.data_ptr<float>() + r * table_.size(1)},
                        row);
    if (!values.defined()) continue;
    const auto* offsets = stored_.sparse.offsets.data_ptr<int32_t>();
    for (int32_t e = offsets[r]; e < offsets[r + 1]; ++e)
      row[stored_.sparse.columns.data_ptr<int32_t>()[e]] += values.data_ptr<float>()[e];
  }
  return out;
}

at::Tensor CodebookWeight::apply(const at::Tensor& x) const {
  if (x.size(0) > kDirectRows) return Weight::apply(x);
  const at::Tensor input = x.to(at::kFloat).contiguous();
  const int64_t tokens = input.size(0);
  at::Tensor out = at::empty({tokens, out_}, at::kFloat);
  const at::Tensor values = stored_.sparse.count() > 0 ? stored_.sparse.values.to(at::kFloat) : at::Tensor();
  const int64_t words = stored_.codes.size(1);
  std::vector<float> decoded(static_cast<size_t>(tokens > 1 ? in_ : 0));
  const float* from = input.data_ptr<float>();
  for (int64_t r = 0; r < out_; ++r) {
    const kernels::CodeRow row{stored_.codes.data_ptr<int32_t>() + r * words, in_, bits_,
                               table_.data_ptr<float>() + r * table_.size(1)};
    if (tokens > 1) kernels::decode_row(row, decoded.data());
    for (int64_t t = 0; t < tokens; ++t) {
      const float* one = from + t * in_;
      float sum = tokens > 1 ? kernels::dot(decoded.data(), one, in_) : kernels::dot_row(row, one);
      if (values.defined()) {
        const auto* offsets = stored_.sparse.offsets.data_ptr<int32_t>();
        for (int32_t e = offsets[r]; e < offsets[r + 1]; ++e)
          sum += values.data_ptr<float>()[e] * one[stored_.sparse.columns.data_ptr<int32_t>()[e]];
      }
      out.data_ptr<float>()[t * out_ + r] = sum;
    }
  }
  return out;
}

int64_t CodebookWeight::bytes() const {
  return codebook_bytes(bits_, out_, in_, stored_.sparse.count(), stored_.codebook.scalar_type());
}

std::string CodebookWeight::describe() const {
  return describe_codebook(
      bits_, stored_.codebook.scalar_type(),
      static_cast<double>(stored_.sparse.count()) / static_cast<double>(std::max<int64_t>(1, out_ * in_)));
}

void CodebookWeight::save(TensorSink& sink, const std::string& name) const {
  sink.add(name + ".weight_codes", stored_.codes);
  sink.add(name + ".weight_codebook", stored_.codebook);
  sink.add(name + ".weight_shape", stored_.shape);
  if (stored_.sparse.count() == 0) return;
  sink.add(name + ".weight_sparse_offsets", stored_.sparse.offsets);
  sink.add(name + ".weight_sparse_columns", stored_.sparse.columns);
  sink.add(name + ".weight_sparse_values", stored_.sparse.values);
}

std::string describe_codebook(int64_t bits, c10::ScalarType type, double sparse_share) {
  std::string text = fmt::format("{} bit code book per row ({})", bits, dtype_name(type));
  if (sparse_share > 0) text += fmt::format(", {:.2f} % kept beside it", 100 * sparse_share);
  return text;
}

int64_t codebook_bytes(int64_t bits, int64_t out, int64_t in, int64_t sparse_entries, c10::ScalarType type) {
  const auto value = static_cast<int64_t>(c10::elementSize(type));
  int64_t bytes =
      out * packed_words(in, static_cast<int>(bits)) * 4 + out * (int64_t{1} << bits) * value + 16;
  if (sparse_entries > 0) bytes += (out + 1) * 4 + sparse_entries * (4 + value);
  return bytes;
}

}  // namespace lcomp::quant
