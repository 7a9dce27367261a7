#include "forebay/os/stream_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace forebay {
namespace {

// What can be opened for reading, and not be read.
result<> refuse_directory(int fd) {
  struct stat st{};
  if (::fstat(fd, &st) != 0) return fail_errno();
  if (S_ISDIR(st.st_mode)) return fail(EISDIR);
  return {};
}

}  // namespace

result<stream_file> stream_file::open(const std::string& path) {
  unique_fd fd(path == "-" ? ::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0)
                           : ::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno();
  if (auto r = refuse_directory(fd.get()); !r) return fail(r.error());
  return stream_file(std::move(fd));
}

result<stream_file> stream_file::create(const std::string& path) {
  unique_fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!fd) return fail_errno();
  return stream_file(std::move(fd));
}

result<std::size_t> stream_file::read(std::span<std::byte> to) const noexcept {
  for (;;) {
    const ssize_t n = ::read(fd(), to.data(), to.size());
    if (n >= 0) return static_cast<std::size_t>(n);
    if (errno != EINTR) return fail_errno();
  }
}

result<> stream_file::write(std::span<const std::byte> data) const noexcept {
  while (!data.empty()) {
    const ssize_t n = ::write(fd(), data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno();
    data = data.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

result<> stream_file::cut(std::uint64_t bytes) const noexcept {
  const auto size = static_cast<off_t>(bytes);
  if (::ftruncate(fd(), size) != 0 || ::lseek(fd(), size, SEEK_SET) != size) return fail_errno();
  return {};
}

}  // namespace forebay
