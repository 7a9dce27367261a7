// The controller's side of a queue pair in shared memory: it finds the queues that a host has made,
// takes commands and completes them in any order. shared_queue.h says how the queues work.
//
// The host is another process and not trusted. The header is read once; a command is copied before
// it is looked at; an identifier is checked against a table of this side's own. What does not fit
// is the fault(): all calls but close() fail with it from then on. What a command's addresses are
// worth is for memory_of() to say, with an error for that command alone.
//
// One thread at a time.
#pragma once

#include <memory>

#include "forebay/base/assert.h"
#include "forebay/ring/descriptor_chain.h"
#include "forebay/ring/shared_queue.h"

namespace forebay {

struct taken_command {
  std::uint32_t id = 0;
  shared_command command;
};

template <AtomicsPolicy Atomics = real_atomics, typename Waiter = shared_futex>
class basic_shared_queue_controller {
  using layout = shared_queue_layout<Atomics>;

 public:
  // Errors: ring_errc::region_misaligned, region_too_small, bad_magic, bad_version, bad_kind,
  // too_few_entries, no_power_of_two, too_many_entries, bad_layout; ENOMEM.
  static result<basic_shared_queue_controller> attach(std::span<std::byte> region,
                                                      Waiter waiter = Waiter()) noexcept;

  // Takes up to out.size() commands, in their order; how many. Errors, once all before them have
  // been given out, and fault() from then on: ring_errc::position_jump, unknown_id, duplicate_id,
  // bad_flags, bad_length.
  result<std::size_t> take(std::span<taken_command> out) noexcept;

  // Ends a command that was taken: `status` is a count of bytes, at most its length, or a negative
  // errno value down to -4095. The host may see it at once; notify() wakes it. Errors, nothing is
  // completed then: EINVAL for an identifier that is not under way or such a status; EAGAIN if the
  // completion queue is full, which takes a host that uses more commands than it has room for;
  // ring_errc::position_jump, fault().
  result<> complete(std::uint32_t id, std::int32_t status) noexcept;

  // Wakes the host if it waits for what was completed.
  void notify() noexcept { side_.tell(completed_); }

  // Waits until there is a command to take. Errors: ETIMEDOUT; errc::end_of_stream if the host has
  // closed; ring_errc::peer_gone; fault().
  result<> wait(std::uint64_t timeout_ns) noexcept {
    return side_.wait(taken_, timeout_ns, [this]() noexcept {
      // relaxed: take() looks again.
      return seen_ != taken_ || side_.other().position.load(std::memory_order_relaxed) != taken_;
    });
  }

  // Nothing more will be completed.
  void close() noexcept { side_.close(); }

  // Taken and not completed.
  std::uint32_t in_flight() const noexcept { return in_flight_; }

  std::error_code fault() const noexcept { return side_.fault(); }
  const shared_side_statistics& statistics() const noexcept { return side_.statistics(); }

 private:
  struct flight {
    std::uint32_t id = 0;
    std::uint32_t length = 0;
    bool taken = false;
  };

  basic_shared_queue_controller(shared_side<Atomics, Waiter> side, std::span<std::byte> region,
                                const shared_ring_shape& shape,
                                std::unique_ptr<flight[]> flights) noexcept
      : side_(std::move(side)),
        submissions_(find_in<typename layout::submission>(region, layout::submissions_at)),
        completions_(
            find_in<typename layout::completion>(region, layout::completions_at(shape.entries))),
        submission_mask_(shape.entries - 1),
        completion_mask_(shape.entries2 - 1),
        taken_(shape.start),
        seen_(shape.start),
        completed_(shape.start),
        consumed_(shape.start),
        flights_(std::move(flights)) {}

  // Looks how far the host has published.
  result<> look() noexcept;
  result<> check(const taken_command& t) noexcept;

  shared_side<Atomics, Waiter> side_;
  submission_slot<Atomics>* submissions_;
  completion_slot<Atomics>* completions_;
  std::uint32_t submission_mask_;
  std::uint32_t completion_mask_;
  std::uint32_t taken_;      // submissions: the next one
  std::uint32_t seen_;       // up to here they are published
  std::uint32_t completed_;  // completions: the next one
  std::uint32_t consumed_;   // up to here the host has read them
  std::uint32_t in_flight_ = 0;
  std::unique_ptr<flight[]> flights_;  // by number, one for each entry of the completion queue
};

using shared_queue_controller = basic_shared_queue_controller<>;

// The memory that a command's buffer is, in pieces (see collect_chain): its own, or its chain's.
// Errors: those of collect_chain; ring_errc::bad_length if the chain has not command.length bytes;
// ring_errc::bad_order if it is to be written and is not writable throughout, or the other way
// round.
template <AddressTranslation Memory>
result<std::span<const std::span<std::byte>>> memory_of(
    const shared_command& command, const chain_limits& limits, const Memory& memory,
    std::span<std::span<std::byte>> storage) noexcept {
  using pieces = std::span<const std::span<std::byte>>;
  const bool write = (command.flags & command_write) != 0;
  const bool indirect = (command.flags & command_indirect) != 0;
  if (command.length == 0) return pieces();
  if (indirect && command.argument > shared_descriptor_table::size_max) {
    return fail(ring_errc::misaligned_table);
  }
  chain_limits own = limits;
  own.indirect = indirect;
  std::uint16_t flags = write ? descriptor_write : std::uint16_t{0};
  if (indirect) flags = descriptor_indirect;
  const auto bytes = static_cast<std::uint32_t>(sizeof(descriptor));
  const descriptor only{.address = command.address,
                        .length = indirect ? command.argument * bytes : command.length,
                        .flags = flags,
                        .next = 0};
  const auto chain = collect_chain(descriptor_list({&only, 1}), 0, own, memory, storage);
  if (!chain) return fail(chain.error());
  if (chain->readable_bytes + chain->writable_bytes != command.length) {
    return fail(ring_errc::bad_length);
  }
  if ((write ? chain->readable_bytes : chain->writable_bytes) != 0) {
    return fail(ring_errc::bad_order);
  }
  return write ? chain->writable : chain->readable;
}

// ---- Implementation ----

template <AtomicsPolicy Atomics, typename Waiter>
auto basic_shared_queue_controller<Atomics, Waiter>::attach(std::span<std::byte> region,
                                                            Waiter waiter) noexcept
    -> result<basic_shared_queue_controller> {
  const auto shape = read_shape<Atomics>(region, shared_ring_kind::queue_pair);
  if (!shape) return fail(shape.error());
  if (auto r = check_entries(shape->entries2); !r) return fail(r.error());
  if (shape->bytes != layout::bytes(shape->entries, shape->entries2)) {
    return fail(ring_errc::bad_layout);
  }
  std::unique_ptr<flight[]> flights(new (std::nothrow) flight[shape->entries2]);
  if (flights == nullptr) return fail(ENOMEM);
  auto& host = *find_in<typename layout::side>(region, layout::host_at);
  auto& controller = *find_in<typename layout::side>(region, layout::controller_at);
  return basic_shared_queue_controller({controller, host, shape->start, std::move(waiter)}, region,
                                       *shape, std::move(flights));
}

template <AtomicsPolicy Atomics, typename Waiter>
result<> basic_shared_queue_controller<Atomics, Waiter>::look() noexcept {
  // acquire: the commands before the position are as the host wrote them.
  const std::uint32_t position = side_.other().position.load(std::memory_order_acquire);
  if (position - taken_ > submission_mask_ + 1) return side_.set_fault(ring_errc::position_jump);
  seen_ = position;
  return {};
}

template <AtomicsPolicy Atomics, typename Waiter>
result<> basic_shared_queue_controller<Atomics, Waiter>::check(const taken_command& t) noexcept {
  constexpr std::uint16_t known = command_write | command_indirect | command_user_bits;
  const std::uint32_t number = t.id & 0xffff;
  if (number > completion_mask_) return side_.set_fault(ring_errc::unknown_id);
  if (flights_[number].taken) return side_.set_fault(ring_errc::duplicate_id);
  if ((t.command.flags & ~known) != 0) return side_.set_fault(ring_errc::bad_flags);
  if (t.command.length > shared_command_bytes_max) return side_.set_fault(ring_errc::bad_length);
  return {};
}

template <AtomicsPolicy Atomics, typename Waiter>
result<std::size_t> basic_shared_queue_controller<Atomics, Waiter>::take(
    std::span<taken_command> out) noexcept {
  if (side_.fault()) return fail(side_.fault());
  if (taken_ == seen_) {
    if (auto r = look(); !r) return fail(r.error());
  }
  std::size_t n = 0;
  for (; n < out.size() && taken_ != seen_; ++n, ++taken_) {
    taken_command& t = out[n];
    t.command = submissions_[taken_ & submission_mask_].read(t.id);
    if (auto r = check(t); !r) return n == 0 ? result<std::size_t>(fail(r.error())) : n;
    flights_[t.id & 0xffff] = {.id = t.id, .length = t.command.length, .taken = true};
    ++in_flight_;
  }
  return n;
}

template <AtomicsPolicy Atomics, typename Waiter>
result<> basic_shared_queue_controller<Atomics, Waiter>::complete(std::uint32_t id,
                                                                  std::int32_t status) noexcept {
  if (side_.fault()) return fail(side_.fault());
  const std::uint32_t number = id & 0xffff;
  if (number > completion_mask_) return fail(EINVAL);
  flight& f = flights_[number];
  if (!f.taken || f.id != id) return fail(EINVAL);
  if (status < -std::int32_t{completion_state::error_max}) return fail(EINVAL);
  if (status > 0 && static_cast<std::uint32_t>(status) > f.length) return fail(EINVAL);
  if (completed_ - consumed_ > completion_mask_) {
    // relaxed: the command that needs the entry was published after the host had read it, and
    // look() has seen that; a host that does not keep to this reads what it deserves.
    const std::uint32_t consumed = side_.other().consumed.load(std::memory_order_relaxed);
    if (consumed - consumed_ > completed_ - consumed_) {
      return side_.set_fault(ring_errc::position_jump);
    }
    if (completed_ - consumed > completion_mask_) return fail(EAGAIN);
    consumed_ = consumed;
  }
  completion_slot<Atomics>& slot = completions_[completed_ & completion_mask_];
  const std::uint32_t count = status < 0 ? 0 : static_cast<std::uint32_t>(status);
  const auto error = static_cast<std::uint16_t>(status < 0 ? -status : 0);
  // relaxed: the phase bit orders it.
  slot.what.store(id | std::uint64_t{count} << 32, std::memory_order_relaxed);
  // release: who sees the phase bit sees the entry, and the data that this thread has written.
  slot.state.store(
      completion_state::pack(taken_, error, phase_of(completed_, completion_mask_ + 1)),
      std::memory_order_release);
  ++completed_;
  f.taken = false;
  --in_flight_;
  return {};
}

}  // namespace forebay
