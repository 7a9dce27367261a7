// TAP interfaces (Linux, Documentation/networking/tuntap.rst): an Ethernet interface of the kernel
// whose wire is a descriptor. What the kernel sends is read from it, what is written to it the
// kernel receives; a call for each frame.
//
// Thread-safety: none of its own; reading and writing may be two threads.
#pragma once

#include <sys/uio.h>

#include <concepts>
#include <cstddef>
#include <span>
#include <string>

#include "forebay/os/fd.h"

namespace forebay {

class tap_interface {
 public:
  // Makes the interface `name` (a name with %d in it is numbered; empty: tap%d), or attaches to one
  // that was made to stay (`ip tuntap add`). One that was made here goes with the object. Errors:
  // EPERM without CAP_NET_ADMIN; EBUSY if somebody else has it; EINVAL for a name that none can
  // have or that belongs to an interface of another kind; ENOENT where the machine has no TAP.
  static result<tap_interface> open(const std::string& name);

  int fd() const noexcept { return fd_.get(); }
  const std::string& name() const noexcept { return name_; }

  // One frame into the segments; its length. Errors: EAGAIN when there is none; EIO while the
  // interface is down. What does not fit is lost.
  result<std::size_t> receive(std::span<const iovec> segments) const noexcept;

  // One frame. Errors: EAGAIN when there is no room; EIO while the interface is down; EINVAL for
  // one that is shorter than its header.
  result<> send(std::span<const iovec> segments) const noexcept;

 private:
  tap_interface(unique_fd fd, std::string name) noexcept
      : fd_(std::move(fd)), name_(std::move(name)) {}

  unique_fd fd_;
  std::string name_;
};

template <typename T>
concept FrameDescriptor = requires(const T& t, std::span<const iovec> segments) {
  { t.fd() } -> std::same_as<int>;
  { t.receive(segments) } -> std::same_as<result<std::size_t>>;
  { t.send(segments) } -> std::same_as<result<>>;
};

static_assert(FrameDescriptor<tap_interface>);

}  // namespace forebay
