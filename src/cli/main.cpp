#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "cli/app.h"
#include "cli/memory_policy.h"

int main(int argc, char** argv) {
  using namespace lcomp::cli;
  set_memory_policy();
  const int code = run_command_line(argc, argv,
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
  // Without the libraries' own endings: OpenBLAS waits there for threads that may never have got their
  // memory.
  std::cout.flush();
  std::fflush(nullptr);
  ::_exit(code);
}
