// A program that needs the mathematics alone: the headers compile, the archive links.
#include <ATen/ATen.h>

#include <lcomp/lcomp.h>
#include <cstdio>

int main() {
  const lcomp::DenseWeight weight(at::eye(4));
  const bool same = at::equal(weight.apply(at::ones({2, 4})), at::ones({2, 4}));
  std::printf("%s: %s\n", weight.describe().c_str(), same ? "as expected" : "WRONG");
  return same ? 0 : 1;
}
