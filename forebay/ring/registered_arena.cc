#include "forebay/ring/registered_arena.h"

#include <algorithm>
#include <bit>
#include <new>

namespace forebay {
namespace {

constexpr std::uint32_t word_bits = 64;

std::uint32_t words_for(std::uint32_t chunks) noexcept {
  return (chunks + word_bits - 1) / word_bits;
}

// Takes the bits that are set and calls `act` for each.
template <typename Act>
void take_each(std::atomic<std::uint64_t>& word, std::uint32_t first, Act act) noexcept {
  // relaxed: an empty word is left alone; what is set later comes with a post of its own.
  if (word.load(std::memory_order_relaxed) == 0) return;
  // acquire: pairs with note().
  for (std::uint64_t left = word.exchange(0, std::memory_order_acquire); left != 0;
       left &= left - 1) {
    act(first + static_cast<std::uint32_t>(std::countr_zero(left)));
  }
}

}  // namespace

registered_arena::registered_arena(loop& on, arena& memory, std::uint32_t chunks, bits forget,
                                   bits remember) noexcept
    : loop_(on),
      memory_(memory),
      chunks_(chunks),
      to_forget_(std::move(forget)),
      to_remember_(std::move(remember)) {
  work_.self = this;
  work_.run = [](completion& c) noexcept {
    registered_arena& self = *static_cast<work&>(c).self;
    // acq_rel: a bit set before its post was left out is seen by the look that follows.
    self.posted_.exchange(false, std::memory_order_acq_rel);
    self.do_what_was_asked();
  };
}

registered_arena::~registered_arena() { FOREBAY_ASSERT(closed_); }

result<std::unique_ptr<registered_arena>> registered_arena::create(loop& on, arena& memory) {
  const std::uint32_t chunks =
      std::min(memory.chunk_count(), uring_queue_pair::max_registered_chunks);
  bits forget(new (std::nothrow) std::atomic<std::uint64_t>[words_for(chunks)]());
  bits remember(new (std::nothrow) std::atomic<std::uint64_t>[words_for(chunks)]());
  if (forget == nullptr || remember == nullptr) return fail(ENOMEM);
  std::unique_ptr<registered_arena> a(new (std::nothrow) registered_arena(
      on, memory, chunks, std::move(forget), std::move(remember)));
  if (a == nullptr) return fail(ENOMEM);
  // First the device, then the look at the chunks: one that leaves in between is asked for.
  memory.add_device(*a);
  a->closed_ = false;
  const auto registered = on.queue().register_arena(memory);
  if (!registered) {
    a->close();
    return fail(registered.error());
  }
  if (*registered < memory.committed_bytes()) {
    a->shortfall_ = memory.chunk_count() > chunks
                        ? make_error_code(errc::too_large)
                        : std::make_error_code(std::errc::not_enough_memory);
  }
  return a;
}

void registered_arena::close() noexcept {
  if (closed_) return;
  memory_.remove_device(*this);
  do_what_was_asked();
  closed_ = true;
}

void registered_arena::note(bits& in, std::uint32_t chunk) noexcept {
  // release: the chunk's state, as the arena left it, comes with the bit.
  in[chunk / word_bits].fetch_or(std::uint64_t{1} << (chunk % word_bits),
                                 std::memory_order_release);
  // acq_rel: either this posts, or the work that is on its way sees the bit.
  if (!posted_.exchange(true, std::memory_order_acq_rel)) loop_.post(work_);
}

void registered_arena::forget(std::uint32_t chunk) noexcept {
  if (chunk < chunks_) return note(to_forget_, chunk);
  memory_.device_forgot(*this, chunk);  // never known here
}

void registered_arena::remember(std::uint32_t chunk) noexcept {
  if (chunk < chunks_) note(to_remember_, chunk);
}

void registered_arena::do_what_was_asked() noexcept {
  uring_queue_pair& queue = loop_.queue();
  for (std::uint32_t w = 0; w < words_for(chunks_); ++w) {
    // In this order: a chunk is asked back only after it has come. A hint that comes late, when the
    // chunk is on its way out again, is refused by the queue pair.
    take_each(to_remember_[w], w * word_bits, [&](std::uint32_t chunk) noexcept {
      static_cast<void>(queue.register_chunk(chunk));  // refused: the ordinary way
    });
    take_each(to_forget_[w], w * word_bits, [&](std::uint32_t chunk) noexcept {
      queue.unregister_chunk(chunk);
      memory_.device_forgot(*this, chunk);
    });
  }
}

}  // namespace forebay
