#include "lcomp/calib/activation_cache.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/test_data.h"

namespace fs = std::filesystem;
using namespace lcomp;
using calib::ActivationCache;
using Storage = ActivationCache::Storage;

namespace {

at::Tensor values(int64_t rows, int64_t cols, const std::string& stream) {
  return test::normal_matrix(rows, cols, stream).to(at::kFloat);
}

}  // namespace

TEST_CASE("a cache gives back what was stored, in memory and on disk", "[calib][cache]") {
  const test::TempDir dir;
  for (const Storage storage : {Storage::kMemory, Storage::kDisk}) {
    ActivationCache cache({3, 1, 5}, 4, storage, dir / "cache");
    REQUIRE(cache.samples() == 3);
    REQUIRE(cache.length(2) == 5);
    REQUIRE(cache.width() == 4);
    REQUIRE(cache.storage() == storage);
    const auto a = values(3, 4, "a");
    const auto b = values(1, 4, "b");
    const auto c = values(5, 2, "c");  // narrower than the cache
    cache.store(2, c);
    cache.store(0, a);
    cache.store(1, b);
    REQUIRE(cache.load(0, 4).equal(a));
    REQUIRE(cache.load(1, 4).equal(b));
    REQUIRE(cache.load(2, 2).equal(c));
  }
}

TEST_CASE("a loaded sample is the cache's own memory, or a copy from disk", "[calib][cache]") {
  const test::TempDir dir;
  for (const Storage storage : {Storage::kMemory, Storage::kDisk}) {
    ActivationCache cache({2}, 2, storage, dir / "cache");
    cache.store(0, at::zeros({2, 2}));
    at::Tensor loaded = cache.load(0, 2);
    loaded.fill_(7);
    REQUIRE(cache.load(0, 2)[0][0].item<float>() == (storage == Storage::kMemory ? 7 : 0));
    cache.store(0, loaded);
    REQUIRE(cache.load(0, 2)[1][1].item<float>() == 7);
  }
}

TEST_CASE("the file of a disk cache is reserved up front and removed with the cache", "[calib][cache]") {
  const test::TempDir dir;
  {
    const ActivationCache cache({100, 28}, 16, Storage::kDisk, dir / "cache");
    REQUIRE(fs::file_size(dir / "cache") == ActivationCache::bytes_needed({100, 28}, 16));
    REQUIRE(ActivationCache::bytes_needed({100, 28}, 16) == 128 * 16 * 4);
    ActivationCache moved = ActivationCache({1}, 1, Storage::kMemory);
    REQUIRE(moved.samples() == 1);
  }
  REQUIRE_FALSE(fs::exists(dir / "cache"));
}

TEST_CASE("a cache file that exists, or has no directory, is refused by name", "[calib][cache]") {
  const test::TempDir dir;
  io::write_file_atomic(dir / "cache", "x");
  const auto text = [&](const fs::path& file) {
    return test::error_text([&] { ActivationCache({1}, 1, Storage::kDisk, file); });
  };
  REQUIRE(text(dir / "cache") ==
          "[" + (dir / "cache").string() + "] creating the activation cache must succeed; File exists");
  REQUIRE(io::read_file(dir / "cache") == "x");
  const fs::path nowhere = dir / "no" / "cache";
  REQUIRE_THROWS_AS(ActivationCache({1}, 1, Storage::kDisk, nowhere), ResourceError);
  REQUIRE(text(nowhere) ==
          "[" + nowhere.string() + "] creating the activation cache must succeed; No such file or directory");
}

TEST_CASE("a disk cache larger than the disk is refused before it is used", "[calib][cache]") {
  const test::TempDir dir;
  const auto call = [&] { ActivationCache({int64_t{1} << 40}, 1 << 10, Storage::kDisk, dir / "cache"); };
  REQUIRE_THROWS_AS(call(), ResourceError);
  REQUIRE_THAT(
      test::error_text(call),
      Catch::StartsWith("[" + (dir / "cache").string() +
                        "] reserving 4503599627370496 bytes for the activation cache must succeed; "));
  REQUIRE_FALSE(fs::exists(dir / "cache"));
}

TEST_CASE("sizes beyond 64 bits are refused, not wrapped around", "[calib][cache]") {
  REQUIRE(ActivationCache::bytes_needed({int64_t{1} << 44}, 1 << 10) == uint64_t{1} << 56);
  const auto call = [] { ActivationCache::bytes_needed({int64_t{1} << 50}, int64_t{1} << 31); };
  REQUIRE_THROWS_AS(call(), ResourceError);
  REQUIRE(test::error_text(call) ==
          "[ActivationCache] the values of 1125899906842624 tokens, 2147483648 each, must take at most "
          "72057594037927936 bytes; they take more");
  REQUIRE_THROWS_AS(ActivationCache({int64_t{1} << 50}, int64_t{1} << 31, Storage::kMemory), ResourceError);
}

TEST_CASE("a disk cache that was cut short meanwhile is an error, not a shorter sample", "[calib][cache]") {
  const test::TempDir dir;
  ActivationCache cache({4}, 4, Storage::kDisk, dir / "cache");
  cache.store(0, at::ones({4, 4}));
  fs::resize_file(dir / "cache", 10);
  REQUIRE_THROWS_AS(cache.load(0, 4), ResourceError);
  REQUIRE(test::error_text([&] { cache.load(0, 4); }) ==
          "[" + (dir / "cache").string() +
              "] reading the activation cache must succeed; the file is too short");
}

TEST_CASE("a sample of another shape is refused", "[calib][cache]") {
  ActivationCache cache({2}, 3, Storage::kMemory);
  REQUIRE_THROWS_AS(cache.store(0, at::zeros({3, 3})), InvalidArgument);
  REQUIRE(test::error_text([&] {
            cache.store(0, at::zeros({3, 3}));
          }) == "[ActivationCache::store] sample 0 must be a contiguous [2, up to 3]; received [3, 3]");
  REQUIRE_THROWS_AS(cache.store(0, at::zeros({2, 4})), InvalidArgument);
  REQUIRE_THROWS_AS(cache.store(0, at::zeros({3, 2}).t()), InvalidArgument);
}

TEST_CASE("saved activations come back with the same hash, in either kind of cache", "[calib][cache]") {
  const test::TempDir dir;
  ActivationCache memory({2, 3}, 4, Storage::kMemory);
  memory.store(0, values(2, 4, "a"));
  memory.store(1, values(3, 4, "b"));
  const std::string hash = memory.write_to(dir / "saved", 4);
  ActivationCache disk({2, 3}, 4, Storage::kDisk, dir / "cache");
  REQUIRE(disk.read_from(dir / "saved", 4) == hash);
  REQUIRE(disk.load(1, 4).equal(memory.load(1, 4)));
  REQUIRE(disk.write_to(dir / "again", 4) == hash);

  std::string bytes = io::read_file(dir / "saved");
  bytes[7] ^= 1;
  io::write_file_atomic(dir / "saved", bytes);
  REQUIRE(disk.read_from(dir / "saved", 4) != hash);
}

TEST_CASE("saved activations of another size are refused", "[calib][cache]") {
  const test::TempDir dir;
  ActivationCache cache({2, 3}, 4, Storage::kMemory);
  io::write_file_atomic(dir / "saved", std::string(79, 'x'));
  REQUIRE_THROWS_AS(cache.read_from(dir / "saved", 4), CorruptFile);
  REQUIRE(test::error_text([&] { cache.read_from(dir / "saved", 4); }) ==
          "[" + (dir / "saved").string() + "] the saved activations must have 80 bytes; the file has 79");
  REQUIRE(test::error_text([&] { cache.read_from(dir / "gone", 4); }) ==
          "[" + (dir / "gone").string() + "] the saved activations must have 80 bytes; the file has none");
}
