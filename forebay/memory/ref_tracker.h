// Who holds the references that were never given back: a record of each holder, in debug mode, as
// Linux's lib/ref_tracker.c.
//
//   pin ──ticket──> record { live | released, object, stack of acquire, stack of release }
//                                                        │                   │
//                                  stacks: each kept once, however many records name it
//
// A count says how many references there are; a tracker says whose they are. Every pin carries a
// ticket that it gets at acquire and gives back at release. report() names the holders that are
// still there, those of one place in the code together. A released record is not used again before
// `quarantine` others were released, so that a second release of the same ticket is caught and
// shown with the stacks of acquire, first release and second release.
//
// Off, which is the default, a ticket is empty and either call is one predictable branch. The
// environment switches trackers on when they are made: FOREBAY_REF_DEBUG=1 (or "all") every one,
// FOREBAY_REF_DEBUG=buffers,bios those with these names. enable() does it at run time; holders from
// before are then unknown, and those from before a disable() can still be given back.
//
// Memory is bounded: at most `records_max` records of 32 bytes and `stacks_max` stacks of 136,
// taken when first needed. A holder beyond that, or without memory, is counted and not named.
//
// Guards: enabled_ is an atomic; everything else belongs to lock_, which is a leaf: nothing is
// taken under it, and stacks are captured, named and printed outside it. Any thread may call
// anything; the tracker outlives its tickets.
#pragma once

#include <array>
#include <atomic>
#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "forebay/os/mutex.h"
#include "forebay/os/stack_trace.h"

namespace forebay {

// What a holder keeps of its record: 8 bytes of plain data, all zero when it is not tracked. A copy
// of it stands for the same holder.
struct ref_ticket {
  std::uint32_t record = 0;      // its number plus 1; 0 for none
  std::uint32_t generation = 0;  // of the record, so that an old ticket is known for one

  explicit operator bool() const noexcept { return record != 0; }
  bool operator==(const ref_ticket&) const noexcept = default;
};

struct ref_tracker_statistics {
  std::uint64_t live = 0;             // holders with a record
  std::uint64_t untracked = 0;        // holders for whom there was none left
  std::uint64_t double_releases = 0;  // caught since the tracker was made
  std::uint64_t stacks = 0;           // different ones that are kept
  std::uint64_t bytes = 0;            // taken for records and stacks
};

class ref_tracker {
 public:
  struct options {
    std::uint32_t records_max = 64u << 10;  // at most 1 << 20
    std::uint32_t stacks_max = 2048;        // at most 1 << 20
    std::uint32_t quarantine = 256;         // released records that wait before one is used again
  };

  // On from the start if the environment says so. `name` is what reports and the environment call
  // it.
  explicit ref_tracker(std::string name) : ref_tracker(std::move(name), options()) {}
  ref_tracker(std::string name, options opts);
  // Prints the report to standard error if somebody still holds a reference.
  ~ref_tracker();
  ref_tracker(const ref_tracker&) = delete;
  ref_tracker& operator=(const ref_tracker&) = delete;

  const std::string& name() const noexcept { return name_; }

  // relaxed: a switch; what a holder does with its ticket is ordered by the lock.
  bool enabled() const noexcept { return enabled_.load(std::memory_order_relaxed); }
  void enable(bool on = true) noexcept {
    enabled_.store(on, std::memory_order_relaxed);  // relaxed: see enabled()
  }

  // A new holder of a reference on `object`, with the caller's stack. The empty ticket when off.
  [[nodiscard]] ref_ticket acquire(const void* object) noexcept {
    if (!enabled()) [[likely]]
      return {};
    return record_acquire(object);
  }

  // The holder gives its reference back. A ticket that was released before is counted and reported
  // on standard error (the first 16 of each tracker) and changes nothing else; returns false then.
  bool release(ref_ticket ticket) noexcept {
    if (!ticket) [[likely]]
      return true;
    return record_release(ticket);
  }

  // The holders that are still there, in words: one group for each stack, the largest first, at
  // most `groups_max` of them, with some of the objects' addresses. Empty if there are none. With
  // `object`, only the holders of that one.
  std::string report(const void* object = nullptr, std::size_t groups_max = 16) const;

  ref_tracker_statistics statistics() const noexcept;

 private:
  struct record;
  struct stored_stack;
  struct group;

  static constexpr std::uint32_t chunk_records = 1024;
  static constexpr std::uint32_t none = UINT32_MAX;

  [[gnu::noinline]] ref_ticket record_acquire(const void* object) noexcept;
  [[gnu::noinline]] bool record_release(ref_ticket ticket) noexcept;
  void report_double_release(ref_ticket ticket, const stack_trace& acquired,
                             const stack_trace& released, const stack_trace& again) const noexcept;

  record& record_at(std::uint32_t number) const noexcept FOREBAY_REQUIRES(lock_);
  std::uint32_t take_record() noexcept FOREBAY_REQUIRES(lock_);
  bool add_chunk() noexcept FOREBAY_REQUIRES(lock_);
  std::uint32_t keep_stack(const stack_trace& trace) noexcept FOREBAY_REQUIRES(lock_);
  stack_trace stack_of(std::uint32_t stack) const noexcept FOREBAY_REQUIRES(lock_);
  std::vector<group> groups_of(const void* object) const FOREBAY_REQUIRES(lock_);

  const std::string name_;
  const options options_;
  std::atomic<bool> enabled_{false};

  mutable mutex lock_;
  // Chunks never move or go away before the tracker does. Records [0, used_) have had a holder.
  std::unique_ptr<std::unique_ptr<record[]>[]> chunks_ FOREBAY_GUARDED_BY(lock_);
  std::uint32_t chunk_count_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint32_t used_ FOREBAY_GUARDED_BY(lock_) = 0;
  // Released records, a queue through record::next: taken at the head, put at the tail.
  std::uint32_t oldest_released_ FOREBAY_GUARDED_BY(lock_) = none;
  std::uint32_t newest_released_ FOREBAY_GUARDED_BY(lock_) = none;
  std::uint32_t released_count_ FOREBAY_GUARDED_BY(lock_) = 0;
  // Open addressing by hash; never full, nothing is ever removed.
  std::unique_ptr<stored_stack[]> stacks_ FOREBAY_GUARDED_BY(lock_);
  ref_tracker_statistics statistics_ FOREBAY_GUARDED_BY(lock_);
};

// How a tracked_ref reaches the count and the tracker of a T.
template <typename Traits, typename T>
concept TrackedRefTraits = requires(T& object) {
  { Traits::get(object) } noexcept;  // one more reference, by who has one
  { Traits::put(object) } noexcept;  // gives one back; the last put frees or recycles the object
  { Traits::tracker(object) } noexcept -> std::same_as<ref_tracker&>;
};

// A pin whose holder can be named: one reference on a T, given back on destruction. Move-only;
// share() makes a second holder with a stack of its own, a move leaves the holder's record as it
// is.
template <typename T, typename Traits>
  requires TrackedRefTraits<Traits, T>
class tracked_ref {
 public:
  tracked_ref() noexcept = default;
  // Takes over a reference that the caller holds and records the caller as its holder.
  [[nodiscard]] static tracked_ref adopt(T& object) noexcept {
    return tracked_ref(&object, Traits::tracker(object).acquire(&object));
  }

  tracked_ref(tracked_ref&& other) noexcept
      : object_(std::exchange(other.object_, nullptr)), ticket_(std::exchange(other.ticket_, {})) {}
  tracked_ref& operator=(tracked_ref&& other) noexcept {
    if (this != &other) {
      reset();
      object_ = std::exchange(other.object_, nullptr);
      ticket_ = std::exchange(other.ticket_, {});
    }
    return *this;
  }
  ~tracked_ref() { reset(); }

  // Another pin of the same object; empty for an empty one.
  [[nodiscard]] tracked_ref share() const noexcept {
    if (object_ == nullptr) return {};
    Traits::get(*object_);
    return adopt(*object_);
  }

  // Inlined whatever its size: it is what the end of every pin costs.
  [[gnu::always_inline]] void reset() noexcept {
    if (object_ == nullptr) return;
    T& object = *std::exchange(object_, nullptr);
    // The record first: the put may be the last, and take object and tracker along.
    give_ticket_back(object);
    Traits::put(object);
  }

  // Gives the reference to the caller, who is no longer tracked.
  [[nodiscard]] T* release() noexcept {
    if (object_ != nullptr) give_ticket_back(*object_);
    return std::exchange(object_, nullptr);
  }

  T* get() const noexcept { return object_; }
  T& operator*() const noexcept { return *object_; }
  T* operator->() const noexcept { return object_; }
  explicit operator bool() const noexcept { return object_ != nullptr; }
  ref_ticket ticket() const noexcept { return ticket_; }

 private:
  tracked_ref(T* object, ref_ticket ticket) noexcept : object_(object), ticket_(ticket) {}

  void give_ticket_back(T& object) noexcept {
    if (ticket_) [[unlikely]]
      Traits::tracker(object).release(std::exchange(ticket_, {}));
  }

  T* object_ = nullptr;
  ref_ticket ticket_;
};

}  // namespace forebay
