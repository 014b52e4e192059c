#pragma once

#include "lcomp/pipeline/method.h"
#include "lcomp/pipeline/planner.h"

/// What a job needs, told from the headers of its files: memory, disk, arithmetic.
namespace lcomp::pipeline {

/// Whole bytes. What is beyond any machine stays where sums of several are exact in 64 bits.
uint64_t to_bytes(double count);

/// Tokens of the longest sequence of the evaluation: learned positions limit what a sentence is cut to.
int64_t evaluation_window(const Job& job, const model::Model& model);

/// Peak of an evaluation whose hidden states stay in memory.
uint64_t evaluation_bytes(const Job& job, const model::Model& model, const Plan& plan, int64_t tokens);

/// By what `plan` says of statistics, activations, batches and threads; `methods` tell what their solvers
/// take.
MemoryPlan estimate_memory(const Job& job, const MethodTable& methods, const model::Model& model,
                           const Plan& plan);

/// Free space that the run needs at its output.
uint64_t estimate_disk(const Job& job, const model::Model& model, const Plan& plan);

WorkPlan count_work(const Job& job, const MethodTable& methods, const model::Model& model, const Plan& plan);

}  // namespace lcomp::pipeline
