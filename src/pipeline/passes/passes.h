#pragma once

#include "lcomp/pipeline/method.h"
#include "lcomp/pipeline/pass.h"

/// One function per method: its row of the table.
namespace lcomp::pipeline {

/// How GPTQ is run over the operators of a block.
struct GptqOrderOptions {
  bool true_sequential = true;

  void visit(FieldVisitor& v) {
    v.field("true_sequential", true_sequential,
            "take the statistics of each group of operators after the groups before it are quantized, "
            "instead of once per block");
  }
};

/// The passes that other methods' chains end in; `method` is the name in the report. RTN reads the part
/// QuantScheme of the settings, GPTQ also GptqOptions and GptqOrderOptions.
std::unique_ptr<Pass> rtn_pass(std::string method);
std::unique_ptr<Pass> gptq_pass(std::string method, const PassOptions& options);

MethodInfo rtn_method();
MethodInfo gptq_method();

}  // namespace lcomp::pipeline
