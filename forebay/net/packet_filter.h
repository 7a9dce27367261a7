// Packet filters in the language of tcpdump (pcap-filter(7)), compiled by libpcap.
//
// Thread-safety: compiling is any thread's, one at a time for the process (libpcap's parser is not
// reentrant everywhere); a compiled filter is a value.
#pragma once

#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <vector>

#include "forebay/net/pcapng.h"
#include "forebay/os/packet_socket.h"

namespace forebay {

class packet_filter {
 public:
  packet_filter() = default;  // takes every packet

  // For the packets of an interface, as the kernel gives them to the filter of a socket: with VLAN
  // tags taken out. Error: libpcap's message about what is wrong, one line.
  static std::expected<packet_filter, std::string> for_interface(const std::string& text,
                                                                 const std::string& interface,
                                                                 std::uint32_t snap_bytes);
  // For packets as they were on the wire. The same error.
  static std::expected<packet_filter, std::string> for_packets(const std::string& text,
                                                               pcapng::link_type link,
                                                               std::uint32_t snap_bytes);

  // For the kernel. Empty: every packet.
  std::span<const filter_instruction> program() const noexcept { return program_; }

  // Whether a packet passes, of which `data` is there. Of for_packets().
  bool matches(std::span<const std::byte> data, std::uint32_t wire_bytes) const noexcept;

 private:
  std::vector<filter_instruction> program_;
};

}  // namespace forebay
