#include <malloc.h>

#include "cli/app.h"

namespace {

/// Freed memory stays with the process: by default glibc gives large blocks back to the kernel at every free,
/// and the page faults of getting them again cost as much time as the arithmetic.
void keep_freed_memory() {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace lcomp::cli;
  keep_freed_memory();
  return run_command_line(argc, argv,
                          {
                              run_command(),
                              plan_command(),
                              inspect_command(),
                              eval_command(),
                              verify_command(),
                              list_command(),
                              schema_command(),
                          });
}
