// Shrinkers: whoever keeps memory only because it may be useful again, and can let go of it.
//
//                    count_bytes()  what could be let go of now
//   registry ──┬──>  page cache     seeks 2: a page must be read again
//              ├──>  slab depots    seeks 1: an object is made again
//              └──>  …              scan_bytes(n): let go of about n bytes of it
//
// The registry asks each in proportion to what it has and in inverse proportion to what re-creating
// it costs, in passes of growing urgency, until enough has come together: the arithmetic of Linux's
// do_shrink_slab() (mm/shrinker.c), with bytes for objects. In a pass of priority p, from 12 down
// to 0, a shrinker is to scan
//
//    count × 4 / seeks / 2^p      (count / 2 if seeks is 0)
//
// in batches; what is less than a batch is deferred to its next turn. Unlike there, the passes end
// in the middle when there is enough.
//
// Only what is clean and in nobody's hands is ever let go of: that is each shrinker's promise.
//
// Locks: turn_ is held during a shrink() as a whole, so that a shrinker that has been removed is
// not under way any more; lock_ guards the list, and is taken under turn_.
#pragma once

#include <atomic>
#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

#include "forebay/base/list.h"
#include "forebay/os/mutex.h"

namespace forebay {

// What the memory is wanted for.
enum class shrink_goal : std::uint8_t {
  frames,     // frames of the arena become free
  give_back,  // whole chunks of the arena go back to the operating system
};

struct shrinker_statistics {
  std::string name;
  unsigned seeks = 0;
  std::uint64_t count_bytes = 0;  // that could be let go of now
  std::uint64_t calls = 0;        // of scan_bytes
  std::uint64_t scanned_bytes = 0;
  std::uint64_t freed_bytes = 0;
};

class shrinker {
 public:
  static constexpr unsigned default_seeks = 2;

  struct options {
    std::string name;
    // The cost to make again what was let go of, where default_seeks is a seek of a disk or so; 0
    // for what costs nothing.
    unsigned seeks = default_seeks;
    std::uint64_t batch_bytes = 128u << 10;  // at a time; not 0
    bool only_gives_back = false;            // has no frames: not asked when these are the goal
  };

  explicit shrinker(options opts) : options_(std::move(opts)) {}
  // It must be in no registry.
  virtual ~shrinker();
  shrinker(const shrinker&) = delete;
  shrinker& operator=(const shrinker&) = delete;

  const std::string& name() const noexcept { return options_.name; }
  shrinker_statistics statistics() noexcept;

 protected:
  struct scan_result {
    std::uint64_t freed_bytes = 0;
    bool stop = false;  // nothing more to be had at present: not asked again in this shrink()
  };

 private:
  friend class shrinker_registry;

  // What could be let go of, in bytes; a guess that must not be far off. Any thread.
  virtual std::uint64_t count_bytes() noexcept = 0;

  // Lets go of up to about `bytes`. Called by one thread at a time, with no lock but turn_ held.
  virtual scan_result scan_bytes(std::uint64_t bytes, shrink_goal goal) noexcept = 0;

  const options options_;
  list_node link_;                    // guarded by the registry's lock_
  std::uint64_t deferred_bytes_ = 0;  // guarded by the registry's turn_, as is the next
  bool stopped_ = false;
  std::atomic<std::uint64_t> calls_{0};
  std::atomic<std::uint64_t> scanned_{0};
  std::atomic<std::uint64_t> freed_{0};
};

class shrinker_registry {
 public:
  static constexpr unsigned lowest_priority = 12;

  shrinker_registry() noexcept = default;
  // Every shrinker must have been removed.
  ~shrinker_registry();
  shrinker_registry(const shrinker_registry&) = delete;
  shrinker_registry& operator=(const shrinker_registry&) = delete;

  // In the order in which they are asked within a pass. Any thread. Both wait for a shrink() that
  // is under way; not to be called from within one.
  void add(shrinker& s) noexcept FOREBAY_EXCLUDES(turn_) FOREBAY_EXCLUDES(lock_);
  void remove(shrinker& s) noexcept FOREBAY_EXCLUDES(turn_) FOREBAY_EXCLUDES(lock_);

  // Asks in passes of growing urgency until `wanted_bytes` have been let go of, all have no more,
  // or a stop is requested between two batches; returns how many bytes it was. Any thread; a second
  // caller waits for the first. May take a while.
  std::uint64_t shrink(std::uint64_t wanted_bytes, shrink_goal goal,
                       const std::stop_token& stop = {}) noexcept FOREBAY_EXCLUDES(turn_)
      FOREBAY_EXCLUDES(lock_);

  // Does not wait for a shrink() that is under way.
  std::vector<shrinker_statistics> statistics() FOREBAY_EXCLUDES(lock_);

 private:
  struct request {
    std::uint64_t wanted_bytes;
    shrink_goal goal;
    const std::stop_token& stop;
    std::uint64_t freed_bytes = 0;

    bool done() const noexcept { return freed_bytes >= wanted_bytes || stop.stop_requested(); }
  };

  shrinker* next(shrinker* after) noexcept FOREBAY_REQUIRES(turn_) FOREBAY_EXCLUDES(lock_);
  static void ask(shrinker& s, unsigned priority, request& r) noexcept;

  mutex turn_;
  mutex lock_;
  intrusive_list<shrinker, &shrinker::link_> list_ FOREBAY_GUARDED_BY(lock_);
};

}  // namespace forebay
