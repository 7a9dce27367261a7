// An export: one image with its cache, and what is counted of its use.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>

#include "forebay/base/stats.h"
#include "forebay/block/request_queue.h"
#include "forebay/cache/address_space.h"
#include "forebay/serve/nbd_protocol.h"

namespace forebay {

// Counts of one command. Any thread.
struct command_statistics {
  counter requests;
  counter bytes;
  counter errors;
  histogram latency_ns;
};

struct export_options {
  std::string name;
  std::string description;
  std::uint32_t min_block_bytes = 512;         // told to clients; power of two, 1 to 4096
  bool write_through = false;                  // a write is durable before it is acknowledged
  std::uint64_t readahead_bytes = 512u << 10;  // as in address_space::options
};

class nbd_export {
 public:
  static constexpr std::size_t command_count = 8;

  nbd_export(std::unique_ptr<device> dev, page_cache& cache, export_options opts);

  const export_options& options() const noexcept { return options_; }
  const std::string& name() const noexcept { return options_.name; }
  address_space& space() noexcept { return *space_; }
  device& dev() noexcept { return *device_; }
  // Between the cache and the device.
  const request_queue& queue() const noexcept { return *queue_; }
  std::uint64_t size_bytes() const noexcept { return space_->size_bytes(); }
  bool is_read_only() const noexcept { return device_->limits().read_only; }
  std::uint32_t preferred_block_bytes() const noexcept;
  // `structured`: the client has negotiated structured replies, which DF needs.
  std::uint16_t transmission_flags(bool structured) const noexcept;

  // Requests that are being worked on and were not answered at once. Any thread.
  counter& in_flight() noexcept { return in_flight_; }

  command_statistics& of(nbd::command c) noexcept { return commands_[static_cast<std::size_t>(c)]; }

 private:
  export_options options_;
  std::unique_ptr<device> device_;
  std::unique_ptr<request_queue> queue_;
  std::unique_ptr<address_space> space_;
  std::array<command_statistics, command_count> commands_;
  counter in_flight_;
};

}  // namespace forebay
