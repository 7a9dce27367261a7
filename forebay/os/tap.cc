#include "forebay/os/tap.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include <cstring>

namespace forebay {

result<tap_interface> tap_interface::open(const std::string& name) {
  ifreq request{};
  if (name.size() >= sizeof request.ifr_name) return fail(EINVAL);
  std::memcpy(request.ifr_name, name.c_str(), name.size() + 1);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  unique_fd fd(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fd) return fail_errno();
  if (::ioctl(fd.get(), TUNSETIFF, &request) != 0) return fail_errno();
  const std::size_t length = ::strnlen(request.ifr_name, sizeof request.ifr_name);
  return tap_interface(std::move(fd), std::string(request.ifr_name, length));
}

result<std::size_t> tap_interface::receive(std::span<const iovec> segments) const noexcept {
  for (;;) {
    const ssize_t n = ::readv(fd(), segments.data(), static_cast<int>(segments.size()));
    if (n >= 0) return static_cast<std::size_t>(n);
    if (errno != EINTR) return fail_errno();
  }
}

result<> tap_interface::send(std::span<const iovec> segments) const noexcept {
  for (;;) {
    if (::writev(fd(), segments.data(), static_cast<int>(segments.size())) >= 0) return {};
    if (errno != EINTR) return fail_errno();
  }
}

}  // namespace forebay
