#include "forebay/cache/frame_eviction.h"

#include "forebay/cache/address_space.h"
#include "forebay/cache/eviction_lists.h"
#include "forebay/cache/s3_fifo.h"

namespace forebay {
namespace {

static_assert(page::uses_max == eviction_uses_max);

struct frame_traits {
  using entry = page;
  using list = intrusive_list<page, &page::link>;

  static unsigned uses(const page& p) noexcept {
    return p.uses.load(std::memory_order_relaxed);  // relaxed: a hint
  }
  static void set_uses(page& p, unsigned n) noexcept {
    // relaxed: a hint; a hit that comes in between may bring the old number back
    p.uses.store(static_cast<std::uint8_t>(n), std::memory_order_relaxed);
    if (n == page::uses_max || !p.test(page_viewed)) return;
    // On a list means in an index, or just off it. acquire: sees the space whole.
    auto* const space = static_cast<address_space*>(p.owner.load(std::memory_order_acquire));
    if (space != nullptr) space->count_views_again(p);
  }
  static std::uint8_t& place(page& p) noexcept { return p.place; }
  // It was used, and is to stay longer than others.
  static void kept(page& p) noexcept {
    // acquire: sees the space whole. On a list means in an index, or just off it.
    auto* const space = static_cast<address_space*>(p.owner.load(std::memory_order_acquire));
    if (space != nullptr) space->note_hot(p);
  }
  static std::uint32_t weight(const page& p) noexcept { return p.frames(); }
  // Of two objects one page may have the other's key: the history is never sure anyway.
  static std::uint64_t key(const page& p) noexcept {
    // relaxed: it is in its index, where its identity stays
    const void* const owner = p.owner.load(std::memory_order_relaxed);
    return key_of(owner, p.index.load(std::memory_order_relaxed));  // relaxed: as above
  }
  static std::uint64_t key_of(const void* owner, std::uint64_t index) noexcept {
    return reinterpret_cast<std::uintptr_t>(owner) * 0x9e3779b97f4a7c15 + index;
  }
  // On a list means in an index, and a space takes its pages off the list before it goes.
  static void coming(page& p) noexcept {
    __builtin_prefetch(&p.refs(), 1);
    // acquire: sees the space whole.
    const auto* const space =
        static_cast<const address_space*>(p.owner.load(std::memory_order_acquire));
    // relaxed: a hint
    if (space != nullptr) space->prefetch_slot(p.index.load(std::memory_order_relaxed));
  }
};

template <EvictionPolicy Policy>
class frame_eviction_by final : public frame_eviction {
 public:
  explicit frame_eviction_by(std::uint32_t frames_max) noexcept : policy_(frames_max) {}

  void set_capacity(std::uint64_t frames) noexcept override { policy_.set_capacity(frames); }
  void expect(const void* owner, std::uint64_t index) const noexcept override {
    policy_.expect(frame_traits::key_of(owner, index));
  }
  void insert(page& p) noexcept override { policy_.insert(p); }
  void erase(page& p) noexcept override { policy_.erase(p); }
  page* pop() noexcept override { return policy_.pop(); }
  void replace(page& old, page& fresh) noexcept override { policy_.replace(old, fresh); }
  eviction_progress reclaim(std::uint64_t wanted, unsigned scan_limit, taker take,
                            void* context) noexcept override {
    return policy_.reclaim(wanted, scan_limit,
                           [take, context](page& p) noexcept { return take(context, p); });
  }
  std::uint64_t history_bytes() const noexcept override { return policy_.history_bytes(); }

 private:
  Policy policy_;
};

template <EvictionPolicy Policy>
std::unique_ptr<frame_eviction> make(std::uint32_t frames_max, bool remembers) noexcept {
  std::unique_ptr<frame_eviction> made(new (std::nothrow) frame_eviction_by<Policy>(frames_max));
  if (made != nullptr && remembers && made->history_bytes() == 0) made.reset();
  return made;
}

}  // namespace

void frame_eviction::take_use(page& p) noexcept {
  frame_traits::set_uses(p, frame_traits::uses(p) - 1);
}

std::unique_ptr<frame_eviction> frame_eviction::create(eviction_policy policy,
                                                       std::uint32_t frames_max) noexcept {
  switch (policy) {
    case eviction_policy::s3_fifo:
      return make<plain_s3_fifo<frame_traits>>(frames_max, true);
    case eviction_policy::clock:
      return make<clock_policy<frame_traits>>(frames_max, false);
    case eviction_policy::lru:
      return make<lru_policy<frame_traits>>(frames_max, false);
    case eviction_policy::adaptive:
      break;
  }
  return make<adaptive_s3_fifo<frame_traits>>(frames_max, true);
}

}  // namespace forebay
