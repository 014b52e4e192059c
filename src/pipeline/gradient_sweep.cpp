#include <malloc.h>

#include <functional>

#include "lcomp/calib/gradients.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/io/safetensors_writer.h"
#include "pipeline/run.h"

/// Squared gradients for the passes that ask for them: made before the block loop, kept in a file per block
/// until that block is done.
namespace lcomp::pipeline {
namespace {

std::string gradient_step(int64_t block) {
  return fmt::format("gradients {}", block);
}

std::string outputs_name(const std::string& op) {
  return op + ".outputs";
}
std::string products_name(const std::string& op) {
  return op + ".products";
}
std::string units_name(size_t group) {
  return fmt::format("units {}", group);
}
std::string moment_name(size_t group) {
  return fmt::format("moment {}", group);
}

}  // namespace

std::filesystem::path Run::gradient_file(int64_t block) const {
  return work_->path() / fmt::format("gradients-{:04}.safetensors", block);
}

/// The derivative by the input of `block`, which is what the sweep goes on from.
std::filesystem::path Run::gradient_state_file(int64_t block) const {
  return work_->path() / fmt::format("gradient-state-{:04}.bin", block);
}

/// The gradients of any block depend on the whole model, and so does then what is made of them.
std::string Run::gradient_key() const {
  io::Hasher hasher;
  hasher.add(last_key_);
  for (int64_t i = 0; i < model_.size(); ++i) {
    for (const std::string& name : model_.block_tensors(i))
      hasher.add(name + model_.checkpoint().hash_of_tensor(name));
  }
  return hasher.hex();
}

/// The lowest block from `first_block` on with an operator whose pass reads gradients; the number of blocks
/// when there is none.
int64_t Run::lowest_gradient_block(int64_t first_block) const {
  int64_t lowest = model_.size();
  for (const auto& [entry, pass] : passes_) {
    if (!pass->needs().gradients()) continue;
    for (size_t i = 0; i < plan_.operators.size(); ++i) {
      const int64_t block = plan_.operators[i].block;
      if (plan_.settings[entry][i] && block >= first_block) lowest = std::min(lowest, block);
    }
  }
  return lowest;
}

/// The lowest block whose gradients, and those of all above it, an earlier run finished, with what the sweep
/// needs to go on below it; the number of blocks when there is none.
int64_t Run::finished_gradients(int64_t lowest) {
  int64_t done = model_.size();
  std::string state_hash;
  while (done > lowest) {
    const auto found = work_->journal().committed(gradient_step(done - 1), gradient_key_);
    if (!found) break;
    state_hash = found->note;
    --done;
  }
  if (done == model_.size() || done == lowest) return done;
  const std::filesystem::path state = gradient_state_file(done);
  if (std::filesystem::exists(state) && io::hash_of_file(state) == state_hash) return done;
  observer_.note("the saved state of the gradients is gone or damaged: making them again");
  return model_.size();
}

void Run::make_gradients(int64_t lowest) {
  const int64_t from = finished_gradients(lowest);
  if (from == lowest) return;
  const PhaseClock::Scope scope(clock_, "gradients");
  for (const char* name : {"gradient-stream.cache", "gradient-inputs.cache"})
    std::filesystem::remove(work_->path() / name);
  const auto storage = job_.calibration.cache == CachePlace::kMemory
                           ? calib::ActivationCache::Storage::kMemory
                           : calib::ActivationCache::Storage::kDisk;
  calib::GradientSweep sweep(model_, samples_.tokens.sequences,
                             {.storage = storage,
                              .directory = work_->path(),
                              .precision = plan_.compute,
                              .seed = static_cast<uint64_t>(job_.seed)},
                             pool_);
  sweep.start();
  // The inputs are not worth saving: with them a resumed run would save a quarter of the sweep's work.
  for (int64_t i = 0; i < from; ++i) {
    check_cancelled();
    step("gradients", i, 2 * model_.size(), fmt::format("forward, block {} of {}", i + 1, model_.size()));
    sweep.forward(i);
    malloc_trim(0);
  }
  if (from < model_.size()) {
    sweep.restore(gradient_state_file(from));
    observer_.note(fmt::format("continuing the gradients below block {} of {}", from + 1, model_.size()));
  } else {
    sweep.head();
    if (model_.architecture().is_language_model())
      observer_.note(fmt::format("the loss on the calibration text is {:.6g} per token", sweep.loss()));
  }
  sweep_back(sweep, from, lowest);
  gradient_work_ = {sweep.flops(), sweep.cpu_seconds(), 0, 0};
}

/// From block `from` - 1 down to `lowest`: first what the sweep goes on from, then the block's results, then
/// the journal's line.
void Run::sweep_back(calib::GradientSweep& sweep, int64_t from, int64_t lowest) {
  calib::Needs needs = survey_needs();
  for (const auto& [entry, pass] : passes_) needs = needs | pass->needs();
  for (int64_t i = from - 1; i >= lowest; --i) {
    check_cancelled();
    step("gradients", 2 * model_.size() - 1 - i, 2 * model_.size(),
         fmt::format("backward, block {} of {}", i + 1, model_.size()));
    const calib::BlockGradients gradients = sweep.backward(i,
                                                           {.squares = needs.gradient_squares,
                                                            .products = needs.gradient_products,
                                                            .masks = needs.unit_gradients,
                                                            .moments = needs.gradient_moments},
                                                           lowest);
    const std::string state_hash = i > lowest ? sweep.save(gradient_state_file(i)) : "";
    io::NamedTensors tensors;
    const auto operators = model_.architecture().operators(i);
    for (size_t op = 0; op < gradients.squares.size(); ++op)
      tensors.emplace_back(operators[op].name, gradients.squares[op]);
    for (size_t op = 0; op < gradients.products.size(); ++op)
      tensors.emplace_back(products_name(operators[op].name), gradients.products[op]);
    if (needs.unit_gradients) {
      for (const model::DependencyGroup& units : model_.architecture().dependency_groups(i)) {
        // A factor of a unit is one of all its heads.
        const at::Tensor& all =
            units.kind == model::UnitKind::kChannel ? gradients.channels : gradients.heads;
        tensors.emplace_back(units_name(units.input_group),
                             all.reshape({all.size(0), units.units, -1}).sum(2));
      }
    }
    for (size_t op = 0; op < gradients.outputs.size(); ++op)
      tensors.emplace_back(outputs_name(operators[op].name), gradients.outputs[op]);
    for (size_t g = 0; g < gradients.moments.size(); ++g)
      tensors.emplace_back(moment_name(g), gradients.moments[g]);
    const io::FileRecord file = io::write_safetensors(gradient_file(i), tensors);
    work_->journal().commit({gradient_step(i), gradient_key_, {file}, state_hash});
    std::filesystem::remove(gradient_state_file(i + 1));
    malloc_trim(0);
  }
  step("gradients", 2 * model_.size(), 2 * model_.size());
}

/// Puts the sweep's results for a group into `stats`. What is of one operator is undefined for those that the
/// pass leaves alone, whose block may have none.
void Run::read_gradients(const calib::Needs& needs, const model::Block& block, size_t group,
                         const PassContext& context, calib::InputStats& stats) const {
  const std::vector<size_t>& members = block.groups()[group].operators;
  const auto is_wanted = [&](size_t op) { return context.settings(block.ops()[op].info.name) != nullptr; };
  if (!needs.gradients() || std::none_of(members.begin(), members.end(), is_wanted)) return;
  const io::SafetensorsFile file(gradient_file(block.index()));
  const auto read_each = [&](const std::function<std::string(const std::string&)>& name_of) {
    std::vector<at::Tensor> out;
    out.reserve(members.size());
    for (const size_t op : members)
      out.push_back(is_wanted(op) ? file.read(name_of(block.ops()[op].info.name)) : at::Tensor());
    return out;
  };
  if (needs.gradient_squares) stats.gradient_squares = read_each([](const std::string& op) { return op; });
  if (needs.gradient_products) stats.gradient_products = read_each(products_name);
  if (needs.unit_gradients && file.contains(units_name(group)))
    stats.unit_gradients = file.read(units_name(group));
  if (needs.gradient_moments) {
    stats.gradient_moment = file.read(moment_name(group));
    stats.output_gradients = read_each(outputs_name);
  }
}

}  // namespace lcomp::pipeline
