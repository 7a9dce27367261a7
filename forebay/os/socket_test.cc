#include "forebay/os/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "forebay/os/test_directory.h"

namespace forebay {
namespace {

endpoint unix_at(const std::string& path) {
  endpoint e;
  e.path = path;
  return e;
}

endpoint tcp_at(const std::string& host, std::uint16_t port) {
  endpoint e;
  e.host = host;
  e.port = port;
  return e;
}

TEST(Endpoint, ParsesGoodAddresses) {
  struct row {
    const char* text;
    const char* host;
    std::uint16_t port;
  };
  for (const auto& [text, host, port] : {
           row{"localhost:10809", "localhost", 10809},
           row{"127.0.0.1:1", "127.0.0.1", 1},
           row{"[::1]:65535", "::1", 65535},
           row{"[fe80::1%eth0]:99", "fe80::1%eth0", 99},
           row{"[::]:10809", "::", 10809},
           row{":10809", "", 10809},
           row{"example.org:080", "example.org", 80},
       }) {
    const auto e = endpoint::parse_tcp(text);
    ASSERT_TRUE(e) << text;
    EXPECT_EQ(e->host, host) << text;
    EXPECT_EQ(e->port, port) << text;
    EXPECT_FALSE(e->is_unix());
  }
}

TEST(Endpoint, RefusesBadAddresses) {
  for (const char* text : {"",        ":",
                           "host",    "host:",
                           "host:0",  "host:65536",
                           "host:-1", "host:+1",
                           "host: 1", "host:1 ",
                           "host:1x", "host:0x10",
                           "::1",     "::1:80",
                           "1:2:3",   "[::1]",
                           "[::1]80", "[::1]:",
                           "[::1:80", "::1]:80",
                           "[]:80",   "host:99999999999999999999"}) {
    const auto e = endpoint::parse_tcp(text);
    ASSERT_FALSE(e) << text;
    EXPECT_EQ(e.error().value(), EINVAL) << text;
  }
}

TEST(Endpoint, MakesUrisThatOtherProgramsRead) {
  EXPECT_EQ(unix_at("/run/nbd.sock").nbd_uri(""), "nbd+unix:///?socket=/run/nbd.sock");
  EXPECT_EQ(unix_at("/run/nbd.sock").nbd_uri("disk"), "nbd+unix:///disk?socket=/run/nbd.sock");
  EXPECT_EQ((tcp_at("box", 10809).nbd_uri("")), "nbd://box");
  EXPECT_EQ((tcp_at("box", 1).nbd_uri("a")), "nbd://box:1/a");
  EXPECT_EQ((tcp_at("::1", 1).nbd_uri("")), "nbd://[::1]:1");
  EXPECT_EQ((tcp_at("", 10809).nbd_uri("")), "nbd://localhost");
}

TEST(Endpoint, EscapesWhatAUriWouldMisread) {
  EXPECT_EQ(unix_at("/run/a b&c#d?e%f+g.sock").nbd_uri("x y?"),
            "nbd+unix:///x%20y%3F?socket=/run/a%20b%26c%23d%3Fe%25f%2Bg.sock");
  EXPECT_EQ((tcp_at("box", 1).nbd_uri("\xc3\xa4")), "nbd://box:1/%C3%A4");
}

class UnixSocket : public testing::Test {
 protected:
  // Binds a socket of this type to `path`, without listening.
  unique_fd bind_only(int type) {
    unique_fd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    return fd;
  }

  bool path_is_a_socket() const {
    struct stat st{};
    return ::lstat(path.c_str(), &st) == 0 && S_ISSOCK(st.st_mode);
  }

  const test_directory directory;
  const std::string path = directory.file("s");
};

TEST_F(UnixSocket, ListensAndConnects) {
  const auto listening = listen_unix(path);
  ASSERT_TRUE(listening);
  const auto client = connect_to(unix_at(path));
  ASSERT_TRUE(client);
  const unique_fd server(::accept4(listening->get(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_TRUE(server);
  const std::array<std::byte, 3> out = {std::byte{1}, std::byte{2}, std::byte{3}};
  std::array<std::byte, 3> in{};
  EXPECT_TRUE(send_all(client->get(), out));
  EXPECT_TRUE(receive_all(server.get(), in));
  EXPECT_EQ(in, out);
  set_no_delay(client->get());  // nothing on a unix socket
  EXPECT_EQ(::fcntl(listening->get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

TEST_F(UnixSocket, AStaleSocketIsReplaced) {
  ASSERT_TRUE(listen_unix(path));  // closed at once: nobody listens
  ASSERT_TRUE(path_is_a_socket());
  EXPECT_EQ(connect_to(unix_at(path)).error().value(), ECONNREFUSED);
  const auto again = listen_unix(path);
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_TRUE(connect_to(unix_at(path)));
}

TEST_F(UnixSocket, ALiveSocketIsLeftAlone) {
  const auto listening = listen_unix(path);
  ASSERT_TRUE(listening);
  EXPECT_EQ(listen_unix(path).error().value(), EADDRINUSE);
  EXPECT_TRUE(connect_to(unix_at(path))) << "it still is the first one's";
}

TEST_F(UnixSocket, ALiveSocketWithAFullBacklogIsLeftAlone) {
  const unique_fd listening = bind_only(SOCK_STREAM);
  ASSERT_EQ(::listen(listening.get(), 0), 0);
  const auto waiting = connect_to(unix_at(path));
  ASSERT_TRUE(waiting);
  EXPECT_EQ(listen_unix(path).error().value(), EADDRINUSE);
  EXPECT_TRUE(path_is_a_socket());
}

TEST_F(UnixSocket, ALiveSocketOfAnotherTypeIsLeftAlone) {
  for (const int type : {SOCK_DGRAM, SOCK_SEQPACKET}) {
    const unique_fd other = bind_only(type);
    EXPECT_EQ(::listen(other.get(), 1) == 0, type == SOCK_SEQPACKET);
    EXPECT_EQ(listen_unix(path).error().value(), EADDRINUSE) << type;
    EXPECT_TRUE(path_is_a_socket());
    ::unlink(path.c_str());
  }
}

// Without a descriptor to ask with, nobody can say that the socket is stale.
TEST_F(UnixSocket, ALiveSocketIsLeftAloneWhenDescriptorsRunOut) {
  const auto listening = listen_unix(path);
  ASSERT_TRUE(listening);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const unique_fd next(::dup(STDERR_FILENO));  // the lowest free number
  // Room for exactly one more descriptor.
  const rlimit tight{static_cast<rlim_t>(next.get()) + 2, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
  const auto refused = listen_unix(path);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().value(), EMFILE);
  EXPECT_TRUE(connect_to(unix_at(path)));
}

TEST_F(UnixSocket, SomethingElseInTheWayIsUntouched) {
  std::ofstream(path) << "precious";
  EXPECT_EQ(listen_unix(path).error().value(), EEXIST);
  std::string text;
  std::ifstream(path) >> text;
  EXPECT_EQ(text, "precious");
  ::unlink(path.c_str());

  ASSERT_EQ(::mkdir(path.c_str(), 0700), 0);
  EXPECT_EQ(listen_unix(path).error().value(), EEXIST);
  ::rmdir(path.c_str());

  ASSERT_EQ(::symlink("/nowhere", path.c_str()), 0);
  EXPECT_EQ(listen_unix(path).error().value(), EEXIST) << "a link is not followed";
}

TEST_F(UnixSocket, PathsThatCannotBeAreRefused) {
  const std::string longest = directory.file(std::string(107 - directory.file("").size(), 'x'));
  EXPECT_TRUE(listen_unix(longest)) << "107 bytes and the final zero fit";
  EXPECT_EQ(listen_unix(longest + "x").error().value(), ENAMETOOLONG);
  EXPECT_EQ(connect_to(unix_at(longest + "x")).error().value(), ENAMETOOLONG);
  EXPECT_EQ(listen_unix("").error().value(), EINVAL) << "not an abstract socket by accident";
  EXPECT_EQ(listen_unix(directory.file("missing/s")).error().value(), ENOENT);
  EXPECT_EQ(connect_to(unix_at(directory.file("missing"))).error().value(), ENOENT);
}

TEST_F(UnixSocket, RemovingTheFileTwiceIsOfNoConsequence) {
  ASSERT_TRUE(listen_unix(path));
  remove_socket_file(path);
  EXPECT_FALSE(path_is_a_socket());
  remove_socket_file(path);
}

TEST_F(UnixSocket, TheEndOfTheStreamIsAnErrorOfItsOwn) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  const unique_fd a(fds[0]);
  unique_fd b(fds[1]);
  std::array<std::byte, 8> buffer{};
  ASSERT_TRUE(send_all(b.get(), std::span(buffer).first(5)));
  b.reset();
  EXPECT_EQ(receive_all(a.get(), buffer).error(), errc::end_of_stream) << "in the middle of it";
  EXPECT_EQ(receive_all(a.get(), buffer).error(), errc::end_of_stream);
  EXPECT_TRUE(receive_all(a.get(), {})) << "nothing is what it wants";
  EXPECT_EQ(send_all(a.get(), buffer).error().value(), EPIPE) << "and no signal";
  EXPECT_TRUE(send_all(a.get(), {}));
  EXPECT_EQ(receive_all(-1, buffer).error().value(), EBADF);
}

TEST_F(UnixSocket, TransfersLargerThanTheKernelsBuffersAreWhole) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  const unique_fd a(fds[0]);
  const unique_fd b(fds[1]);
  std::vector<std::byte> out(3'000'001);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(i * 31 >> 4);
  std::vector<std::byte> in(out.size());
  std::thread sender([&] { EXPECT_TRUE(send_all(a.get(), out)); });
  EXPECT_TRUE(receive_all(b.get(), in));
  sender.join();
  EXPECT_EQ(in, out);
}

TEST_F(UnixSocket, ShutdownWakesAReader) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  const unique_fd a(fds[0]);
  const unique_fd b(fds[1]);
  std::thread reader([&] {
    std::array<std::byte, 1> buffer{};
    EXPECT_EQ(receive_all(a.get(), buffer).error(), errc::end_of_stream);
  });
  shutdown_socket(a.get());
  reader.join();
}

TEST_F(UnixSocket, ShutdownOfReceivingLetsSendingGoOn) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  const unique_fd a(fds[0]);
  const unique_fd b(fds[1]);
  shutdown_receiving(a.get());
  std::array<std::byte, 4> buffer{};
  EXPECT_EQ(receive_all(a.get(), buffer).error(), errc::end_of_stream);
  EXPECT_TRUE(send_all(a.get(), buffer));
  EXPECT_TRUE(receive_all(b.get(), buffer));
}

TEST_F(UnixSocket, AMessageHeaderGathersItsSegments) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  const unique_fd a(fds[0]);
  const unique_fd b(fds[1]);
  std::string first = "fore";
  std::string second = "bay";
  std::array<iovec, 2> segments = {iovec{first.data(), 4}, iovec{second.data(), 3}};
  message_header header;
  header.set(segments);
  EXPECT_EQ(::sendmsg(a.get(), static_cast<const msghdr*>(header.get()), 0), 7);
  std::array<char, 7> back{};
  EXPECT_TRUE(receive_all(b.get(), std::as_writable_bytes(std::span(back))));
  EXPECT_EQ(std::string(back.data(), 7), "forebay");
}

std::uint16_t port_of(const unique_fd& fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  EXPECT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

TEST(TcpSocket, ListensOnAPortAndConnects) {
  const auto listening = listen_tcp("127.0.0.1", 0);
  ASSERT_TRUE(listening);
  ASSERT_EQ(listening->size(), 1u);
  const std::uint16_t port = port_of(listening->front());
  ASSERT_NE(port, 0);
  const auto client = connect_to(tcp_at("127.0.0.1", port));
  ASSERT_TRUE(client);
  set_no_delay(client->get());
  int on = 0;
  socklen_t length = sizeof on;
  ASSERT_EQ(::getsockopt(client->get(), IPPROTO_TCP, TCP_NODELAY, &on, &length), 0);
  EXPECT_NE(on, 0);
  EXPECT_EQ(listen_tcp("127.0.0.1", port).error().value(), EADDRINUSE);
}

TEST(TcpSocket, ANameMayStandForSeveralAddresses) {
  // Where /etc/hosts names an address twice or one that this machine does not have, too.
  const auto probe = listen_tcp("127.0.0.1", 0);
  ASSERT_TRUE(probe);
  for (const char* host : {"localhost", ""}) {
    const auto listening = listen_tcp(host, 0);
    ASSERT_TRUE(listening) << listening.error().message();
    EXPECT_TRUE(connect_to(tcp_at("127.0.0.1", port_of(listening->front()))) ||
                connect_to(tcp_at("::1", port_of(listening->front()))));
  }
}

TEST(TcpSocket, AnAddressThatIsNotOursIsAnError) {
  EXPECT_EQ(listen_tcp("192.0.2.1", 0).error().value(), EADDRNOTAVAIL);
  EXPECT_EQ(listen_tcp("no such host", 1).error().value(), EADDRNOTAVAIL);
  EXPECT_EQ(connect_to(tcp_at("no such host", 1)).error().value(), EADDRNOTAVAIL);
}

TEST(TcpSocket, AClosedPortRefuses) {
  std::uint16_t port = 0;
  {
    const auto listening = listen_tcp("127.0.0.1", 0);
    ASSERT_TRUE(listening);
    port = port_of(listening->front());
  }
  EXPECT_EQ(connect_to(tcp_at("127.0.0.1", port)).error().value(), ECONNREFUSED);
}

}  // namespace
}  // namespace forebay
