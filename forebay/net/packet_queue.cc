#include "forebay/net/packet_queue.h"

#include <array>
#include <new>

#include "forebay/base/stats.h"

namespace forebay {
namespace {

constexpr std::size_t burst_chunk = 64;

}  // namespace

result<std::unique_ptr<packet_queue>> packet_queue::create(const options& opts) noexcept {
  std::unique_ptr<packet_queue> made(new (std::nothrow) packet_queue(opts));
  if (made == nullptr) return fail(ENOMEM);
  auto r = ring::create({.capacity = opts.capacity,
                         .when_full = opts.when_full,
                         .limit = opts.limit,
                         .marks = opts.marks,
                         .observer = &made->observer_});
  if (!r) return fail(r.error());
  made->ring_ = std::move(*r);
  return made;
}

packet_queue::~packet_queue() {
  if (ring_ == nullptr) return;
  while (pop()) {
  }
}

void packet_queue::count_drop(std::size_t bytes) noexcept {
  add_to(packets_dropped_);
  add_to(bytes_dropped_, bytes);
}

result<> packet_queue::push(packet&& p, const wait_limit& limit) noexcept {
  if (!p) return fail(EINVAL);
  // Once it is in the ring it is somebody else's.
  const std::size_t bytes = p->length();
  const auto r = ring_->push(p.get(), limit);
  if (!r) {
    // Who has waited, or was told to, still has the packet and may try again.
    if (policy() != exhaustion_policy::block && policy() != exhaustion_policy::back_pressure) {
      count_drop(bytes);
    }
    return r;
  }
  static_cast<void>(p.release());
  add_to(packets_in_);
  add_to(bytes_in_, bytes);
  return {};
}

std::size_t packet_queue::push_burst(std::span<packet> packets, const wait_limit& limit) noexcept {
  std::size_t n = 0;
  while (n < packets.size() && push(std::move(packets[n]), limit)) ++n;
  return n;
}

packet packet_queue::pop() noexcept {
  packet p;
  static_cast<void>(pop_burst({&p, 1}));
  return p;
}

std::size_t packet_queue::pop_burst(std::span<packet> packets) noexcept {
  std::array<packet_buffer*, burst_chunk> items;
  std::size_t done = 0;
  while (done < packets.size()) {
    const std::size_t wanted = std::min(packets.size() - done, items.size());
    const std::size_t n = ring_->try_pop_some(std::span(items).first(wanted));
    for (std::size_t i = 0; i < n; ++i) packets[done++] = packet::adopt(*items[i]);
    if (n < wanted) break;
  }
  if (done != 0) add_to(packets_out_, done);
  return done;
}

packet_queue_statistics packet_queue::statistics() const noexcept {
  return {.packets_in = value_of(packets_in_),
          .bytes_in = value_of(bytes_in_),
          .packets_out = value_of(packets_out_),
          .packets_dropped = value_of(packets_dropped_),
          .bytes_dropped = value_of(bytes_dropped_),
          .length = size(),
          .capacity = capacity(),
          .policy = ring_->statistics()};
}

}  // namespace forebay
