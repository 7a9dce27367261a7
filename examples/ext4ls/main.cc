// Lists and extracts the files of an ext2, ext3 or ext4 image, without mounting it.
//
//   ext4ls IMAGE [PATH]               a directory's entries, or the one file
//   ext4ls -x IMAGE PATH              a file's contents, to standard output
//   ext4ls -r IMAGE PATH DIRECTORY    a directory with all that is in it, to a new directory
//
// Each line of a list: inode, kind and permissions in octal, size in bytes, name. Exit status 1
// with one line on standard error for what cannot be read, 2 for wrong arguments.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <set>

#include "examples/ext4ls/ext4.h"
#include "forebay/block/file_device.h"

using namespace forebay;
using ext4ls::entry;
using ext4ls::inode;
using ext4ls::kind;

namespace {

constexpr unsigned depth_max = 128;

char letter_of(kind k) {
  switch (k) {
    case kind::regular:
      return '-';
    case kind::directory:
      return 'd';
    case kind::symlink:
      return 'l';
    default:
      return '?';
  }
}

result<> print(ext4ls::file_system& fs, const inode& file, std::string_view name) {
  std::string link;
  if (file.type() == kind::symlink) {
    const result<std::string> target = fs.read_link(file);
    if (!target) return fail(target.error());
    link = " -> " + *target;
  }
  fmt::print("{:>8} {}{:04o} {:>12} {}{}\n", file.number, letter_of(file.type()), file.mode & 07777,
             file.size_bytes, name, link);
  return {};
}

result<> list(ext4ls::file_system& fs, const char* path) {
  const result<inode> at = fs.find(path);
  if (!at) return fail(at.error());
  if (at->type() != kind::directory) return print(fs, *at, path);
  return fs.for_each_entry(*at, [&](const entry& e) -> result<> {
    const result<inode> file = fs.read_inode(e.inode);
    if (!file) return fail(file.error());
    return print(fs, *file, e.name);
  });
}

// Writes a file's contents to a descriptor; holes stay holes where it can seek.
result<> copy_out(ext4ls::file_system& fs, const inode& file, int fd, bool sparse) {
  std::uint64_t written = 0;
  const auto put = [&](const void* data, std::size_t n) -> result<> {
    const auto* at = static_cast<const char*>(data);
    while (n != 0) {
      const ssize_t done = ::write(fd, at, n);
      if (done < 0) return fail_errno();
      at += done;
      n -= static_cast<std::size_t>(done);
      written += static_cast<std::uint64_t>(done);
    }
    return {};
  };
  const auto skip_to = [&](std::uint64_t offset) -> result<> {
    static constexpr std::array<char, 65536> zeros{};
    if (sparse) {
      if (::lseek(fd, static_cast<off_t>(offset), SEEK_SET) < 0) return fail_errno();
      written = offset;
    }
    while (written < offset) {
      const result<> r = put(zeros.data(), std::min<std::uint64_t>(zeros.size(), offset - written));
      if (!r) return r;
    }
    return {};
  };
  const result<> read = fs.for_each_part(
      file, [&](std::uint64_t offset, std::span<const std::byte> part) -> result<> {
        const result<> r = skip_to(offset);
        return r ? put(part.data(), part.size()) : r;
      });
  if (!read) return read;
  if (sparse)
    return ::ftruncate(fd, static_cast<off_t>(file.size_bytes)) == 0 ? result<>{} : fail_errno();
  return skip_to(file.size_bytes);
}

result<> extract(ext4ls::file_system& fs, const char* path) {
  const result<inode> file = fs.find(path);
  if (!file) return fail(file.error());
  if (file->type() == kind::directory) return fail(EISDIR);
  if (file->type() != kind::regular) return fail(EINVAL);
  return copy_out(fs, *file, STDOUT_FILENO, false);
}

class tree_copy {
 public:
  explicit tree_copy(ext4ls::file_system& fs) : fs_(fs) {}

  // What is in `from` to the directory `to`, which was made for it. Names come from the image: each
  // is made anew and never followed.
  result<> copy(const inode& from, int to, unsigned depth) {
    if (depth == depth_max || !seen_.insert(from.number).second) return fail(ELOOP);
    return fs_.for_each_entry(from, [&](const entry& e) -> result<> {
      if (e.name == "." || e.name == "..") return {};
      const std::string name(e.name);
      const result<inode> file = fs_.read_inode(e.inode);
      if (!file) return fail(file.error());
      return copy_one(*file, to, name.c_str(), depth);
    });
  }

 private:
  result<> copy_one(const inode& file, int to, const char* name, unsigned depth) {
    const mode_t mode = file.mode & 0777;
    if (file.type() == kind::symlink) {
      const result<std::string> target = fs_.read_link(file);
      if (!target) return fail(target.error());
      return ::symlinkat(target->c_str(), to, name) == 0 ? result<>{} : fail_errno();
    }
    if (file.type() == kind::regular) {
      const int fd = ::openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
      if (fd < 0) return fail_errno();
      const result<> copied = copy_out(fs_, file, fd, true);
      return ::close(fd) == 0 || !copied ? copied : fail_errno();
    }
    if (file.type() != kind::directory) {
      fmt::print(stderr, "ext4ls: {}: neither file, directory nor link: left out\n", name);
      return {};
    }
    if (::mkdirat(to, name, mode | 0700) != 0) return fail_errno();
    const int fd = ::openat(to, name, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return fail_errno();
    const result<> copied = copy(file, fd, depth + 1);
    ::close(fd);
    return copied;
  }

  ext4ls::file_system& fs_;
  std::set<std::uint32_t> seen_;  // a directory has one place
};

result<> extract_tree(ext4ls::file_system& fs, const char* path, const char* directory) {
  const result<inode> from = fs.find(path);
  if (!from) return fail(from.error());
  if (from->type() != kind::directory) return fail(ENOTDIR);
  if (::mkdir(directory, 0777) != 0) return fail_errno();
  const int fd = ::open(directory, O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return fail_errno();
  const result<> copied = tree_copy(fs).copy(*from, fd, 0);
  ::close(fd);
  return copied;
}

int complain(const char* image, const std::string& remark, std::error_code error) {
  fmt::print(stderr, "ext4ls: {}: {}{}{}\n", image, remark, remark.empty() ? "" : ": ",
             error.message());
  return 1;
}

int usage() {
  std::fputs("usage: ext4ls IMAGE [PATH] | -x IMAGE PATH | -r IMAGE PATH DIRECTORY\n", stderr);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view option = argc > 1 && argv[1][0] == '-' ? argv[1] : "";
  const int first = option.empty() ? 1 : 2;
  const int operands = argc - first;
  const bool fits = option.empty()   ? operands == 1 || operands == 2
                    : option == "-x" ? operands == 2
                                     : option == "-r" && operands == 3;
  if (!fits) return usage();
  const char* const image = argv[first];

  auto file = file_device::open(image, {.read_only = true});
  if (!file) return complain(image, "", file.error());
  auto cache = page_cache::create({.bytes = 16 << 20});
  if (!cache) return complain(image, "memory", cache.error());
  address_space space(**cache, **file, {.block_bytes = (*file)->limits().logical_block_bytes});
  ext4ls::file_system fs(space);
  result<> done = fs.open();
  if (done && option.empty()) done = list(fs, operands == 2 ? argv[first + 1] : "/");
  if (done && option == "-x") done = extract(fs, argv[first + 1]);
  if (done && option == "-r") done = extract_tree(fs, argv[first + 1], argv[first + 2]);
  if (std::fflush(stdout) != 0 && done) done = fail_errno();
  return done ? 0 : complain(image, fs.remark(), done.error());
}
