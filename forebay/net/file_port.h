// A port on capture files: what one file has is received, what is transmitted goes into another.
//
// Received packets are copies in buffers of a pool; the bytes of a file are not as long-lived as
// packets may be. While the pool has no buffer nothing is lost: the file waits.
//
// Thread-safety: as port.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "forebay/net/capture_reader.h"
#include "forebay/net/packet_filter.h"
#include "forebay/net/packet_pool.h"
#include "forebay/net/port.h"
#include "forebay/os/stream_file.h"

namespace forebay {

class file_port final : public port {
 public:
  // Packets of `from`, none if that is empty, that `filter` lets pass; those that are sent go to
  // `to`, a pcapng file that is made anew, or nowhere if that is empty. Errors: those of
  // capture_reader and stream_file; ENOTSUP for a file whose first packet is of a link type that
  // nobody knows here.
  static result<std::unique_ptr<file_port>> open(const std::string& from, const std::string& to,
                                                 packet_pool& pool);
  // What follows is let pass only if it matches.
  void set_filter(packet_filter filter) noexcept { filter_ = std::move(filter); }

  const std::string& name() const noexcept override { return name_; }
  pcapng::link_type link() const noexcept override { return link_; }
  std::size_t receive(std::span<packet> out) noexcept override;
  result<std::size_t> transmit(std::span<packet> packets) noexcept override;
  result<> wait(int timeout_ms, int also = -1) noexcept override;
  link_state state() noexcept override;
  void stop() noexcept override { ended_ = true; }
  bool drained() noexcept override { return ended_; }
  port_statistics statistics() noexcept override;

  // What the file was like, and why it ended, if it was not at its end.
  capture_reader::counters seen() const noexcept;
  std::error_code read_error() const noexcept { return error_; }

 private:
  file_port(std::string name, packet_pool& pool) noexcept : name_(std::move(name)), pool_(pool) {}

  bool look() noexcept;
  bool copy_next(packet& out) noexcept;

  const std::string name_;
  packet_pool& pool_;
  packet_filter filter_;
  std::optional<capture_reader> in_;
  std::optional<stream_file> out_;
  std::vector<std::byte> encoded_;
  pcapng::link_type link_ = pcapng::link_type::ethernet;
  capture_reader::record next_;  // read and not given out yet, if has_next_
  bool has_next_ = false;
  bool ended_ = true;
  std::error_code error_;
  std::uint64_t out_bytes_ = 0;
  port_statistics counted_;
};

}  // namespace forebay
