// What a port over an interface of the machine counts beside what it receives: what it has sent,
// and what the interface dropped before the port could see it.
//
// Thread-safety: sent() and refused() belong to the thread that transmits; tell() to any.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "forebay/base/stats.h"
#include "forebay/net/port.h"
#include "forebay/os/net_interface.h"

namespace forebay {

class interface_traffic {
 public:
  // Counts from now on. `interface_index` as in net_interface.
  explicit interface_traffic(int interface_index) noexcept : index_(interface_index) {
    if (const auto now = read_counters(index_)) drops_before_ = now->rx_dropped;
  }

  void sent(std::uint64_t packets, std::uint64_t bytes) noexcept {
    add_to(packets_, packets);
    add_to(bytes_, bytes);
  }
  // A transmit() could not take all.
  void refused() noexcept { add_to(refused_); }

  // Puts it into `s`. So many of the interface's drops are `known`: the port counts them itself.
  void tell(port_statistics& s, std::uint64_t known = 0) const noexcept {
    if (const auto now = read_counters(index_)) {
      s.dropped_interface = now->rx_dropped - std::min(now->rx_dropped, drops_before_ + known);
    }
    s.transmitted = value_of(packets_);
    s.transmitted_bytes = value_of(bytes_);
    s.refused = value_of(refused_);
  }

 private:
  const int index_;
  std::uint64_t drops_before_ = 0;
  std::atomic<std::uint64_t> packets_{0};
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<std::uint64_t> refused_{0};
};

}  // namespace forebay
