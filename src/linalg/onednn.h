#pragma once

#include <dnnl.hpp>

/// What the products of this folder share of oneDNN.
namespace lcomp::linalg {

inline const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

inline dnnl::stream& thread_stream() {
  thread_local dnnl::stream stream(cpu_engine());
  return stream;
}

inline dnnl::memory::desc row_major(int64_t rows, int64_t cols, dnnl::memory::data_type type) {
  return dnnl::memory::desc({rows, cols}, type, dnnl::memory::format_tag::ab);
}

/// The library's own scratchpad belongs to the thread that made a primitive; ours run on any thread.
inline dnnl::primitive_attr caller_scratchpad() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

}  // namespace lcomp::linalg
