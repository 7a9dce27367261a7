// Keeps files in an image of its own format (tinyfs.h).
//
//   tinyfs mkfs IMAGE [INODES]     an empty file system on an image that exists; 128 inodes
//   tinyfs put IMAGE NAME          standard input to a file, which is new or gets new contents
//   tinyfs get IMAGE NAME          a file to standard output
//   tinyfs ls IMAGE                size in bytes and name of each file
//   tinyfs rm IMAGE NAME
//   tinyfs fsck IMAGE              says what is wrong, a line each
//
// Exit status 1 with one line on standard error for what cannot be done, and for an image with
// faults; 2 for wrong arguments.

#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <optional>

#include "examples/tinyfs/tinyfs.h"
#include "forebay/block/file_device.h"

using namespace forebay;

namespace {

constexpr std::size_t piece_bytes = 1u << 20;

result<> put(tinyfs::file_system& fs, std::string_view name) {
  const auto file = fs.open_file(name, true);
  if (!file) return fail(file.error());
  if (const result<> r = (*file)->truncate(0); !r) return r;
  std::vector<std::byte> piece(piece_bytes);
  for (std::uint64_t at = 0;;) {
    const std::size_t n = std::fread(piece.data(), 1, piece.size(), stdin);
    if (std::ferror(stdin) != 0) return fail(EIO);
    if (n == 0) break;
    if (const result<> r = (*file)->write(at, std::span(piece).first(n)); !r) return r;
    at += n;
  }
  return (*file)->sync();
}

result<> get(tinyfs::file_system& fs, std::string_view name) {
  const auto file = fs.open_file(name, false);
  if (!file) return fail(file.error());
  std::vector<std::byte> piece(piece_bytes);
  for (std::uint64_t at = 0;;) {
    const result<std::size_t> n = (*file)->read(at, piece);
    if (!n) return fail(n.error());
    if (*n == 0) return {};
    if (std::fwrite(piece.data(), 1, *n, stdout) != *n) return fail_errno();
    at += *n;
  }
}

result<> check(tinyfs::file_system& fs) {
  const std::vector<std::string> wrong = fs.check();
  for (const std::string& line : wrong) fmt::print("{}\n", line);
  return wrong.empty() ? result<>{} : fail(errc::corrupt);
}

result<> make(tinyfs::file_system& fs, std::string_view inodes) {
  std::uint32_t n = 128;
  if (!inodes.empty()) {
    const auto [end, error] = std::from_chars(inodes.data(), inodes.data() + inodes.size(), n);
    if (error != std::errc{} || end != inodes.data() + inodes.size()) return fail(EINVAL);
  }
  return fs.make(n);
}

result<> work(std::string_view command, const char* image, std::string_view name) {
  auto dev = file_device::open(image, {});
  if (!dev) return fail(dev.error());
  auto cache = page_cache::create({.bytes = 32 << 20});
  if (!cache) return fail(cache.error());
  address_space space(**cache, **dev, {.block_bytes = (*dev)->limits().logical_block_bytes});
  tinyfs::file_system fs(**cache, space);
  if (command == "mkfs") return make(fs, name);
  if (const result<> opened = fs.open(); !opened) return opened;
  if (command == "put") return put(fs, name);
  if (command == "rm") return fs.remove(name);
  if (command == "fsck") return check(fs);
  if (command == "get") return get(fs, name);
  for (const tinyfs::entry& e : fs.list()) fmt::print("{:>12} {}\n", e.size_bytes, e.name);
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  const bool named = command == "put" || command == "get" || command == "rm";
  const bool fits = named                                  ? argc == 4
                    : command == "mkfs"                    ? argc == 3 || argc == 4
                    : command == "ls" || command == "fsck" ? argc == 3
                                                           : false;
  if (!fits) {
    std::fputs(
        "usage: tinyfs mkfs IMAGE [INODES] | put IMAGE NAME | get IMAGE NAME | ls IMAGE | rm IMAGE "
        "NAME "
        "| fsck IMAGE\n",
        stderr);
    return 2;
  }
  result<> done = work(command, argv[2], argc > 3 ? argv[3] : "");
  if (std::fflush(stdout) != 0 && done) done = fail_errno();
  if (done) return 0;
  fmt::print(stderr, "tinyfs: {}: {}\n", argv[2], done.error().message());
  return 1;
}
