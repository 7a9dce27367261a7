// pattern_image: writes an image file full of the pattern (bench/pattern.h), past the page cache
// where the file system allows that, and makes it durable. Every block is allocated and holds data
// that does not compress.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>

#include "bench/pattern.h"
#include "fmt/format.h"
#include "forebay/os/fd.h"

namespace forebay::bench {
namespace {

constexpr std::size_t chunk_bytes = std::size_t{4} << 20;
constexpr std::size_t alignment = 4096;

int failed(const std::string& path) {
  fmt::print(stderr, "pattern_image: {}: {}\n", path, std::strerror(errno));
  return 1;
}

int make(const std::string& path, std::uint64_t size_bytes) {
  const int flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC;
  unique_fd file(::open(path.c_str(), flags | O_DIRECT, 0644));
  if (!file && errno == EINVAL) file.reset(::open(path.c_str(), flags, 0644));
  if (!file) return failed(path);
  const std::unique_ptr<void, decltype(&std::free)> memory(
      std::aligned_alloc(alignment, chunk_bytes), &std::free);
  const std::span<std::byte> chunk(static_cast<std::byte*>(memory.get()), chunk_bytes);
  for (std::uint64_t at = 0; at < size_bytes;) {
    const auto now = chunk.first(std::min<std::uint64_t>(chunk_bytes, size_bytes - at));
    pattern_fill(at, now);
    const ssize_t n = ::pwrite(file.get(), now.data(), now.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(path);
    at +=
        static_cast<std::uint64_t>(n) / alignment * alignment;  // a short write goes on at a block
  }
  if (::fsync(file.get()) != 0) return failed(path);
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  return 0;
}

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  CLI::App app{"Writes an image file full of a known pattern"};
  std::string path;
  std::uint64_t size_bytes = 0;
  app.add_option("FILE", path, "File to write, replaced if it exists")->required();
  app.add_option("SIZE", size_bytes, "Bytes, a multiple of 4096")
      ->required()
      ->transform(CLI::AsSizeValue(false));
  CLI11_PARSE(app, argc, argv);
  if (size_bytes == 0 || size_bytes % 4096 != 0) {
    fmt::print(stderr, "pattern_image: SIZE must be a multiple of 4096\n");
    return 2;
  }
  return forebay::bench::make(path, size_bytes);
}
