#include "forebay/os/socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <charconv>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>

namespace forebay {
namespace {

constexpr int backlog = 256;

result<sockaddr_un> unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty()) return fail(EINVAL);  // would be an abstract address
  if (path.size() >= sizeof address.sun_path) return fail(ENAMETOOLONG);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

// The C interface's view of an address.
const sockaddr* as_sockaddr(const sockaddr_un& a) noexcept {
  return reinterpret_cast<const sockaddr*>(&a);
}

using address_list = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

result<address_list> resolve(const std::string& host, std::uint16_t port, bool passive) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.empty() ? nullptr : host.c_str(), std::to_string(port).c_str(), &hints,
                    &found) != 0) {
    return fail(EADDRNOTAVAIL);
  }
  return address_list(found, &::freeaddrinfo);
}

// Whether a process has the socket file open. Anything but a plain no is no reason to remove it.
result<bool> somebody_listens(const sockaddr_un& address) {
  const unique_fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return fail_errno();
  if (::connect(probe.get(), as_sockaddr(address), sizeof address) == 0) return true;
  switch (errno) {
    case EAGAIN:      // its backlog is full
    case EPROTOTYPE:  // it is a datagram or packet socket
      return true;
    case ECONNREFUSED:
    case ENOENT:  // gone meanwhile
      return false;
    default:
      return fail_errno();
  }
}

// RFC 3986, 2.1: everything but the unreserved characters and those of `keep`.
std::string percent_encode(const std::string& text, std::string_view keep) {
  constexpr std::string_view unreserved =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
  constexpr std::string_view digits = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    if (unreserved.find(c) != unreserved.npos || keep.find(c) != keep.npos) {
      out += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      out += {'%', digits[byte >> 4], digits[byte & 15]};
    }
  }
  return out;
}

result<unique_fd> listen_on(const addrinfo& a) {
  unique_fd fd(::socket(a.ai_family, a.ai_socktype | SOCK_CLOEXEC, a.ai_protocol));
  if (!fd) return fail_errno();
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (a.ai_family == AF_INET6) ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
  if (::bind(fd.get(), a.ai_addr, a.ai_addrlen) != 0) return fail_errno();
  if (::listen(fd.get(), backlog) != 0) return fail_errno();
  return fd;
}

}  // namespace

result<endpoint> endpoint::parse_tcp(const std::string& text) {
  const auto colon = text.rfind(':');
  if (colon == std::string::npos) return fail(EINVAL);
  endpoint e;
  e.host = text.substr(0, colon);
  if (e.host.size() > 2 && e.host.front() == '[' && e.host.back() == ']') {
    e.host = e.host.substr(1, e.host.size() - 2);
  } else if (e.host.find_first_of(":[]") != std::string::npos) {
    return fail(EINVAL);
  }
  const char* first = text.data() + colon + 1;
  const char* last = text.data() + text.size();
  const auto [end, error] = std::from_chars(first, last, e.port);
  if (error != std::errc{} || end != last || e.port == 0) return fail(EINVAL);
  return e;
}

std::string endpoint::nbd_uri(const std::string& export_name) const {
  const std::string file = percent_encode(export_name, "/");
  if (is_unix()) return "nbd+unix:///" + file + "?socket=" + percent_encode(path, "/");
  const bool v6 = host.find(':') != std::string::npos;
  const std::string encoded = percent_encode(host, ":");
  std::string name = host.empty() ? "localhost" : encoded;
  if (v6) name.insert(0, 1, '[').push_back(']');
  const std::string at = port == 10809 ? "" : ":" + std::to_string(port);
  return "nbd://" + name + at + (file.empty() ? "" : "/" + file);
}

result<unique_fd> listen_unix(const std::string& path) {
  const auto address = unix_address(path);
  if (!address) return fail(address.error());
  unique_fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno();
  struct stat st{};
  if (::lstat(path.c_str(), &st) == 0) {
    if (!S_ISSOCK(st.st_mode)) return fail(EEXIST);
    const auto live = somebody_listens(*address);
    if (!live) return fail(live.error());
    if (*live) return fail(EADDRINUSE);
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno();
  }
  if (::bind(fd.get(), as_sockaddr(*address), sizeof *address) != 0) return fail_errno();
  if (::listen(fd.get(), backlog) != 0) return fail_errno();
  return fd;
}

result<std::vector<unique_fd>> listen_tcp(const std::string& host, std::uint16_t port) {
  auto addresses = resolve(host, port, true);
  if (!addresses) return fail(addresses.error());
  std::vector<unique_fd> fds;
  for (const addrinfo* a = addresses->get(); a != nullptr; a = a->ai_next) {
    auto fd = listen_on(*a);
    if (fd) {
      fds.push_back(std::move(*fd));
    } else if (fd.error().value() != EAFNOSUPPORT && fd.error().value() != EADDRNOTAVAIL) {
      return fail(fd.error());
    }
  }
  if (fds.empty()) return fail(EADDRNOTAVAIL);
  return fds;
}

result<unique_fd> connect_to(const endpoint& where) {
  if (where.is_unix()) {
    const auto address = unix_address(where.path);
    if (!address) return fail(address.error());
    unique_fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) return fail_errno();
    if (::connect(fd.get(), as_sockaddr(*address), sizeof *address) != 0) return fail_errno();
    return fd;
  }
  auto addresses = resolve(where.host, where.port, false);
  if (!addresses) return fail(addresses.error());
  std::error_code last = std::make_error_code(std::errc::address_not_available);
  for (const addrinfo* a = addresses->get(); a != nullptr; a = a->ai_next) {
    unique_fd fd(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    if (fd && ::connect(fd.get(), a->ai_addr, a->ai_addrlen) == 0) return fd;
    last = std::error_code(errno, std::generic_category());
  }
  return fail(last);
}

result<> send_all(int fd, std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t n = ::send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno();
    data = data.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

result<> receive_all(int fd, std::span<std::byte> data) {
  while (!data.empty()) {
    const ssize_t n = ::recv(fd, data.data(), data.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno();
    if (n == 0) return fail(errc::end_of_stream);
    data = data.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

void set_receive_timeout(int fd, unsigned milliseconds) noexcept {
  timeval t{};
  t.tv_sec = milliseconds / 1000;
  t.tv_usec = static_cast<suseconds_t>(milliseconds % 1000) * 1000;
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
}

void set_no_delay(int fd) noexcept {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

void shutdown_socket(int fd) noexcept { ::shutdown(fd, SHUT_RDWR); }

void shutdown_receiving(int fd) noexcept { ::shutdown(fd, SHUT_RD); }

message_header::message_header() noexcept {
  static_assert(sizeof(msghdr) == sizeof(storage_) && alignof(msghdr) <= alignof(storage));
  new (&storage_) msghdr{};
}

void message_header::set(std::span<iovec> segments) noexcept {
  auto* header = std::launder(reinterpret_cast<msghdr*>(&storage_));
  header->msg_iov = segments.data();
  header->msg_iovlen = segments.size();
}

std::int32_t send_now(int fd, const message_header& message) noexcept {
  const ssize_t n =
      ::sendmsg(fd, static_cast<const msghdr*>(message.get()), MSG_NOSIGNAL | MSG_DONTWAIT);
  return n < 0 ? -errno : static_cast<std::int32_t>(n);
}

void remove_socket_file(const std::string& path) noexcept { ::unlink(path.c_str()); }

}  // namespace forebay
