#pragma once

#include <malloc.h>

namespace lcomp::cli {

/// Buffers of up to 4 MB stay with the process when freed: getting their pages from the kernel again would
/// cost as much time as the arithmetic on them. Larger ones are few; they go back, so that they never add up.
/// (glibc's own threshold grows with use, up to 32 MB, and then keeps them too.)
inline void set_memory_policy() {
  mallopt(M_MMAP_THRESHOLD, 4 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
  mallopt(M_ARENA_MAX, 2);
}

}  // namespace lcomp::cli
