#include "forebay/os/xdp_socket.h"

#include <linux/ethtool.h>
#include <linux/if_packet.h>
#include <linux/if_xdp.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <thread>

#include "forebay/os/poll.h"
#include "forebay/os/socket.h"

namespace forebay {
namespace {

static_assert(sizeof(xdp_descriptor) == sizeof(xdp_desc) &&
              offsetof(xdp_descriptor, length) == offsetof(xdp_desc, len));
static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));

constexpr int wakeup_flag = XDP_RING_NEED_WAKEUP;
constexpr int bind_tries = 100;
constexpr std::chrono::milliseconds bind_pause{2};

template <typename T>
result<> set_option(int fd, int level, int name, const T& value) noexcept {
  if (::setsockopt(fd, level, name, &value, sizeof value) != 0) return fail_errno();
  return {};
}

template <typename T>
T* at(std::byte* memory, std::uint64_t offset) noexcept {
  return reinterpret_cast<T*>(memory + offset);
}

// A failure that another mode would meet as well.
bool is_final(std::error_code e) noexcept {
  return e == std::errc::operation_not_permitted || e == std::errc::permission_denied ||
         e == std::errc::no_such_device || e == std::errc::address_family_not_supported ||
         e == std::errc::no_buffer_space || e == std::errc::file_exists ||
         e == std::errc::device_or_resource_busy;
}

xdp_mode next_after(xdp_mode m) noexcept {
  return static_cast<xdp_mode>(static_cast<std::uint8_t>(m) + 1);
}

}  // namespace

const char* to_string(xdp_mode m) noexcept {
  switch (m) {
    case xdp_mode::native_zero_copy:
      return "native, zero copy";
    case xdp_mode::native_copy:
      return "native, copy";
    case xdp_mode::generic_copy:
      return "generic, copy";
  }
  return "unknown";
}

xdp_socket::mapping::~mapping() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

result<xdp_socket> xdp_socket::open(const net_interface& on, const options& opts) {
  std::vector<std::string> remarks;
  for (xdp_mode mode = opts.best;; mode = next_after(mode)) {
    auto opened = open_as(on, opts, mode);
    if (opened) {
      opened->remarks_ = std::move(remarks);
      return opened;
    }
    if (mode >= opts.worst || is_final(opened.error())) return fail(opened.error());
    remarks.push_back(std::string("no AF_XDP ") + to_string(mode) + " on " + on.name + " (" +
                      opened.error().message() + "), trying " + to_string(next_after(mode)));
  }
}

result<xdp_socket> xdp_socket::open_as(const net_interface& on, const options& opts,
                                       xdp_mode mode) {
  if (opts.headroom < headroom_min || opts.headroom >= opts.chunk_bytes) return fail(EINVAL);
  xdp_socket made;
  made.mode_ = mode;
  made.queue_ = opts.queue;
  made.headroom_ = opts.headroom;
  made.fd_.reset(::socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0));
  if (!made.fd_) return fail_errno();
  xdp_umem_reg memory{};
  memory.addr = reinterpret_cast<std::uintptr_t>(opts.memory.data());
  memory.len = opts.memory.size();
  memory.chunk_size = opts.chunk_bytes;
  memory.headroom = opts.headroom - headroom_min;
  if (auto r = set_option(made.fd(), SOL_XDP, XDP_UMEM_REG, memory); !r) return fail(r.error());
  if (auto r = made.make_rings(opts); !r) return fail(r.error());
  // Some drivers want the program first.
  const xdp_hook hook = mode == xdp_mode::generic_copy ? xdp_hook::generic : xdp_hook::native;
  auto program = xdp_program::attach(on, hook, opts.queue + opts.queues - 1, opts.filter);
  if (!program) return fail(program.error());
  made.program_ = std::make_shared<xdp_program>(std::move(*program));
  const int copying = mode == xdp_mode::native_zero_copy ? XDP_ZEROCOPY : XDP_COPY;
  if (auto r = made.bind(on, copying | XDP_USE_NEED_WAKEUP, -1); !r) return fail(r.error());
  if (opts.promiscuous) {
    if (auto r = made.be_promiscuous(on); !r) return fail(r.error());
  }
  if (auto r = made.program_->add(opts.queue, made.fd()); !r) return fail(r.error());
  return made;
}

result<xdp_socket> xdp_socket::open_beside(const xdp_socket& first, const net_interface& on,
                                           const options& opts) {
  xdp_socket made;
  made.mode_ = first.mode_;
  made.queue_ = opts.queue;
  made.headroom_ = first.headroom_;
  made.program_ = first.program_;
  made.fd_.reset(::socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0));
  if (!made.fd_) return fail_errno();
  if (auto r = made.make_rings(opts); !r) return fail(r.error());
  // The rest is as the first one's is.
  if (auto r = made.bind(on, XDP_SHARED_UMEM, first.fd()); !r) return fail(r.error());
  if (auto r = made.program_->add(opts.queue, made.fd()); !r) return fail(r.error());
  return made;
}

xdp_socket::~xdp_socket() = default;

result<> xdp_socket::make_rings(const options& opts) {
  const std::array<std::pair<int, std::uint32_t>, 4> sizes{{
      {XDP_UMEM_FILL_RING, opts.fill_entries},
      {XDP_UMEM_COMPLETION_RING, opts.completion_entries},
      {XDP_RX_RING, opts.rx_entries},
      {XDP_TX_RING, opts.tx_entries},
  }};
  for (const auto& [ring, entries] : sizes) {
    if (auto r = set_option(fd(), SOL_XDP, ring, entries); !r) return r;
  }
  xdp_mmap_offsets offsets{};
  socklen_t length = sizeof offsets;
  if (::getsockopt(fd(), SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length) != 0) return fail_errno();
  // Kernels before 5.4 have no flags, and answer with less.
  if (length != sizeof offsets) return fail(EOPNOTSUPP);

  const auto map = [&]<typename T>(const xdp_ring_offset& o, std::uint32_t entries,
                                   std::uint64_t place, flags_word*& flags,
                                   T) -> result<xdp_ring_words<T>> {
    const std::size_t bytes = o.desc + std::size_t{entries} * sizeof(T);
    void* const data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                              fd(), static_cast<off_t>(place));
    if (data == MAP_FAILED) return fail_errno();
    auto* const memory = static_cast<std::byte*>(data);
    mappings_.emplace_back(memory, bytes);
    flags = at<flags_word>(memory, o.flags);
    return xdp_ring_words<T>{.producer = at<std::atomic<std::uint32_t>>(memory, o.producer),
                             .consumer = at<std::atomic<std::uint32_t>>(memory, o.consumer),
                             .entries = at<real_atomics::plain<T>>(memory, o.desc),
                             .capacity = entries};
  };
  flags_word* unused = nullptr;
  const auto fill =
      map(offsets.fr, opts.fill_entries, XDP_UMEM_PGOFF_FILL_RING, fill_flags_, std::uint64_t{});
  if (!fill) return fail(fill.error());
  const auto completion = map(offsets.cr, opts.completion_entries, XDP_UMEM_PGOFF_COMPLETION_RING,
                              unused, std::uint64_t{});
  if (!completion) return fail(completion.error());
  const auto rx = map(offsets.rx, opts.rx_entries, XDP_PGOFF_RX_RING, unused, xdp_descriptor{});
  if (!rx) return fail(rx.error());
  const auto tx = map(offsets.tx, opts.tx_entries, XDP_PGOFF_TX_RING, tx_flags_, xdp_descriptor{});
  if (!tx) return fail(tx.error());
  fill_ = xdp_fill_ring(*fill);
  completion_ = xdp_completion_ring(*completion);
  rx_ = xdp_rx_ring(*rx);
  tx_ = xdp_tx_ring(*tx);
  return {};
}

result<> xdp_socket::bind(const net_interface& on, int flags, int sharing) {
  sockaddr_xdp address{};
  address.sxdp_family = AF_XDP;
  address.sxdp_ifindex = static_cast<std::uint32_t>(on.index);
  address.sxdp_queue_id = queue_;
  address.sxdp_flags = static_cast<std::uint16_t>(flags);
  if (sharing >= 0) address.sxdp_shared_umem_fd = static_cast<std::uint32_t>(sharing);
  // The kernel lets go of a queue a little later than its last socket has gone.
  for (int tries = 0;; ++tries) {
    if (::bind(fd(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return {};
    if (errno != EBUSY || tries == bind_tries) return fail_errno();
    std::this_thread::sleep_for(bind_pause);
  }
}

result<> xdp_socket::be_promiscuous(const net_interface& on) {
  promiscuous_.reset(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
  if (!promiscuous_) return fail_errno();
  packet_mreq membership{};
  membership.mr_ifindex = on.index;
  membership.mr_type = PACKET_MR_PROMISC;
  return set_option(promiscuous_.get(), SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership);
}

bool xdp_socket::needs_wakeup(flags_word* flags) noexcept {
  // Before it sleeps the kernel sets the flag and looks at the ring once more; commit() and this do
  // the reverse, and so need an order between a store and a load that only this fence gives.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  // relaxed: the fence orders it.
  return (flags->load(std::memory_order_relaxed) & wakeup_flag) != 0;
}

void xdp_socket::wake_fill() noexcept {
  static_cast<void>(::recvfrom(fd(), nullptr, 0, MSG_DONTWAIT, nullptr, nullptr));
}

result<> xdp_socket::wake_tx() noexcept {
  if (::sendto(fd(), nullptr, 0, MSG_DONTWAIT, nullptr, 0) < 0) return fail_errno();
  return {};
}

result<> xdp_socket::wait(int timeout_ms, int also) const {
  const std::array<int, 2> fds{fd(), also};
  const auto ready = wait_readable(fds, timeout_ms);
  if (!ready) return fail(ready.error());
  return {};
}

std::error_code xdp_socket::take_error() noexcept { return take_socket_error(fd()); }

xdp_socket::counters xdp_socket::statistics() const noexcept {
  xdp_statistics now{};
  socklen_t length = sizeof now;
  // What an old kernel does not know stays 0.
  if (::getsockopt(fd(), SOL_XDP, XDP_STATISTICS, &now, &length) != 0) return {};
  return {.rx_dropped = now.rx_dropped,
          .rx_ring_full = now.rx_ring_full,
          .rx_no_chunk = now.rx_fill_ring_empty_descs,
          .rx_bad_addresses = now.rx_invalid_descs,
          .tx_bad_descriptors = now.tx_invalid_descs};
}

std::uint32_t receive_queues(const net_interface& of) noexcept {
  const unique_fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd || of.name.size() >= IFNAMSIZ) return 1;
  ethtool_channels channels{};
  channels.cmd = ETHTOOL_GCHANNELS;
  ifreq request{};
  std::memcpy(request.ifr_name, of.name.data(), of.name.size());
  request.ifr_data = reinterpret_cast<char*>(&channels);
  if (::ioctl(fd.get(), SIOCETHTOOL, &request) != 0) return 1;
  return std::max(1u, channels.rx_count + channels.combined_count);
}

}  // namespace forebay
