// Read first by clang (clang-tidy), never by GCC. LibTorch 1.13 names std::vector<IValue> while
// IValue is incomplete. The members of the vector of libstdc++ 12 are constexpr, which makes clang
// instantiate them on the spot and stop there; here they are not. (__fill_a1 was declared constexpr by a
// header read before, so it keeps its own name.)
#include <bits/allocator.h>
#include <bits/range_access.h>
#include <bits/stl_algobase.h>
#include <bits/stl_construct.h>
#include <bits/stl_uninitialized.h>
#include <string>

#undef _GLIBCXX20_CONSTEXPR
#define _GLIBCXX20_CONSTEXPR
#define __fill_a1 __fill_a1_of_bits
#include <vector>
#undef __fill_a1
#undef _GLIBCXX20_CONSTEXPR
#define _GLIBCXX20_CONSTEXPR constexpr
