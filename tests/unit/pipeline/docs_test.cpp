// The documents say what the library says.
#include <catch2/catch.hpp>

// GCC 12 sees an overlap in inlined string concatenation where there is none (GCC bug 105651).
#pragma GCC diagnostic ignored "-Wrestrict"

#include <sstream>

#include "lcomp/io/files.h"
#include "lcomp/pipeline/builtin_methods.h"
#include "lcomp/pipeline/job.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::pipeline;

namespace {

std::string document(const std::string& name) {
  return io::read_file(test::source_dir() / name);
}

/// The contents of the code blocks of a language that have `part` in them.
std::vector<std::string> code_blocks(const std::string& text, const std::string& language,
                                     const std::string& part) {
  const std::string fence = "```";
  std::vector<std::string> blocks;
  size_t at = 0;
  while ((at = text.find(fence + language + "\n", at)) != std::string::npos) {
    const size_t begin = text.find('\n', at) + 1;
    const size_t end = text.find(fence, begin);
    const std::string block = text.substr(begin, end - begin);
    if (block.find(part) != std::string::npos) blocks.push_back(block);
    at = end + fence.size();
  }
  return blocks;
}

}  // namespace

TEST_CASE("docs/jobs.md has the tables that the library makes of the options", "[pipeline][docs]") {
  std::string tables = job_tables(builtin_methods());
  tables.pop_back();  // the last newline
  CHECK_THAT(document("docs/jobs.md"), Catch::Matchers::Contains(tables));
}

TEST_CASE("docs/quantization.md has a row for every setting of the built-in methods", "[pipeline][docs]") {
  const std::string text = document("docs/quantization.md");
  const MethodTable methods = builtin_methods();
  for (const char* name : {"rtn", "gptq", "int8", "llm_int8", "squeezellm", "awq", "smoothquant"}) {
    std::istringstream rows(method_table(methods.find(name)));
    for (std::string row; std::getline(rows, row);) CHECK_THAT(text, Catch::Matchers::Contains(row));
  }
}

TEST_CASE("the jobs that the documents show are accepted", "[pipeline][docs]") {
  for (const char* name : {"README.md", "docs/jobs.md"}) {
    CAPTURE(name);
    const std::vector<std::string> jobs = code_blocks(document(name), "json", "\"passes\"");
    REQUIRE_FALSE(jobs.empty());
    for (const std::string& job : jobs) CHECK_NOTHROW(parse_job(job, name, builtin_methods()));
  }
}
