#pragma once

#include "lcomp/pipeline/method.h"

/// One function per method: its row of the table.
namespace lcomp::pipeline {

MethodInfo rtn_method();
MethodInfo gptq_method();

}  // namespace lcomp::pipeline
