// An eviction policy over page frames: the one place where the page cache and a policy of its
// caller's choice meet.
//
// A page that is in an index is in one of the policy's queues, through `page::link`, from just
// after it was indexed until just before or after it leaves; `place` says in which. A hit is
// page::touch() and nothing else.
//
// Guard: all but create() is called with page_cache::list_lock_ held.
#pragma once

#include <memory>

#include "forebay/cache/eviction.h"
#include "forebay/memory/page.h"

namespace forebay {

class frame_eviction {
 public:
  // Frees a page that is on no list now, or refuses: see EvictionPolicy.
  using taker = bool (*)(void* context, page& p) noexcept;

  // For a cache of up to so many frames. Null without memory.
  static std::unique_ptr<frame_eviction> create(eviction_policy policy,
                                                std::uint32_t frames_max) noexcept;
  virtual ~frame_eviction() = default;

  // Of a page on a list, that was used: it was used once less.
  static void take_use(page& p) noexcept;

  // As in EvictionPolicy; weights are frames.
  virtual void set_capacity(std::uint64_t frames) noexcept = 0;
  virtual void insert(page& p) noexcept = 0;
  // A hint: this page of this space will be inserted. Needs no lock.
  virtual void expect(const void* owner, std::uint64_t index) const noexcept = 0;
  virtual void erase(page& p) noexcept = 0;
  virtual page* pop() noexcept = 0;
  virtual void replace(page& old, page& fresh) noexcept = 0;
  virtual eviction_progress reclaim(std::uint64_t wanted, unsigned scan_limit, taker take,
                                    void* context) noexcept = 0;
  virtual std::uint64_t history_bytes() const noexcept = 0;
};

}  // namespace forebay
