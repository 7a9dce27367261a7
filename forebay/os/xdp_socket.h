// An AF_XDP socket (the kernel's Documentation/networking/af_xdp.rst): packets of one receive queue
// of an interface in memory of the program, past the kernel's stack.
//
//    memory (UMEM):  | chunk 0 | chunk 1 | chunk 2 | …        one packet each
//
//    empty chunks  ── fill ──>  kernel  ── rx ──>          received packets
//    packets       ── tx ──>    kernel  ── completion ──>  chunks that are free again
//
// A chunk that is named in the fill or tx ring is the kernel's until it comes back by rx or
// completion. (xdp_ring.h has the rings.) A received packet begins headroom() bytes behind the
// start of its chunk.
//
// What is received by it does not reach the machine's own stack: the interface is the program's, as
// far as this queue goes and the filter says, and the machine has it again when the socket goes.
//
// An interface with several receive queues spreads packets over them; each queue takes a socket of
// its own (open_beside()), over the same memory.
//
// Three ways, from the best to the one that is always there; open() takes the first that works, and
// remarks() says why the others do not:
//
//    native, zero copy   the device itself fills the chunks
//    native, copy        the driver's packet is copied into one, before the kernel makes its own
//    generic, copy       the kernel's packet is copied
//
// Thread-safety: fill and rx belong to one thread, which may be another than that of tx and
// completion. The rest is the former's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "forebay/os/fd.h"
#include "forebay/os/net_interface.h"
#include "forebay/os/xdp_program.h"
#include "forebay/os/xdp_ring.h"

namespace forebay {

enum class xdp_mode : std::uint8_t { native_zero_copy, native_copy, generic_copy };

// As in "native, zero copy".
const char* to_string(xdp_mode m) noexcept;

// An entry of the rx and tx rings (struct xdp_desc): bytes of the memory, from its start.
struct xdp_descriptor {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  std::uint32_t options = 0;
};

using xdp_fill_ring = basic_xdp_producer<std::uint64_t>;
using xdp_rx_ring = basic_xdp_consumer<xdp_descriptor>;
using xdp_tx_ring = basic_xdp_producer<xdp_descriptor>;
using xdp_completion_ring = basic_xdp_consumer<std::uint64_t>;

class xdp_socket {
 public:
  // The kernel has so much at the start of a chunk for itself and for programs that grow a packet
  // at its front (XDP_PACKET_HEADROOM).
  static constexpr std::uint32_t headroom_min = 256;

  struct options {
    std::span<std::byte> memory;       // whole pages; stays where it is as long as the socket
    std::uint32_t chunk_bytes = 2048;  // a power of two, 2048 or a page
    std::uint32_t headroom = headroom_min;
    std::uint32_t queue = 0;
    std::uint32_t queues = 1;           // from there on that open_beside() is to be called for
    std::uint32_t fill_entries = 2048;  // of the rings, powers of two
    std::uint32_t rx_entries = 2048;
    std::uint32_t tx_entries = 2048;
    std::uint32_t completion_entries = 2048;
    xdp_mode best = xdp_mode::native_zero_copy;  // what to begin with
    xdp_mode worst = xdp_mode::generic_copy;
    bool promiscuous = true;
    // Which packets are taken from the machine; none: all. See xdp_filter.h.
    std::span<const filter_instruction> filter = {};
  };

  // Since the socket was opened, in packets but where it says otherwise (struct xdp_statistics).
  struct counters {
    std::uint64_t rx_dropped = 0;  // copied: no chunk, or too long for one
    std::uint64_t rx_ring_full = 0;
    std::uint64_t rx_no_chunk = 0;       // times the fill ring was found empty
    std::uint64_t rx_bad_addresses = 0;  // entries of the fill ring that made no sense
    std::uint64_t tx_bad_descriptors = 0;
  };

  // Errors: EPERM without CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF; EBUSY or EEXIST if there is an
  // XDP program at the interface, or a socket at the queue; EINVAL for options that make no sense,
  // or a queue that is not there; ENOBUFS if so much memory may not be pinned (RLIMIT_MEMLOCK);
  // ENODEV; EAFNOSUPPORT if the kernel has no such sockets; EOPNOTSUPP if none of the modes works.
  static result<xdp_socket> open(const net_interface& on, const options& opts);

  // The same for another queue of the interface, with rings of its own, the same memory and mode,
  // and the program that `first`, which open() made, has attached: its filter and its promiscuity.
  static result<xdp_socket> open_beside(const xdp_socket& first, const net_interface& on,
                                        const options& opts);

  xdp_socket(xdp_socket&& other) noexcept = default;
  xdp_socket& operator=(xdp_socket&&) = delete;
  // The kernel leaves the memory alone from now on.
  ~xdp_socket();

  int fd() const noexcept { return fd_.get(); }
  xdp_mode mode() const noexcept { return mode_; }
  // Why it is not the best: a sentence each, without a full stop.
  std::span<const std::string> remarks() const noexcept { return remarks_; }
  std::uint32_t headroom() const noexcept { return headroom_; }

  xdp_fill_ring& fill() noexcept { return fill_; }
  xdp_rx_ring& rx() noexcept { return rx_; }
  xdp_tx_ring& tx() noexcept { return tx_; }
  xdp_completion_ring& completion() noexcept { return completion_; }

  // Whether the kernel does not look at the fill ring, or the tx ring, until it is told to. After
  // commit(); otherwise nobody needs to tell it.
  bool fill_needs_wakeup() const noexcept { return needs_wakeup(fill_flags_); }
  bool tx_needs_wakeup() const noexcept { return needs_wakeup(tx_flags_); }
  void wake_fill() noexcept;
  // In the copying modes the call does the work itself, for some of the entries: EAGAIN if there
  // are more, or the interface's queue is full; EBUSY, ENOBUFS if it dropped what it had taken.
  // Other errors: ENETDOWN, ENXIO.
  result<> wake_tx() noexcept;

  // Waits for a received packet, `also` (a descriptor that becomes readable, or -1) or the end of
  // the time; whichever it was. Wakes the kernel where needed. Error: of poll(2).
  result<> wait(int timeout_ms, int also = -1) const;

  // What has happened to the interface since the last call: ENETDOWN if it went away.
  std::error_code take_error() noexcept;

  counters statistics() const noexcept;

  // The queue's packets are the machine's from now on, but for those on their way.
  void stop_receiving() noexcept { program_->remove(queue_); }

 private:
  // A mapping of a ring that is unmapped at the end.
  class mapping {
   public:
    mapping() noexcept = default;
    mapping(std::byte* data, std::size_t bytes) noexcept : data_(data), bytes_(bytes) {}
    mapping(mapping&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
    mapping& operator=(mapping&& other) noexcept {
      std::swap(data_, other.data_);
      std::swap(bytes_, other.bytes_);
      return *this;
    }
    ~mapping();
    std::byte* data() const noexcept { return data_; }

   private:
    std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
  };
  using flags_word = const std::atomic<std::uint32_t>;

  xdp_socket() noexcept = default;

  static result<xdp_socket> open_as(const net_interface& on, const options& opts, xdp_mode mode);
  result<> make_rings(const options& opts);
  result<> bind(const net_interface& on, int flags, int sharing);
  result<> be_promiscuous(const net_interface& on);
  static bool needs_wakeup(flags_word* flags) noexcept;

  // They go from the last to the first: the program, then the socket, then the rings.
  std::vector<std::string> remarks_;
  std::vector<mapping> mappings_;
  unique_fd fd_;
  unique_fd promiscuous_;  // a packet socket that is a member of all groups, and receives nothing
  std::shared_ptr<xdp_program> program_;  // of all queues
  xdp_mode mode_ = xdp_mode::generic_copy;
  std::uint32_t queue_ = 0;
  std::uint32_t headroom_ = headroom_min;
  xdp_fill_ring fill_;
  xdp_rx_ring rx_;
  xdp_tx_ring tx_;
  xdp_completion_ring completion_;
  flags_word* fill_flags_ = nullptr;
  flags_word* tx_flags_ = nullptr;
};

// How many receive queues the interface has: who reads one of several does not see all packets.
// 1 where it does not say.
std::uint32_t receive_queues(const net_interface& of) noexcept;

}  // namespace forebay
