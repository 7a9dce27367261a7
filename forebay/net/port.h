// Port: where packets come in and go out; an interface of the machine, a file, a simulated device.
//
//    receive(burst) <── port <── wire
//    transmit(burst) ──> port ──> wire
//
// A packet that is received belongs to the caller, who gives its memory back to the port, or to the
// pool it came from, by releasing it, whenever and on whatever thread; a port whose memory is all
// out drops what comes, and counts it. A packet that is transmitted belongs to the port from then
// on.
//
// Thread-safety: one thread receives, one transmits, which may be two where the port says so; the
// rest belongs to the thread that receives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "forebay/base/result.h"
#include "forebay/net/packet_buffer.h"
#include "forebay/net/pcapng.h"

namespace forebay {

// Counted from when the port was opened, in packets unless it says bytes.
//
//    received = handed out by receive() + dropped_full + dropped_memory + dropped_malformed
//               + those that are in the port's memory still
struct port_statistics {
  std::uint64_t received = 0;  // came to the port, through its filter
  std::uint64_t delivered = 0;
  std::uint64_t delivered_bytes = 0;
  std::uint64_t dropped_full = 0;       // by the kernel or the device: the port's ring was full
  std::uint64_t dropped_memory = 0;     // by the port: there was no descriptor or buffer
  std::uint64_t dropped_malformed = 0;  // by the port: longer than any packet, or contradictory
  std::uint64_t dropped_interface = 0;  // before they came to the port; no part of received
  std::uint64_t transmitted = 0;
  std::uint64_t transmitted_bytes = 0;
  std::uint64_t refused = 0;  // times that transmit() could not take all
};

enum class link_state : std::uint8_t {
  up,
  down,  // may come up again
  gone,  // there is nothing behind the port any more: an interface was removed, a file has ended
};

class port {
 public:
  port() noexcept = default;
  port(const port&) = delete;
  port& operator=(const port&) = delete;
  virtual ~port() = default;

  // What it is called, and what its packets begin with.
  virtual const std::string& name() const noexcept = 0;
  virtual pcapng::link_type link() const noexcept = 0;

  // Fills `out` from the front with packets that are there now, and returns how many. Their
  // handles were empty before.
  virtual std::size_t receive(std::span<packet> out) noexcept = 0;

  // Takes packets from the front, as many as go now, and returns how many; their handles are empty
  // afterwards. Error, if the first does not go: ENOTSUP, ENETDOWN, EMSGSIZE, EIO.
  virtual result<std::size_t> transmit(std::span<packet> packets) noexcept = 0;

  // Waits until receive() may have something, `also` (a descriptor, or -1) is readable, or so many
  // milliseconds have passed. Error: of poll(2).
  virtual result<> wait(int timeout_ms, int also = -1) noexcept = 0;

  virtual link_state state() noexcept = 0;

  // Nothing more is received but what the port has already; drained() once receive() has given out
  // all of that.
  virtual void stop() noexcept = 0;
  virtual bool drained() noexcept = 0;

  virtual port_statistics statistics() noexcept = 0;
};

}  // namespace forebay
