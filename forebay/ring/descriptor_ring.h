// A ring of descriptors between a driver and a device, as network adapters have it, in memory that
// two processes share.
//
//                    reaped_        posted_ (published as `position`, the doorbell)
//                       │              │
//      ┌───────┬───────┬▼──────┬───────▼───────┐
//      │ free  │ free  │ done  │ posted│ free  │     driver: post … ring_doorbell … reap
//      └───────┴───────┴───────┴▲──────┴───────┘     device: take … complete … notify
//                               │
//                          completed_, taken_ of the device
//
// The driver fills free slots from its head on and publishes them all by moving `position`. The
// device takes them in order and, in the same order, writes a status in place: done, length, error.
// A chain is slots behind each other, all but the last with descriptor_next; it is published whole,
// and its status is in its last slot. A chain has an identifier, which the driver gets back and the
// device may look at.
//
// Order: slots before the doorbell (release, acquire on the device's side), the device's data
// before the done bit (release, acquire on the driver's side).
//
// The peer is not trusted, by either side. The driver keeps what it posted in memory of its own and
// never reads a descriptor back; of a status it believes nothing that does not fit. The device
// checks the doorbell and the links; what the addresses are worth, collect_chain() says
// (descriptor_chain.h).
//
// Full: post() gives EAGAIN, and reaping makes room. Empty: wait() sleeps, with a timeout, and ends
// when the peer closes or is gone. A driver, and a device, belongs to one thread at a time.
#pragma once

#include <memory>

#include "forebay/base/assert.h"
#include "forebay/ring/descriptor.h"
#include "forebay/ring/shared_region.h"

namespace forebay {

// How a chain ended.
struct ended_chain {
  std::uint64_t id = 0;      // as posted
  std::uint32_t length = 0;  // bytes that the device has written, or read
  std::uint16_t error = 0;   // an errno value, or 0
};

// What a slot says when the device has ended it, in one word: | done:1 | 0:15 | error:16 | length |
struct descriptor_status {
  static constexpr std::uint64_t done = std::uint64_t{1} << 63;
  static constexpr std::uint64_t unused = std::uint64_t{0x7fff} << 48;
  static constexpr std::uint16_t error_max = 4095;  // as the kernel's MAX_ERRNO

  static constexpr std::uint64_t pack(std::uint32_t length, std::uint16_t error) noexcept {
    return done | std::uint64_t{error} << 32 | length;
  }
};

template <AtomicsPolicy Atomics>
struct descriptor_slot {
  using word = typename Atomics::template atomic<std::uint64_t>;
  word address{0};
  word shape{0};  // descriptor_words
  word id{0};
  word status{0};
};

// Where things lie in the region of a ring.
template <AtomicsPolicy Atomics>
struct descriptor_ring_layout {
  using header = shared_ring_header<Atomics>;
  using side = shared_side_words<Atomics>;
  using slot = descriptor_slot<Atomics>;
  static constexpr std::size_t driver_at = sizeof(header);
  static constexpr std::size_t device_at = driver_at + sizeof(side);
  static constexpr std::size_t slots_at = device_at + sizeof(side);
  static constexpr std::size_t bytes(std::uint32_t entries) noexcept {
    return slots_at + entries * sizeof(slot);
  }
};

// The side that posts; it makes the ring.
template <AtomicsPolicy Atomics = real_atomics, typename Waiter = shared_futex>
class basic_descriptor_driver {
  using layout = descriptor_ring_layout<Atomics>;

 public:
  struct options {
    std::uint32_t entries = 256;  // a power of two, at most shared_ring_entries_max
    std::uint32_t start = 0;      // the first position
  };

  // Bytes of region that so many entries take; no check.
  static constexpr std::size_t region_bytes(std::uint32_t entries) noexcept {
    return layout::bytes(entries);
  }

  // Makes a ring in `region`, which must outlive both sides. Errors, the region is untouched then:
  // ring_errc::too_few_entries, no_power_of_two, too_many_entries, region_too_small,
  // region_misaligned; ENOMEM.
  static result<basic_descriptor_driver> create(std::span<std::byte> region, const options& wanted,
                                                Waiter waiter = Waiter()) noexcept {
    if (auto r = check_entries(wanted.entries); !r) return fail(r.error());
    const std::size_t bytes = layout::bytes(wanted.entries);
    if (auto r = check_region(region, bytes); !r) return fail(r.error());
    std::unique_ptr<posted[]> own(new (std::nothrow) posted[wanted.entries]);
    if (own == nullptr) return fail(ENOMEM);
    auto& header = *make_in<typename layout::header>(region, 0);
    auto& driver = *make_in<typename layout::side>(region, layout::driver_at);
    auto& device = *make_in<typename layout::side>(region, layout::device_at);
    auto* slots = make_in<typename layout::slot>(region, layout::slots_at, wanted.entries);
    begin_side(driver, wanted.start);
    begin_side(device, wanted.start);
    write_shape(header, {.kind = shared_ring_kind::descriptor_ring,
                         .entries = wanted.entries,
                         .entries2 = 0,
                         .start = wanted.start,
                         .bytes = bytes});
    return basic_descriptor_driver({driver, device, wanted.start, std::move(waiter)}, slots, wanted,
                                   std::move(own));
  }

  std::uint32_t entries() const noexcept { return mask_ + 1; }
  // Slots that can be posted now.
  std::uint32_t room() const noexcept { return entries() - (posted_ - reaped_); }
  // Slots that are posted and not reaped.
  std::uint32_t in_flight() const noexcept { return posted_ - reaped_; }

  // Puts a chain into the ring; it is published with the next ring_doorbell(). Of the flags only
  // descriptor_write counts. Errors, nothing is posted then: EAGAIN if there is no room for it now,
  // ring_errc::chain_too_long if there never is, ring_errc::bad_length for no descriptor, one
  // without bytes, or 4 GiB and more together, ring_errc::bad_order, fault().
  result<> post(std::span<const descriptor> chain, std::uint64_t id) noexcept;
  result<> post(const descriptor& d, std::uint64_t id) noexcept { return post({&d, 1}, id); }

  // Publishes what was posted, and wakes the device if it waits for it. Nothing after a fault().
  void ring_doorbell() noexcept {
    if (side_.fault()) return;
    // release: who sees the position sees the slots before it.
    side_.own().position.store(posted_, std::memory_order_release);
    published_ = posted_;
    side_.tell(posted_);
  }

  // Chains that have ended, the oldest first, at most out.size(). One that is not published has not
  // ended, whatever its status says. Error: fault(), once all before it have been given out.
  result<std::size_t> reap(std::span<ended_chain> out) noexcept;

  // Waits until a chain has ended. Errors: ETIMEDOUT; errc::end_of_stream if the device has closed;
  // ring_errc::peer_gone; fault(); ENODATA if nothing is published that could end.
  result<> wait(std::uint64_t timeout_ns) noexcept {
    if (published_ == reaped_) return fail(side_.fault() ? side_.fault() : errno_code(ENODATA));
    return side_.wait(last_of_oldest(), timeout_ns, [this]() noexcept {
      // relaxed: reap() looks again.
      return (slots_[last_of_oldest() & mask_].status.load(std::memory_order_relaxed) &
              descriptor_status::done) != 0;
    });
  }

  // Nothing more will be posted. What is in the ring may still end.
  void close() noexcept { side_.close(); }

  std::error_code fault() const noexcept { return side_.fault(); }
  const shared_side_statistics& statistics() const noexcept { return side_.statistics(); }

 private:
  // A chain under way, kept with its first slot.
  struct posted {
    std::uint64_t id = 0;
    std::uint32_t bytes_max = 0;  // that the device may say it has done
    std::uint32_t slots = 0;
  };

  basic_descriptor_driver(shared_side<Atomics, Waiter> side, descriptor_slot<Atomics>* slots,
                          const options& o, std::unique_ptr<posted[]> own) noexcept
      : side_(std::move(side)),
        slots_(slots),
        chains_(std::move(own)),
        mask_(o.entries - 1),
        posted_(o.start),
        published_(o.start),
        reaped_(o.start) {}

  static std::error_code errno_code(int e) noexcept { return {e, std::generic_category()}; }
  std::uint32_t last_of_oldest() const noexcept {
    return reaped_ + chains_[reaped_ & mask_].slots - 1;
  }
  static result<std::uint32_t> check(std::span<const descriptor> chain) noexcept;

  shared_side<Atomics, Waiter> side_;
  descriptor_slot<Atomics>* slots_;
  std::unique_ptr<posted[]> chains_;
  std::uint32_t mask_;
  std::uint32_t posted_;
  std::uint32_t published_;  // up to here the device knows
  std::uint32_t reaped_;
};

// The side that works; it finds the ring that the driver has made.
template <AtomicsPolicy Atomics = real_atomics, typename Waiter = shared_futex>
class basic_descriptor_device {
  using layout = descriptor_ring_layout<Atomics>;

 public:
  // Errors: ring_errc::region_misaligned, region_too_small, bad_magic, bad_version, bad_kind,
  // too_few_entries, no_power_of_two, too_many_entries, bad_layout; ENOMEM.
  static result<basic_descriptor_device> attach(std::span<std::byte> region,
                                                Waiter waiter = Waiter()) noexcept {
    const auto shape = read_shape<Atomics>(region, shared_ring_kind::descriptor_ring);
    if (!shape) return fail(shape.error());
    if (shape->bytes != layout::bytes(shape->entries)) return fail(ring_errc::bad_layout);
    std::unique_ptr<std::uint32_t[]> ends(new (std::nothrow) std::uint32_t[shape->entries]);
    if (ends == nullptr) return fail(ENOMEM);
    auto& driver = *find_in<typename layout::side>(region, layout::driver_at);
    auto& device = *find_in<typename layout::side>(region, layout::device_at);
    auto* slots = find_in<typename layout::slot>(region, layout::slots_at);
    return basic_descriptor_device({device, driver, shape->start, std::move(waiter)}, slots, *shape,
                                   std::move(ends));
  }

  struct taken_chain {
    std::uint64_t id = 0;
    std::span<const descriptor> descriptors;  // empty: there is none for now
  };

  std::uint32_t entries() const noexcept { return mask_ + 1; }

  // Copies the next chain to `storage`, whose size is the limit of its length; the links in the
  // copy are numbers in it, so that a descriptor_list of it is the chain's table. Errors:
  // ring_errc::position_jump, chain_too_long, chain_cut, bad_flags: the fault() from then on.
  result<taken_chain> take(std::span<descriptor> storage) noexcept;

  // Ends the oldest chain that was taken and not completed: `length` bytes done, or an errno value
  // up to 4095. The driver may see it at once; notify() wakes it. Error: EINVAL if there is none or
  // the error is none.
  result<> complete(std::uint32_t length, std::uint16_t error = 0) noexcept;

  // Wakes the driver if it waits for what was completed.
  void notify() noexcept { side_.tell(completed_); }

  // Waits until there is a chain to take. Errors: ETIMEDOUT; errc::end_of_stream if the driver has
  // closed; ring_errc::peer_gone; fault().
  result<> wait(std::uint64_t timeout_ns) noexcept {
    return side_.wait(taken_, timeout_ns, [this]() noexcept {
      // relaxed: take() looks again.
      return seen_ != taken_ || side_.other().position.load(std::memory_order_relaxed) != taken_;
    });
  }

  // Nothing more will be completed.
  void close() noexcept { side_.close(); }

  std::error_code fault() const noexcept { return side_.fault(); }
  const shared_side_statistics& statistics() const noexcept { return side_.statistics(); }

 private:
  basic_descriptor_device(shared_side<Atomics, Waiter> side, descriptor_slot<Atomics>* slots,
                          const shared_ring_shape& shape,
                          std::unique_ptr<std::uint32_t[]> ends) noexcept
      : side_(std::move(side)),
        slots_(slots),
        ends_(std::move(ends)),
        mask_(shape.entries - 1),
        taken_(shape.start),
        completed_(shape.start),
        seen_(shape.start) {}

  shared_side<Atomics, Waiter> side_;
  descriptor_slot<Atomics>* slots_;
  std::unique_ptr<std::uint32_t[]> ends_;  // of a taken chain, with its first slot: behind its last
  std::uint32_t mask_;
  std::uint32_t taken_;
  std::uint32_t completed_;
  std::uint32_t seen_;  // the last position of the driver's that was checked
};

using descriptor_driver = basic_descriptor_driver<>;
using descriptor_device = basic_descriptor_device<>;

// ---- Implementation ----

template <AtomicsPolicy Atomics, typename Waiter>
result<std::uint32_t> basic_descriptor_driver<Atomics, Waiter>::check(
    std::span<const descriptor> chain) noexcept {
  std::uint64_t readable = 0;
  std::uint64_t writable = 0;
  for (const descriptor& d : chain) {
    const bool write = (d.flags & descriptor_write) != 0;
    if (d.length == 0) return fail(ring_errc::bad_length);
    if (!write && writable != 0) return fail(ring_errc::bad_order);
    (write ? writable : readable) += d.length;
  }
  if (readable + writable == 0 || readable + writable > UINT32_MAX) {
    return fail(ring_errc::bad_length);
  }
  // A device that writes says how much it has written.
  return static_cast<std::uint32_t>(writable != 0 ? writable : readable);
}

template <AtomicsPolicy Atomics, typename Waiter>
result<> basic_descriptor_driver<Atomics, Waiter>::post(std::span<const descriptor> chain,
                                                        std::uint64_t id) noexcept {
  if (side_.fault()) return fail(side_.fault());
  if (chain.size() > entries()) return fail(ring_errc::chain_too_long);
  const auto bytes_max = check(chain);
  if (!bytes_max) return fail(bytes_max.error());
  if (chain.size() > room()) return fail(EAGAIN);
  const auto count = static_cast<std::uint32_t>(chain.size());
  chains_[posted_ & mask_] = {.id = id, .bytes_max = *bytes_max, .slots = count};
  for (std::uint32_t i = 0; i < count; ++i) {
    descriptor d = chain[i];
    d.flags = static_cast<std::uint16_t>((d.flags & descriptor_write) |
                                         (i + 1 < count ? descriptor_next : 0));
    d.next = 0;
    const descriptor_words words = descriptor_words::pack(d);
    descriptor_slot<Atomics>& slot = slots_[posted_ & mask_];
    // relaxed, all: the position publishes them, and the device's status of the round before, which
    // reap() has seen, is before them.
    slot.status.store(0, std::memory_order_relaxed);
    slot.address.store(words.address, std::memory_order_relaxed);
    slot.shape.store(words.shape, std::memory_order_relaxed);  // relaxed: see above
    slot.id.store(id, std::memory_order_relaxed);              // relaxed: see above
    ++posted_;
  }
  return {};
}

template <AtomicsPolicy Atomics, typename Waiter>
result<std::size_t> basic_descriptor_driver<Atomics, Waiter>::reap(
    std::span<ended_chain> out) noexcept {
  std::size_t n = 0;
  while (!side_.fault() && n < out.size() && reaped_ != published_) {
    const posted& chain = chains_[reaped_ & mask_];
    // acquire: the status, in this word, and the device's data are before its done bit.
    const std::uint64_t status =
        slots_[last_of_oldest() & mask_].status.load(std::memory_order_acquire);
    if ((status & descriptor_status::done) == 0) break;
    const auto length = static_cast<std::uint32_t>(status);
    const auto error = static_cast<std::uint16_t>(status >> 32);
    if ((status & descriptor_status::unused) != 0 || error > descriptor_status::error_max) {
      side_.set_fault(ring_errc::bad_status);
    } else if (length > chain.bytes_max) {
      side_.set_fault(ring_errc::bad_length);
    } else {
      out[n++] = {.id = chain.id, .length = length, .error = error};
      reaped_ += chain.slots;
    }
  }
  if (n == 0 && side_.fault()) return fail(side_.fault());
  return n;
}

template <AtomicsPolicy Atomics, typename Waiter>
auto basic_descriptor_device<Atomics, Waiter>::take(std::span<descriptor> storage) noexcept
    -> result<taken_chain> {
  if (side_.fault()) return fail(side_.fault());
  if (taken_ == seen_) {
    // acquire: the slots before the position are as the driver wrote them.
    const std::uint32_t position = side_.other().position.load(std::memory_order_acquire);
    // What is in the ring and not completed cannot be more than the ring.
    if (position - completed_ > entries() || position - completed_ < taken_ - completed_) {
      return side_.set_fault(ring_errc::position_jump);
    }
    seen_ = position;
    if (taken_ == seen_) return taken_chain{};
  }
  taken_chain chain;
  for (std::uint32_t n = 0;; ++n) {
    if (n == seen_ - taken_) return side_.set_fault(ring_errc::chain_cut);
    if (n == storage.size()) return side_.set_fault(ring_errc::chain_too_long);
    const descriptor_slot<Atomics>& slot = slots_[(taken_ + n) & mask_];
    // relaxed: the position orders them.
    descriptor d = descriptor_words{slot.address.load(std::memory_order_relaxed),
                                    slot.shape.load(std::memory_order_relaxed)}  // relaxed: too
                       .unpack();
    if ((d.flags & ~(descriptor_next | descriptor_write)) != 0) {
      return side_.set_fault(ring_errc::bad_flags);
    }
    d.next = static_cast<std::uint16_t>(n + 1);
    storage[n] = d;
    if ((d.flags & descriptor_next) != 0) continue;
    chain.id = slot.id.load(std::memory_order_relaxed);  // relaxed: the position orders it
    chain.descriptors = storage.first(n + 1);
    ends_[taken_ & mask_] = taken_ + n + 1;
    taken_ += n + 1;
    return chain;
  }
}

template <AtomicsPolicy Atomics, typename Waiter>
result<> basic_descriptor_device<Atomics, Waiter>::complete(std::uint32_t length,
                                                            std::uint16_t error) noexcept {
  if (side_.fault()) return fail(side_.fault());
  if (completed_ == taken_ || error > descriptor_status::error_max) return fail(EINVAL);
  const std::uint32_t end = ends_[completed_ & mask_];
  // release: who sees the done bit sees the data that this thread has written.
  slots_[(end - 1) & mask_].status.store(descriptor_status::pack(length, error),
                                         std::memory_order_release);
  completed_ = end;
  return {};
}

}  // namespace forebay
