#include "lcomp/core/threads.h"

#include <omp.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <stdexcept>
#include <vector>

using lcomp::ThreadPool;

TEST_CASE("parallel_for runs every index exactly once at any number of threads", "[core][threads]") {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    std::vector<std::atomic<int>> hits(1000);
    std::atomic<int> strangers = 0;  // Catch2's assertions are for one thread
    pool.parallel_for(1000, [&](int64_t i, int worker) {
      if (worker < 0 || worker >= threads) ++strangers;
      ++hits[static_cast<size_t>(i)];
    });
    REQUIRE(strangers == 0);
    for (const auto& hit : hits) REQUIRE(hit == 1);
  }
}

TEST_CASE("parallel_for rethrows the exception of the lowest failing index", "[core][threads]") {
  ThreadPool pool(4);
  for (int repeat = 0; repeat < 20; ++repeat) {
    try {
      pool.parallel_for(100, [](int64_t i, int) {
        if (i >= 10) throw std::runtime_error(std::to_string(i));
      });
      FAIL("nothing was thrown");
    } catch (const std::runtime_error& error) {
      REQUIRE(std::string(error.what()) == "10");
    }
  }
}

TEST_CASE("the number of threads is known without starting them", "[core][threads]") {
  REQUIRE(lcomp::thread_count(4096) == 4096);
  REQUIRE(lcomp::thread_count(0) >= 1);
  for (const int threads : {-1, 0, 1, 3}) REQUIRE(lcomp::thread_count(threads) == ThreadPool(threads).size());
}

TEST_CASE("parallel_for without a pool runs on the calling thread", "[core][threads]") {
  int sum = 0;
  lcomp::parallel_for(nullptr, 5, [&](int64_t i, int worker) {
    REQUIRE(worker == 0);
    sum += static_cast<int>(i);
  });
  REQUIRE(sum == 10);
}

TEST_CASE("while a pool lives, sums of the thread that made it run on one thread", "[threads]") {
  const int before = omp_get_max_threads();
  omp_set_num_threads(3);
  {
    const ThreadPool pool(1);
    CHECK(omp_get_max_threads() == 1);
  }
  lcomp::parallel_for(nullptr, 1, [](int64_t, int) { CHECK(omp_get_max_threads() == 1); });
  CHECK(omp_get_max_threads() == 3);
  omp_set_num_threads(before);
}
