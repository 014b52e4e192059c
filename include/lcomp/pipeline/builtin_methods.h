#pragma once

#include "lcomp/pipeline/method.h"

namespace lcomp::pipeline {

/// Every method that comes with lcomp, in one visible table (src/pipeline/builtin_methods.cpp). Programs add
/// their own: `MethodTable methods = builtin_methods(); methods.add({...});`
MethodTable builtin_methods();

}  // namespace lcomp::pipeline
