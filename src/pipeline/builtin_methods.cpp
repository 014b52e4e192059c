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
  table.add(magnitude_method());
  table.add(wanda_method());
  table.add(ria_method());
  table.add(obd_method());
  table.add(sparsegpt_method());
  table.add(wrp_method());
  table.add(fisher_mask_method());
  table.add(llm_pruner_method());
  table.add(svd_method());
  table.add(fwsvd_method());
  table.add(asvd_method());
  table.add(svd_llm_method());
  table.add(pca_method());
  table.add(lqer_method());
  table.add(oats_method());
  table.add(tensor_train_method());
  table.add(tucker_heads_method());
  table.add(tucker_layers_method());
  return table;
}

}  // namespace lcomp::pipeline
