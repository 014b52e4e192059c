#include "lcomp/core/threads.h"

#include <cblas.h>
#include <fmt/format.h>
#include <omp.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "lcomp/core/error.h"

// Of OpenBLAS, which exports them without a header; absent in other builds of it.
extern "C" {
__attribute__((weak)) void* blas_memory_alloc(int position);
__attribute__((weak)) void blas_memory_free(void* buffer);
}

namespace lcomp {
namespace {

int available_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());
}

/// One parallel_for call: an index counter shared by the threads and the first failure by index.
struct Loop {
  const std::function<void(int64_t, int)>* piece = nullptr;
  int64_t count = 0;
  std::atomic<int64_t> next{0};
  std::mutex failure_mutex;
  int64_t failed_index = -1;
  std::exception_ptr failure;

  void run(int worker) {
    for (int64_t i = next++; i < count; i = next++) {
      try {
        (*piece)(i, worker);
      } catch (...) {
        const std::lock_guard lock(failure_mutex);
        if (failed_index < 0 || i < failed_index) {
          failed_index = i;
          failure = std::current_exception();
        }
      }
    }
  }
};

/// OpenBLAS, and what this thread runs with OpenMP (ATen's sums over long tensors), on one thread while this
/// lives: their results depend on how many there are.
class OneThread {
 public:
  OneThread() {
    if (blas_before_ != 1) openblas_set_num_threads(1);
    if (omp_before_ != 1) omp_set_num_threads(1);
  }
  ~OneThread() {
    if (blas_before_ != 1) openblas_set_num_threads(blas_before_);
    if (omp_before_ != 1) omp_set_num_threads(omp_before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int blas_before_ = openblas_get_num_threads();
  int omp_before_ = omp_get_max_threads();
};

/// Gives OpenBLAS the buffer that each of `threads` concurrent calls works in, while it can still fail: a
/// call that finds none asks the system for one over and over until it has it, which ends no run that lacks
/// address space. Buffers stay with OpenBLAS and serve all later pools.
void take_blas_buffers(int threads) {
  constexpr size_t kBufferBytes = (size_t{128} << 20) + 4096;
  constexpr int kMostBuffers = 128;  // its table has room for twice as many
  static std::mutex mutex;
  static int taken = 0;
  const std::lock_guard lock(mutex);
  const int wanted = std::min(threads, kMostBuffers);
  if (wanted <= taken || blas_memory_alloc == nullptr || blas_memory_free == nullptr) return;
  const size_t bytes = static_cast<size_t>(wanted - taken) * kBufferBytes;
  // Writable, as OpenBLAS asks for it: only such mappings count where the limit is that of data.
  void* room =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) {
    throw ResourceError(
        "ThreadPool",
        fmt::format("the address space must have room for the {} MB that OpenBLAS works in with "
                    "{} threads; it has not (ulimit -v, -d). Fewer threads need less",
                    bytes / 1'000'000, threads));
  }
  munmap(room, bytes);
  std::vector<void*> buffers;
  buffers.reserve(static_cast<size_t>(wanted));
  for (int i = 0; i < wanted; ++i) buffers.push_back(blas_memory_alloc(0));
  for (void* buffer : buffers) blas_memory_free(buffer);
  taken = wanted;
}

}  // namespace

int thread_count(int threads) {
  return threads > 0 ? threads : available_processors();
}

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable work_ready;
  std::condition_variable work_done;
  Loop* loop = nullptr;
  uint64_t generation = 0;
  int busy = 0;
  bool stopping = false;
  std::vector<std::thread> workers;
  OneThread one_thread;

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    work_ready.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  void start(int threads);

  void worker_main(int worker) {
    omp_set_num_threads(1);
    uint64_t seen = 0;
    std::unique_lock lock(mutex);
    while (true) {
      work_ready.wait(lock, [&] { return stopping || generation != seen; });
      if (stopping) return;
      seen = generation;
      Loop* mine = loop;
      lock.unlock();
      mine->run(worker);
      lock.lock();
      if (--busy == 0) work_done.notify_one();
    }
  }
};

void ThreadPool::State::start(int threads) {
  try {
    for (int w = 1; w < threads; ++w) workers.emplace_back([this, w] { worker_main(w); });
  } catch (const std::system_error& error) {
    throw ResourceError("ThreadPool", fmt::format("all of {} threads must start; the system started {} ({})",
                                                  threads, workers.size(), error.code().message()));
  }
  take_blas_buffers(threads);
}

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  state_->start(thread_count(threads));
}

ThreadPool::~ThreadPool() = default;

int ThreadPool::size() const {
  return static_cast<int>(state_->workers.size()) + 1;
}

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t, int)>& piece) {
  if (count <= 0) return;
  Loop loop;
  loop.piece = &piece;
  loop.count = count;
  // The caller need not be the thread that made the pool.
  const int omp_threads_before = omp_get_max_threads();
  omp_set_num_threads(1);
  {
    const std::lock_guard lock(state_->mutex);
    state_->loop = &loop;
    state_->busy = static_cast<int>(state_->workers.size());
    ++state_->generation;
  }
  state_->work_ready.notify_all();
  loop.run(0);
  {
    std::unique_lock lock(state_->mutex);
    state_->work_done.wait(lock, [&] { return state_->busy == 0; });
    state_->loop = nullptr;
  }
  omp_set_num_threads(omp_threads_before);
  if (loop.failure) std::rethrow_exception(loop.failure);
}

void parallel_for(ThreadPool* pool, int64_t count, const std::function<void(int64_t, int)>& piece) {
  if (pool != nullptr) {
    pool->parallel_for(count, piece);
    return;
  }
  const OneThread one;
  for (int64_t i = 0; i < count; ++i) piece(i, 0);
}

}  // namespace lcomp
