#include "cli/app.h"
#include "cli/memory_policy.h"

int main(int argc, char** argv) {
  using namespace lcomp::cli;
  set_memory_policy();
  return run_command_line(argc, argv,
                          {
                              run_command(),
                              plan_command(),
                              inspect_command(),
                              eval_command(),
                              verify_command(),
                              export_command(),
                              bench_command(),
                              list_command(),
                              schema_command(),
                          });
}
