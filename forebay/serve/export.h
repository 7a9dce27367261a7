// An export: one image with its cache, and what is counted of its use.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>

#include "forebay/base/stats.h"
#include "forebay/block/request_queue.h"
#include "forebay/cache/address_space.h"
#include "forebay/serve/client_list.h"
#include "forebay/serve/nbd_protocol.h"
#include "forebay/serve/rate_limit.h"

namespace forebay {

// Counts of one command. Any thread.
struct command_statistics {
  counter requests;
  counter bytes;
  counter errors;
  histogram latency_ns;

  // One more has been answered: so many bytes of it, if it has not failed.
  void record(std::uint64_t done_bytes, bool failed, std::uint64_t took_ns) noexcept {
    requests.add();
    if (failed) {
      errors.add();
    } else {
      bytes.add(static_cast<std::int64_t>(done_bytes));
    }
    latency_ns.record(took_ns);
  }
};

// Counts of an export's clients over vhost-user, beside those of the commands. Any thread.
struct vhost_statistics {
  counter connections;       // that have been
  counter queues;            // that run now
  counter kicks;             // by a driver
  counter calls;             // of a driver
  counter messages_refused;  // malformed, or not understood
  counter chains_refused;    // of descriptors, or what they hold
  counter rings_broken;      // and not served any more
};

// Where the payload of requests is copied on its way through this program. What the kernel and
// GnuTLS copy among themselves is not seen here.
enum class payload_copy : std::uint8_t {
  write,  // of a receive buffer, or of what was put aside, into the cache's pages
  aside,  // of a receive buffer, put aside for a write that waits
  moved,  // within a receive buffer or to a larger one, with the headers that lie among it
  tls,    // into GnuTLS and out of it, with headers and what encryption adds
  guest,  // between the cache's pages and a guest's memory
};
inline constexpr std::size_t payload_copies = 5;

struct export_options {
  std::string name;
  std::string description;
  std::uint32_t min_block_bytes = 512;               // told to clients; power of two, 1 to 4096
  bool write_through = false;                        // a write is durable before it is acknowledged
  std::uint64_t readahead_bytes = 512u << 10;        // as in address_space::options
  std::optional<unsigned> warm_slot = std::nullopt;  // the same
};

class nbd_export {
 public:
  static constexpr std::size_t command_count = 8;

  nbd_export(std::unique_ptr<device> dev, page_cache& cache, export_options opts);

  const export_options& options() const noexcept { return options_; }
  const std::string& name() const noexcept { return options_.name; }
  address_space& space() noexcept { return *space_; }
  const address_space& space() const noexcept { return *space_; }
  device& dev() noexcept { return *device_; }
  // Between the cache and the device.
  const request_queue& queue() const noexcept { return *queue_; }
  std::uint64_t size_bytes() const noexcept { return space_->size_bytes(); }
  bool is_read_only() const noexcept { return device_->limits().read_only; }
  std::uint32_t preferred_block_bytes() const noexcept;
  // `structured`: the client has negotiated structured replies, which DF needs.
  std::uint16_t transmission_flags(bool structured) const noexcept;

  // Takes in what the image has become larger by, in whole blocks, whatever its clients are doing;
  // the value: whether it has. On a loop of the server. Errors, with no change: EALREADY while
  // another call is under way; EINVAL if the image is smaller than it is served; EFBIG; ENOMEM;
  // errno of looking at it.
  task<bool> grow();

  // Requests that are being worked on and were not answered at once. Any thread.
  counter& in_flight() noexcept { return in_flight_; }

  // Those that are served now.
  client_list& clients() noexcept { return clients_; }

  vhost_statistics& vhost() noexcept { return vhost_; }

  // What all of its clients together may ask for, whichever way they come. Any thread.
  rate_limit& rate() noexcept { return rate_; }

  // Bytes of payload that were copied there. Any thread.
  counter& copied(payload_copy where) noexcept { return copied_[static_cast<std::size_t>(where)]; }
  void count_copy(payload_copy where, std::size_t bytes) noexcept {
    copied(where).add(static_cast<std::int64_t>(bytes));
  }

  command_statistics& of(nbd::command c) noexcept { return commands_[static_cast<std::size_t>(c)]; }

 private:
  export_options options_;
  std::unique_ptr<device> device_;
  std::unique_ptr<request_queue> queue_;
  std::unique_ptr<address_space> space_;
  std::array<command_statistics, command_count> commands_;
  std::array<counter, payload_copies> copied_;
  counter in_flight_;
  client_list clients_;
  vhost_statistics vhost_;
  rate_limit rate_;
  std::atomic<bool> growing_{false};
};

}  // namespace forebay
