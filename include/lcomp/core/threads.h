#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace lcomp {

/// The size of `ThreadPool(threads)`, without starting it.
int thread_count(int threads);

/// A fixed set of worker threads for independent pieces of work.
///
/// Everything in lcomp that runs in parallel goes through here, and every piece runs single-threaded kernels
/// and writes only what it owns. So results do not depend on the number of threads: the same bytes at 1, 2
/// or 8. While a pool lives, OpenBLAS and OpenMP regions of its threads and of the one that made it run with
/// one thread.
class ThreadPool {
 public:
  /// `threads` <= 0 takes the number of processors this process may run on. The caller of `parallel_for` is
  /// one of the threads, so `ThreadPool(1)` starts none. Throws ResourceError when the system starts fewer,
  /// or has no room for OpenBLAS's buffers.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  /// Calls `piece(index, worker)` for every index in [0, count), in increasing order of start; `worker` in
  /// [0, size()) tells which thread runs it (for scratch memory). Returns when all are done. If pieces throw,
  /// the exception of the lowest failing index is rethrown. Must not be called from within a piece.
  void parallel_for(int64_t count, const std::function<void(int64_t index, int worker)>& piece);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// `pool->parallel_for`, or the same pieces in order on the calling thread when `pool` is null; OpenBLAS runs
/// with one thread either way.
void parallel_for(ThreadPool* pool, int64_t count,
                  const std::function<void(int64_t index, int worker)>& piece);

}  // namespace lcomp
