#include "lcomp/pipeline/builtin_methods.h"

#include "pipeline/passes/passes.h"

namespace lcomp::pipeline {

MethodTable builtin_methods() {
  MethodTable table;
  table.add(rtn_method());
  table.add(gptq_method());
  table.add(int8_method());
  table.add(llm_int8_method());
  table.add(squeezellm_method());
  table.add(awq_method());
  table.add(smoothquant_method());
  table.add(mixed_precision_method());
  return table;
}

}  // namespace lcomp::pipeline
