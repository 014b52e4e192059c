#pragma once

namespace lcomp::cli {

/// From here on SIGINT and SIGTERM ask for an orderly end instead of killing the process. A second signal of
/// the same kind kills it at once, which a run survives as well.
void catch_interrupts();

/// Whether such a signal has come.
bool interrupted();

}  // namespace lcomp::cli
