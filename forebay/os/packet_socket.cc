#include "forebay/os/packet_socket.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <memory>

#include "forebay/base/assert.h"
#include "forebay/os/poll.h"
#include "forebay/os/socket.h"

// Newer than the headers of some systems that have the kernel for it.
#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

namespace forebay {
namespace {

constexpr std::uint32_t vlan_tag_bytes = 4;
constexpr std::uint32_t addresses_bytes = 12;  // of an Ethernet header, in front of the tag

static_assert(sizeof(filter_instruction) == sizeof(sock_filter));

template <typename T>
result<> set_option(int fd, int level, int name, const T& value) {
  if (::setsockopt(fd, level, name, &value, sizeof value) != 0) return fail_errno();
  return {};
}

result<> attach_filter(int fd, std::span<const filter_instruction> program) {
  if (program.size() > std::numeric_limits<unsigned short>::max()) return fail(EINVAL);
  // The kernel only reads it.
  auto* first = std::bit_cast<sock_filter*>(program.data());
  const sock_fprog attached{static_cast<unsigned short>(program.size()), first};
  return set_option(fd, SOL_SOCKET, SO_ATTACH_FILTER, attached);
}

result<> set_up_ring(int fd, const packet_socket::options& opts) {
  if (!std::has_single_bit(opts.block_bytes) || opts.block_bytes < 4096 || opts.blocks == 0) {
    return fail(EINVAL);
  }
  if (auto r = set_option(fd, SOL_PACKET, PACKET_VERSION, int{TPACKET_V3}); !r) return r;
  // Room in front of each frame for the VLAN tag that the kernel takes out of it.
  if (auto r = set_option(fd, SOL_PACKET, PACKET_RESERVE, vlan_tag_bytes); !r) return r;
  tpacket_req3 ring{};
  ring.tp_block_size = opts.block_bytes;
  ring.tp_block_nr = opts.blocks;
  // Of the size of frames only the product is checked: in this version they have any length.
  ring.tp_frame_size = 2048;
  ring.tp_frame_nr = opts.block_bytes / ring.tp_frame_size * opts.blocks;
  ring.tp_retire_blk_tov = opts.retire_ms;
  return set_option(fd, SOL_PACKET, PACKET_RX_RING, ring);
}

result<> bind_to(int fd, int interface_index, unsigned short protocol) {
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(protocol);
  address.sll_ifindex = interface_index;
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return fail_errno();
  }
  return {};
}

result<> configure(int fd, const net_interface& from, const packet_socket::options& opts) {
  if (!opts.filter.empty()) {
    if (auto r = attach_filter(fd, opts.filter); !r) return r;
  }
  if (auto r = set_up_ring(fd, opts); !r) return r;
  if (!opts.outgoing) {
    if (auto r = set_option(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1); !r) return r;
  }
  if (!opts.promiscuous) return {};
  packet_mreq membership{};
  membership.mr_ifindex = from.index;
  membership.mr_type = PACKET_MR_PROMISC;
  return set_option(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership);
}

// A descriptor that becomes readable each time that something happens at `fd`.
result<unique_fd> signs_of(int fd) {
  unique_fd signs(::epoll_create1(EPOLL_CLOEXEC));
  if (!signs) return fail_errno();
  epoll_event wanted{};
  wanted.events = EPOLLIN | EPOLLET;  // EPOLLERR is always
  if (::epoll_ctl(signs.get(), EPOLL_CTL_ADD, fd, &wanted) != 0) return fail_errno();
  return signs;
}

template <typename T>
T& header_at(std::byte* at) noexcept {
  return *std::launder(reinterpret_cast<T*>(at));
}

// Puts a tag back behind the two addresses, which move to the front for it.
std::byte* put_vlan_tag(std::byte* frame, std::uint16_t tpid, std::uint16_t tci) noexcept {
  std::byte* const start = frame - vlan_tag_bytes;
  std::memmove(start, frame, addresses_bytes);
  const std::array<std::uint16_t, 2> tag{htons(tpid), htons(tci)};
  std::memcpy(start + addresses_bytes, tag.data(), sizeof tag);
  return start;
}

}  // namespace

result<packet_socket> packet_socket::open(const net_interface& from, const options& opts) {
  // Of no protocol at first: nothing comes before the filter and the ring are there.
  unique_fd fd(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno();
  if (auto r = configure(fd.get(), from, opts); !r) return fail(r.error());
  auto signs = signs_of(fd.get());
  if (!signs) return fail(signs.error());
  const std::size_t bytes = std::size_t{opts.block_bytes} * opts.blocks;
  void* const ring =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd.get(), 0);
  if (ring == MAP_FAILED) return fail_errno();
  packet_socket made(std::move(fd), std::move(*signs), static_cast<std::byte*>(ring), opts);
  if (auto r = bind_to(made.fd(), from.index, ETH_P_ALL); !r) return fail(r.error());
  return made;
}

packet_socket::packet_socket(packet_socket&& other) noexcept
    : fd_(std::move(other.fd_)),
      signs_(std::move(other.signs_)),
      ring_(std::exchange(other.ring_, nullptr)),
      block_bytes_(other.block_bytes_),
      blocks_(other.blocks_),
      taken_(std::move(other.taken_)),
      next_(other.next_),
      counted_(other.counted_) {}

packet_socket::~packet_socket() {
  if (ring_ != nullptr) ::munmap(ring_, std::size_t{block_bytes_} * blocks_);
}

std::atomic_ref<std::uint32_t> packet_socket::status_of(std::uint32_t block) const noexcept {
  FOREBAY_DCHECK(block < blocks_);
  auto& header = header_at<tpacket_block_desc>(ring_ + std::size_t{block} * block_bytes_);
  return std::atomic_ref<std::uint32_t>(header.hdr.bh1.block_status);
}

bool packet_socket::can_take() const noexcept {
  // acquire: pairs with give_back(), so that the mark below is not the one from before it.
  if (taken_[next_].load(std::memory_order_acquire)) return false;
  // acquire: pairs with the kernel's hand-over of what is in the block.
  return (status_of(next_).load(std::memory_order_acquire) & TP_STATUS_USER) != 0;
}

std::optional<std::uint32_t> packet_socket::take_block() noexcept {
  if (!can_take()) return std::nullopt;
  const std::uint32_t taken = next_;
  taken_[taken].store(true, std::memory_order_relaxed);  // relaxed: read by this thread, and reset
  next_ = next_ + 1 == blocks_ ? 0 : next_ + 1;
  return taken;
}

void packet_socket::give_back(std::uint32_t block) noexcept {
  // release: what was read of it has been read before the kernel fills it anew.
  status_of(block).store(TP_STATUS_KERNEL, std::memory_order_release);
  taken_[block].store(false, std::memory_order_release);  // release: after the mark has gone
}

packet_socket::walk packet_socket::frames_of(std::uint32_t block) const noexcept {
  std::byte* const start = ring_ + std::size_t{block} * block_bytes_;
  const tpacket_hdr_v1& header = header_at<tpacket_block_desc>(start).hdr.bh1;
  walk w;
  w.at_ = start + header.offset_to_first_pkt;
  w.left_ = header.num_pkts;
  return w;
}

bool packet_socket::walk::next(received_frame& out) noexcept {
  if (left_ == 0) return false;
  const auto& header = header_at<tpacket3_hdr>(at_);
  std::byte* data = at_ + header.tp_mac;
  std::uint32_t kept = header.tp_snaplen;
  std::uint32_t whole = header.tp_len;
  if ((header.tp_status & TP_STATUS_VLAN_VALID) != 0 && kept >= addresses_bytes) {
    const bool has_type = (header.tp_status & TP_STATUS_VLAN_TPID_VALID) != 0;
    const auto type = static_cast<std::uint16_t>(has_type ? header.hv1.tp_vlan_tpid : ETH_P_8021Q);
    data = put_vlan_tag(data, type, static_cast<std::uint16_t>(header.hv1.tp_vlan_tci));
    kept += vlan_tag_bytes;
    whole += vlan_tag_bytes;
  }
  const auto& address = header_at<sockaddr_ll>(at_ + TPACKET_ALIGN(sizeof(tpacket3_hdr)));
  out = {.data = {data, kept},
         .wire_bytes = whole,
         .stamp_ns = std::uint64_t{header.tp_sec} * 1'000'000'000 + header.tp_nsec,
         .outgoing = address.sll_pkttype == PACKET_OUTGOING};
  at_ += header.tp_next_offset;
  --left_;
  return true;
}

result<> packet_socket::wait(int timeout_ms, int also) const {
  if (can_take()) return {};
  // A sign from before that look ends it too soon at most; one that comes after it is kept.
  const std::array<int, 2> fds{signs_.get(), also};
  const auto ready = wait_readable(fds, timeout_ms);
  if (!ready) return fail(ready.error());
  if ((*ready & 1) == 0) return {};
  epoll_event seen{};
  if (::epoll_wait(signs_.get(), &seen, 1, 0) < 0 && errno != EINTR) return fail_errno();
  return {};
}

std::error_code packet_socket::take_error() noexcept { return take_socket_error(fd()); }

packet_socket::counters packet_socket::statistics() noexcept {
  tpacket_stats_v3 now{};
  socklen_t length = sizeof now;
  if (::getsockopt(fd(), SOL_PACKET, PACKET_STATISTICS, &now, &length) == 0) {
    counted_.received += now.tp_packets;
    counted_.dropped += now.tp_drops;
    counted_.stalls += now.tp_freeze_q_cnt;
  }
  return counted_;
}

void packet_socket::stop_receiving() noexcept {
  // The filter first, for the case that the interface is not there any more to unbind from.
  constexpr std::array<filter_instruction, 1> nothing{{{.code = BPF_RET | BPF_K, .k = 0}}};
  static_cast<void>(attach_filter(fd(), nothing));
  // Of no protocol again: when this returns, no packet is on its way into the ring.
  sockaddr_ll bound{};
  socklen_t length = sizeof bound;
  if (::getsockname(fd(), reinterpret_cast<sockaddr*>(&bound), &length) != 0) return;
  static_cast<void>(bind_to(fd(), bound.sll_ifindex, 0));
}

result<std::size_t> packet_socket::transmit(std::span<const std::span<iovec>> frames) noexcept {
  constexpr std::size_t batch = 64;
  std::size_t sent = 0;
  while (sent < frames.size()) {
    std::array<mmsghdr, batch> messages{};
    const std::size_t n = std::min(batch, frames.size() - sent);
    for (std::size_t i = 0; i < n; ++i) {
      messages[i].msg_hdr.msg_iov = frames[sent + i].data();
      messages[i].msg_hdr.msg_iovlen = frames[sent + i].size();
    }
    const int r = ::sendmmsg(fd(), messages.data(), static_cast<unsigned>(n), MSG_DONTWAIT);
    if (r > 0) {
      sent += static_cast<std::size_t>(r);
      if (static_cast<std::size_t>(r) == n) continue;
    }
    if (r < 0 && errno == EINTR) continue;
    if (r < 0 && sent == 0 && errno != EAGAIN && errno != ENOBUFS) return fail_errno();
    break;
  }
  return sent;
}

}  // namespace forebay
