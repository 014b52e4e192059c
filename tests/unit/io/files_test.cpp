#include "lcomp/io/files.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <csignal>

#include "io/descriptor.h"
#include "lcomp/core/error.h"
#include "lcomp/io/hash.h"
#include "support/child_process.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::io;
using Catch::Contains;

TEST_CASE("an atomic write replaces the file and records what it wrote", "[io][files]") {
  const test::TempDir dir;
  REQUIRE(write_file_atomic(dir / "f", "old").bytes == 3);
  const FileRecord record = write_file_atomic(dir / "f", "newer");
  REQUIRE(read_file(dir / "f") == "newer");
  REQUIRE(record == FileRecord{.name = "f", .bytes = 5, .hash = hash_of("newer")});
  REQUIRE(record == record_of(dir.path(), "f"));
  REQUIRE(write_file_atomic(dir / "empty", "").bytes == 0);
  REQUIRE(read_file(dir / "empty").empty());
  REQUIRE(list_directory(dir.path()).size() == 2);
}

TEST_CASE("a file that is not committed leaves the old one and no trace", "[io][files]") {
  const test::TempDir dir;
  write_file_atomic(dir / "f", "old");
  {
    AtomicFile file(dir / "f");
    file.write("half");
    REQUIRE(file.size() == 4);
    REQUIRE(read_file(dir / "f") == "old");
  }
  REQUIRE(read_file(dir / "f") == "old");
  REQUIRE(list_directory(dir.path()).size() == 1);
  AtomicFile file(dir / "f");
  file.commit();
  REQUIRE_THROWS_WITH(file.write("x"), "[AtomicFile::write] must come before commit; it came after");
}

TEST_CASE("a writer that is killed leaves the old file, and the next one succeeds", "[io][files]") {
  const test::TempDir dir;
  write_file_atomic(dir / "f", "old");
  test::in_child([&]() -> std::string {
    AtomicFile file(dir / "f");
    file.write("half");
    ::_exit(0);
  });
  REQUIRE(read_file(dir / "f") == "old");
  write_file_atomic(dir / "f", "new");
  REQUIRE(read_file(dir / "f") == "new");
  REQUIRE(list_directory(dir.path()).size() == 1);
}

TEST_CASE("a copy has the same bytes, however many", "[io][files]") {
  const test::TempDir dir;
  for (const size_t size : {size_t{0}, size_t{1}, size_t{3} << 20 | 5}) {
    std::string content(size, '\0');
    for (size_t i = 0; i < size; ++i) content[i] = static_cast<char>(i * 31 >> 3);
    const FileRecord from = write_file_atomic(dir / "from", content);
    const FileRecord to = copy_file_atomic(dir / "from", dir / "to");
    REQUIRE(to.hash == from.hash);
    REQUIRE(read_file(dir / "to") == content);
  }
}

TEST_CASE("a full disk is a resource error with the path and the system's words", "[io][files]") {
  const Descriptor full = open_file("/dev/full", O_WRONLY);
  const std::string text = "x";
  REQUIRE_THROWS_AS(write_all(full, "/dev/full", std::as_bytes(std::span(text))), ResourceError);
  REQUIRE_THROWS_WITH(write_all(full, "/dev/full", std::as_bytes(std::span(text))),
                      "[/dev/full] the file must be written; No space left on device");
}

TEST_CASE("a write that fails half-way leaves nothing behind", "[io][files]") {
  const test::TempDir dir;
  write_file_atomic(dir / "f", "old");
  const std::string error = test::in_child([&]() -> std::string {
    const rlimit limit{.rlim_cur = 4096, .rlim_max = 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    std::signal(SIGXFSZ, SIG_IGN);
    try {
      write_file_atomic(dir / "f", std::string(10000, 'x'));
    } catch (const ResourceError& e) {
      return e.what();
    }
    return "no error";
  });
  REQUIRE(error == fmt::format("[{}] the file must be written; File too large", (dir / "f").string()));
  REQUIRE(read_file(dir / "f") == "old");
  REQUIRE(list_directory(dir.path()).size() == 1);
}

TEST_CASE("failing file operations name the path and the reason", "[io][files]") {
  const test::TempDir dir;
  REQUIRE_THROWS_AS(read_file(dir / "none"), CorruptFile);
  REQUIRE_THROWS_WITH(read_file(dir / "none"),
                      Contains("none] the file must be opened; No such file or directory"));
  REQUIRE_THROWS_AS(read_file(dir.path()), CorruptFile);
  REQUIRE_THROWS_WITH(read_file(dir.path()),
                      Contains("the file must be a regular file; it is a directory or a device"));
  REQUIRE(::mkfifo((dir / "pipe").c_str(), 0600) == 0);  // nobody writes: reading would wait forever
  REQUIRE_THROWS_AS(read_file(dir / "pipe"), CorruptFile);
  REQUIRE_THROWS_AS(write_file_atomic(dir / "none/f", ""), ResourceError);
  REQUIRE_THROWS_AS(list_directory(dir / "none"), CorruptFile);
  REQUIRE_THROWS_WITH(write_file_atomic(dir / "none/f", ""),
                      Contains("f.tmp] the file must be created; No such file"));
  REQUIRE_THROWS_WITH(list_directory(dir / "none"),
                      Contains("none] the directory must be listed; No such file"));
  REQUIRE_THROWS_WITH(available_bytes(dir / "none"),
                      Contains("must be on a file system that can be examined; No such"));
  REQUIRE_THROWS_WITH(hash_of_file(dir / "none"),
                      Contains("none] the file must be opened; No such file or directory"));
  REQUIRE_THROWS_AS(hash_of_file(dir / "pipe"), CorruptFile);
  std::filesystem::create_directory(dir / "d");
  REQUIRE_THROWS_WITH(write_file_atomic(dir / "d", ""),
                      Contains("d] the file must be given its name; Is a directory"));
  write_file_atomic(dir / "f", "");
  REQUIRE_THROWS_WITH(make_directories(dir / "f" / "d"), Contains("f] the directory must be created; "));
  const Descriptor file = open_file(dir / "f", O_RDONLY);
  std::array<std::byte, 1> out{};
  REQUIRE_THROWS_WITH(read_all(file, "f", 0, out),
                      "[f] the file must be read; it ends at byte 0, before it did when opened");
}

TEST_CASE("directories are made with their parents, listed in order and synchronised", "[io][files]") {
  const test::TempDir dir;
  make_directories(dir / "a/b/c");
  make_directories(dir / "a/b/c");
  write_file_atomic(dir / "a/2", "");
  write_file_atomic(dir / "a/1", "");
  REQUIRE(list_directory(dir / "a") ==
          std::vector<std::filesystem::path>{dir / "a/1", dir / "a/2", dir / "a/b"});
  std::filesystem::create_symlink("nowhere", dir / "a/link");
  REQUIRE_NOTHROW(sync_tree(dir.path()));
  REQUIRE_THROWS_AS(sync_tree(dir / "none"), CorruptFile);
}

TEST_CASE("a temporary file does not follow a link", "[io][files]") {
  const test::TempDir dir;
  write_file_atomic(dir / "precious", "kept");
  std::filesystem::create_symlink(dir / "precious", dir / "a.tmp");
  REQUIRE_THROWS_AS(write_file_atomic(dir / "a", "new"), ResourceError);
  REQUIRE(read_file(dir / "precious") == "kept");
}

TEST_CASE("too little disk is refused with both figures", "[io][files]") {
  const test::TempDir dir;
  REQUIRE(available_bytes(dir.path()) > 0);
  REQUIRE_NOTHROW(require_free_space(dir.path(), 1));
  REQUIRE_THROWS_AS(require_free_space(dir.path(), uint64_t{1} << 62), ResourceError);
  REQUIRE_THROWS_WITH(
      require_free_space(dir.path(), uint64_t{1} << 62),
      Contains("the disk must have 4611686018427387904 bytes free; ") && Contains(" are available"));
}
