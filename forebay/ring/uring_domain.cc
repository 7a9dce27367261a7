#include "forebay/ring/uring_domain.h"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "forebay/base/assert.h"
#include "forebay/os/file.h"
#include "forebay/os/memory.h"

namespace forebay {
namespace {

// Chunks registered by one call.
constexpr std::uint32_t batch = 64;

constexpr std::uint32_t word_bits = 64;
constexpr std::size_t words_for(std::uint32_t chunks) noexcept {
  return (chunks + word_bits - 1) / word_bits;
}

// Takes all bits of a word and calls f(bit number) for each.
template <typename F>
void take_each(std::atomic<std::uint64_t>& word, std::uint32_t first, F f) noexcept {
  // acquire: pairs with the setter's release, for the chunk's state.
  std::uint64_t bits = word.exchange(0, std::memory_order_acquire);
  while (bits != 0) {
    f(first + static_cast<std::uint32_t>(std::countr_zero(bits)));
    bits &= bits - 1;
  }
}

bool has_memory(const arena& memory, std::uint32_t chunk) noexcept {
  const chunk_state s = memory.info(chunk).state;
  return s == chunk_state::online || s == chunk_state::isolated;
}

iovec piece_of(const arena& memory, std::uint32_t chunk) noexcept {
  const std::span<std::byte> part = memory.memory_of(chunk);
  return {part.data(), part.size()};
}

}  // namespace

// One arena: which of its chunks are registered, under first_region and what follows.
class uring_domain::attachment final : public arena_device {
 public:
  attachment(uring_domain& domain, arena& memory, std::uint32_t first_region,
             std::uint32_t chunks) noexcept
      : domain_(domain),
        memory_(memory),
        first_(memory.memory().data()),
        bytes_(memory.memory().size()),
        first_region_(first_region),
        chunks_(chunks),
        registered_(new(std::nothrow) std::uint64_t[words_for(chunks)]()),
        to_forget_(new(std::nothrow) std::atomic<std::uint64_t>[words_for(chunks)]()),
        to_remember_(new(std::nothrow) std::atomic<std::uint64_t>[words_for(chunks)]()) {}

  bool has_bits() const noexcept {
    return registered_ != nullptr && to_forget_ != nullptr && to_remember_ != nullptr;
  }
  arena& memory() const noexcept { return memory_; }
  std::uint32_t first_region() const noexcept { return first_region_; }
  std::uint32_t end_region() const noexcept { return first_region_ + chunks_; }

  bool has(std::uint32_t chunk) const noexcept {
    return chunk < chunks_ && (registered_[chunk / word_bits] >> (chunk % word_bits) & 1) != 0;
  }

  // The region that the bytes are within; no_region if they are in none, or in two. False if they
  // are not the arena's at all.
  bool region_of(const std::byte* data, std::size_t bytes, std::uint32_t& region) const noexcept {
    const std::uintptr_t start =
        std::bit_cast<std::uintptr_t>(data) - std::bit_cast<std::uintptr_t>(first_);
    if (start >= bytes_) return false;
    const std::size_t chunk = start / arena::chunk_bytes;
    const bool within =
        (start + bytes - 1) / arena::chunk_bytes == chunk && has(static_cast<std::uint32_t>(chunk));
    region = within ? first_region_ + static_cast<std::uint32_t>(chunk) : dma_segment::no_region;
    return true;
  }

  // Registers the chunks that have memory, the first `most` of them, and the others from now on one
  // by one. Returns the bytes, and in `error` what the kernel said of the first that it refused.
  std::size_t register_first(std::uint32_t most, std::error_code& error) noexcept;
  bool register_chunk(std::uint32_t chunk) noexcept;
  void unregister_chunk(std::uint32_t chunk) noexcept;
  void do_what_was_asked() noexcept;
  // Registers the next chunk that nobody has looked at yet.
  void go_on() noexcept;

  // The arena, from any thread.
  void forget(std::uint32_t chunk) noexcept override {
    if (chunk < chunks_) return note(to_forget_, chunk);
    memory_.device_forgot(*this, chunk);  // never known here
  }
  void remember(std::uint32_t chunk) noexcept override {
    if (chunk < chunks_) note(to_remember_, chunk);
  }

  std::error_code shortfall;

 private:
  using bits = std::unique_ptr<std::atomic<std::uint64_t>[]>;

  void set(std::uint32_t chunk, bool on) noexcept {
    const std::uint64_t bit = std::uint64_t{1} << (chunk % word_bits);
    std::uint64_t& word = registered_[chunk / word_bits];
    word = on ? word | bit : word & ~bit;
  }

  void note(bits& in, std::uint32_t chunk) noexcept {
    // release: the chunk's state, as the arena left it, comes with the bit.
    in[chunk / word_bits].fetch_or(std::uint64_t{1} << (chunk % word_bits),
                                   std::memory_order_release);
    domain_.ask();
  }

  uring_domain& domain_;
  arena& memory_;
  std::byte* const first_;
  const std::size_t bytes_;
  const std::uint32_t first_region_;
  const std::uint32_t chunks_;                         // that can be registered
  std::uint32_t next_ = 0;                             // from here on none has been looked at yet
  const std::unique_ptr<std::uint64_t[]> registered_;  // a bit for each that is
  bits to_forget_;
  bits to_remember_;
};

std::size_t uring_domain::attachment::register_first(std::uint32_t most,
                                                     std::error_code& error) noexcept {
  std::size_t bytes = 0;
  std::array<iovec, batch> pieces{};
  std::uint32_t& at = next_;
  while (at < chunks_ && most != 0 && !error) {
    // A run of chunks with memory.
    std::uint32_t n = 0;
    while (n < std::min(batch, most) && at + n < chunks_ && has_memory(memory_, at + n)) {
      pieces[n] = piece_of(memory_, at + n);
      ++n;
    }
    if (n == 0) {
      ++at;
      continue;
    }
    const auto done = domain_.ring_.update_memory_table(first_region_ + at, {pieces.data(), n});
    // When some could be registered the next call tells what is wrong with the others.
    if (!done) error = done.error();
    const auto good = static_cast<std::uint32_t>(done.value_or(0));
    for (std::uint32_t i = 0; i < good; ++i) {
      set(at + i, true);
      bytes += pieces[i].iov_len;
    }
    at += good;
    most -= good;
  }
  if (error) {
    next_ = chunks_;
  } else if (next_ < chunks_) {
    domain_.ask();
  }
  return bytes;
}

// Passes over a chunk that is leaving, which may have been answered for already: should it come
// back, it is asked to be remembered.
void uring_domain::attachment::go_on() noexcept {
  while (next_ < chunks_ && (has(next_) || !has_memory(memory_, next_))) ++next_;
  if (next_ == chunks_) return;
  map_what_is_there(memory_.memory_of(next_));
  if (!register_chunk(next_)) {
    shortfall = std::make_error_code(std::errc::not_enough_memory);
    next_ = chunks_;
    return;
  }
  ++next_;
  domain_.ask();
}

// Or not: what the kernel refuses, and then this is false, goes the ordinary way.
bool uring_domain::attachment::register_chunk(std::uint32_t chunk) noexcept {
  if (has(chunk) || !has_memory(memory_, chunk)) return true;
  const iovec piece = piece_of(memory_, chunk);
  if (!domain_.ring_.update_memory_table(first_region_ + chunk, {&piece, 1})) return false;
  set(chunk, true);
  return true;
}

void uring_domain::attachment::unregister_chunk(std::uint32_t chunk) noexcept {
  if (!has(chunk)) return;
  // Whatever the kernel says: the entry is not used any more, and replaced by the next one.
  set(chunk, false);
  const iovec nothing{};
  static_cast<void>(domain_.ring_.update_memory_table(first_region_ + chunk, {&nothing, 1}));
}

void uring_domain::attachment::do_what_was_asked() noexcept {
  for (std::uint32_t w = 0; w < words_for(chunks_); ++w) {
    // In this order: a chunk is asked back only after it has come. A hint that comes late, when the
    // chunk is on its way out again, finds it without memory.
    take_each(to_remember_[w], w * word_bits,
              [&](std::uint32_t chunk) noexcept { register_chunk(chunk); });
    take_each(to_forget_[w], w * word_bits, [&](std::uint32_t chunk) noexcept {
      unregister_chunk(chunk);
      memory_.device_forgot(*this, chunk);
    });
  }
}

uring_domain::uring_domain(uring& ring) noexcept
    : dma_domain("uring", {}, dma_guardable::single_in_region), ring_(ring) {}

uring_domain::~uring_domain() {
  while (count_ != 0) detach(*attached_[count_ - 1]);
}

uring_domain::attachment* uring_domain::find(const arena& memory) const noexcept {
  for (std::size_t i = 0; i < count_; ++i) {
    if (&attached_[i]->memory() == &memory) return attached_[i].get();
  }
  return nullptr;
}

// The first regions that nobody has: as many as wanted, or the longest run there is.
result<std::uint32_t> uring_domain::free_regions(std::uint32_t& count) const noexcept {
  std::uint32_t best = 0;
  std::uint32_t best_count = 0;
  std::uint32_t at = 0;
  for (std::size_t i = 0; i <= count_ && best_count < count; ++i) {
    const std::uint32_t end = i == count_ ? max_regions : attached_[i]->first_region();
    if (end - at > best_count) {
      best = at;
      best_count = end - at;
    }
    if (i != count_) at = attached_[i]->end_region();
  }
  if (best_count == 0) return fail(ENOSPC);
  count = std::min(count, best_count);
  return best;
}

result<std::size_t> uring_domain::add(arena& memory, pace how) noexcept {
  if (find(memory) != nullptr) return fail(EEXIST);
  if (count_ == max_arenas) return fail(ENOSPC);
  std::uint32_t chunks = memory.chunk_count();
  const result<std::uint32_t> first = free_regions(chunks);
  if (!first) return fail(first.error());
  std::unique_ptr<attachment> made(new (std::nothrow) attachment(*this, memory, *first, chunks));
  if (made == nullptr || !made->has_bits()) return fail(ENOMEM);
  if (!has_table_) {
    if (const auto r = ring_.register_memory_table(max_regions); !r) return fail(r.error());
    has_table_ = true;
  }
  attachment& a = *made;
  const auto place = std::find_if(attached_.begin(), attached_.begin() + count_, [&](auto& other) {
    return other->first_region() > a.first_region();
  });
  std::move_backward(place, attached_.begin() + count_, attached_.begin() + count_ + 1);
  *place = std::move(made);
  ++count_;
  // First the device, then the look at the chunks: one that leaves in between is asked for.
  memory.add_device(a);
  std::error_code error;
  const std::size_t bytes = a.register_first(how == pace::gradual ? 1 : chunks, error);
  if (error && bytes == 0) {
    detach(a);
    return fail(error);
  }
  if (chunks < memory.chunk_count()) {
    a.shortfall = errc::too_large;
  } else if (error) {
    a.shortfall = std::make_error_code(std::errc::not_enough_memory);
  }
  return bytes;
}

void uring_domain::detach(attachment& a) noexcept {
  a.memory().remove_device(a);
  a.do_what_was_asked();
  for (std::uint32_t c = 0; c < a.end_region() - a.first_region(); ++c) a.unregister_chunk(c);
  const auto place = std::find_if(attached_.begin(), attached_.begin() + count_,
                                  [&](auto& p) { return p.get() == &a; });
  std::move(place + 1, attached_.begin() + count_, place);
  attached_[--count_].reset();
}

void uring_domain::remove(arena& memory) noexcept {
  attachment* const a = find(memory);
  if (a == nullptr) return;
  // The kernel looks regions up as it takes submissions. One that it cannot take now (EBUSY) will
  // end with EFAULT.
  if (ring_.queued() != 0) static_cast<void>(ring_.submit_and_wait(0));
  detach(*a);
}

std::error_code uring_domain::shortfall(const arena& memory) const noexcept {
  const attachment* a = find(memory);
  return a == nullptr ? std::error_code() : a->shortfall;
}

bool uring_domain::has_region(const arena& memory, std::uint32_t chunk) const noexcept {
  const attachment* a = find(memory);
  return a != nullptr && a->has(chunk);
}

std::uint32_t uring_domain::region_of(const std::byte* data, std::size_t bytes) const noexcept {
  std::uint32_t region = dma_segment::no_region;
  for (std::size_t i = 0; i < count_ && !attached_[i]->region_of(data, bytes, region); ++i) {
  }
  return region;
}

bool uring_domain::is_registered(const dma_segment& s) const noexcept {
  if (s.region == dma_segment::no_region) return false;
  const auto* const data =
      std::bit_cast<const std::byte*>(static_cast<std::uintptr_t>(to_number(s.address)));
  return region_of(data, s.length) == s.region;
}

result<dma_segment> uring_domain::do_map(std::span<std::byte> memory, dma_direction) noexcept {
  return dma_segment{dma_address{std::bit_cast<std::uintptr_t>(memory.data())},
                     static_cast<std::uint32_t>(memory.size()),
                     region_of(memory.data(), memory.size())};
}

void uring_domain::ask() noexcept {
  // acq_rel: either this wakes, or who has been woken before sees the bit.
  if (!asked_.exchange(true, std::memory_order_acq_rel) && wake_ != nullptr) wake_(wake_context_);
}

void uring_domain::do_what_was_asked() noexcept {
  // acq_rel: a bit set before its wake was left out is seen by the look that follows.
  asked_.exchange(false, std::memory_order_acq_rel);
  for (std::size_t i = 0; i < count_; ++i) {
    attached_[i]->do_what_was_asked();
    attached_[i]->go_on();
  }
}

}  // namespace forebay
