// Sends frames of one length over an interface as fast as it takes them, past its queue, and says
// how many there were. For bench/capture.py.
//   packet_sender IF BYTES SECONDS [ON_MS OFF_MS]

#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using std::chrono::steady_clock;

constexpr unsigned batch = 64;

int open_interface(const char* name) {
  const int fd = ::socket(AF_PACKET, SOCK_RAW, 0);
  sockaddr_ll at{};
  at.sll_family = AF_PACKET;
  at.sll_ifindex = static_cast<int>(::if_nametoindex(name));
  const int on = 1;
  if (fd < 0 || at.sll_ifindex == 0 ||
      ::bind(fd, reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0) {
    return -1;
  }
  ::setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof on);
  return fd;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4 && argc != 6) {
    return std::fputs("usage: packet_sender IF BYTES SECONDS [ON_MS OFF_MS]\n", stderr), 2;
  }
  const std::size_t length = std::strtoul(argv[2], nullptr, 10);
  const auto end = steady_clock::now() + std::chrono::duration<double>(std::atof(argv[3]));
  const int on_ms = argc == 6 ? std::atoi(argv[4]) : 0;
  const int off_ms = argc == 6 ? std::atoi(argv[5]) : 0;
  const int fd = open_interface(argv[1]);
  if (fd < 0 || length < 20) return std::perror(argv[1]), 1;
  std::vector<unsigned char> frame(length, 2);
  frame[12] = 0x88;
  frame[13] = 0xb5;
  iovec segment{frame.data(), frame.size()};
  std::array<mmsghdr, batch> messages{};
  for (mmsghdr& m : messages) {
    m.msg_hdr.msg_iov = &segment;
    m.msg_hdr.msg_iovlen = 1;
  }
  std::uint64_t sent = 0;
  auto burst_end = steady_clock::now() + std::chrono::milliseconds(on_ms);
  for (auto now = steady_clock::now(); now < end; now = steady_clock::now()) {
    if (on_ms != 0 && now >= burst_end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(off_ms));
      burst_end = steady_clock::now() + std::chrono::milliseconds(on_ms);
    }
    const int n = ::sendmmsg(fd, messages.data(), batch, 0);
    if (n > 0) sent += static_cast<std::uint64_t>(n);
  }
  std::printf("%lu\n", static_cast<unsigned long>(sent));
}
