#include "forebay/os/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdio>
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

std::string endpoint::nbd_uri(const std::string& export_name, bool tls) const {
  const std::string scheme = tls ? "nbds" : "nbd";
  const std::string file = percent_encode(export_name, "/");
  if (is_unix()) return scheme + "+unix:///" + file + "?socket=" + percent_encode(path, "/");
  const bool v6 = host.find(':') != std::string::npos;
  const std::string encoded = percent_encode(host, ":");
  std::string name = host.empty() ? "localhost" : encoded;
  if (v6) name.insert(0, 1, '[').push_back(']');
  const std::string at = port == 10809 ? "" : ":" + std::to_string(port);
  return scheme + "://" + name + at + (file.empty() ? "" : "/" + file);
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

void set_nonblocking(int fd) noexcept {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags >= 0) ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

bool peer_is_own_user(int fd) noexcept {
  sockaddr_storage own{};
  socklen_t length = sizeof own;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &length) != 0) return false;
  ucred peer{};
  length = sizeof peer;
  if (own.ss_family != AF_UNIX) return false;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return false;
  return peer.pid != 0 && (peer.uid == 0 || peer.uid == ::geteuid());
}

void set_no_delay(int fd) noexcept {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

void set_keep_alive(int fd) noexcept {
  constexpr int on = 1;
  constexpr int idle_s = 60;
  constexpr int interval_s = 15;
  constexpr int probes = 4;
  if (::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s) != 0) return;
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

bool reachable_from_outside(int fd) noexcept {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return false;
  if (address.ss_family == AF_INET) {
    sockaddr_in v4;
    std::memcpy(&v4, &address, sizeof v4);
    return ntohl(v4.sin_addr.s_addr) >> 24 != IN_LOOPBACKNET;
  }
  if (address.ss_family == AF_INET6) {
    sockaddr_in6 v6;
    std::memcpy(&v6, &address, sizeof v6);
    const bool mapped = IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr);
    if (mapped) return v6.sin6_addr.s6_addr[12] != IN_LOOPBACKNET;
    return !IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr);
  }
  return false;
}

std::string peer_name(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  auto* const at = reinterpret_cast<sockaddr*>(&address);
  if (::getpeername(fd, at, &length) != 0) return "a client that is gone";
  if (address.ss_family == AF_UNIX) return "a client at the unix socket";
  if (address.ss_family == AF_VSOCK) return "a client at the vsock port";
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  if (::getnameinfo(at, length, host.data(), host.size(), port.data(), port.size(),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "a client";
  }
  const bool v6 = address.ss_family == AF_INET6;
  return std::string(v6 ? "[" : "") + host.data() + (v6 ? "]:" : ":") + port.data();
}

void peer_identity(int fd, std::span<char> out) noexcept {
  const auto tell = [out](const char* what) { std::snprintf(out.data(), out.size(), "%s", what); };
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return tell("a client that is gone");
  }
  std::array<char, INET6_ADDRSTRLEN> host{};
  switch (address.ss_family) {
    case AF_UNIX: {
      ucred peer{};
      length = sizeof peer;
      if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) break;
      std::snprintf(out.data(), out.size(), "pid %d, uid %u", peer.pid, peer.uid);
      return;
    }
    case AF_INET: {
      const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
      ::inet_ntop(AF_INET, &v4.sin_addr, host.data(), host.size());
      std::snprintf(out.data(), out.size(), "%s:%u", host.data(), ntohs(v4.sin_port));
      return;
    }
    case AF_INET6: {
      const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
      ::inet_ntop(AF_INET6, &v6.sin6_addr, host.data(), host.size());
      std::snprintf(out.data(), out.size(), "[%s]:%u", host.data(), ntohs(v6.sin6_port));
      return;
    }
    case AF_VSOCK:
      return tell("a client at the vsock port");
    default:
      break;
  }
  tell("a client");
}

std::error_code take_socket_error(int fd) noexcept {
  int error = 0;
  socklen_t length = sizeof error;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) error = errno;
  return {error, std::generic_category()};
}

bool has_hung_up(int fd) noexcept {
  pollfd one{.fd = fd, .events = 0, .revents = 0};
  return ::poll(&one, 1, 0) == 1 && (one.revents & (POLLHUP | POLLERR)) != 0;
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
