// Slab allocator: caches of equal objects in page frames (Bonwick 1994), with per-CPU magazines
// before them (Bonwick and Adams 2001).
//
//    allocate(), free()     one restartable sequence
//           |
//       cpu_cache           magazines of handles, one loaded and one spare to a CPU, and a depot
//           |               (cpu_cache.h)
//         slabs             fullest | fuller | emptier | empty | full      lists of slabs
//           |
//         arena             blocks of 2^order frames
//
//    slab:    | object 0 | object 1 | object 2 | …      nothing but objects in the frames
//    frames:  | page: private_data = the cache, index = free map | page | …
//
// A slab has no header. What there is to know of it lies in the state of its frames (page.h), as in
// Linux's SLUB: `private_data` of each leads to the cache; `index` has a bit for each 64 bytes of
// the frame, set where a free object begins; `owner` leads from every frame but the first to the
// first, whose own stays null, so that no address space takes it for its page; `link` of the first
// is on one of the lists. So 16 objects of 256 bytes fill a frame, 1.6% of overhead with the
// frame's state. A free object keeps its contents.
//
// That lets a cache be type-stable: its constructor has run on every object once, slabs are never
// given back while it lives, and a reader that comes late by a stale handle still reads an object
// of that type (which it must then check by other means).
//
// Objects are also known by a 31-bit handle, their distance from the arena's start in units of 64
// bytes, for indexes that want to be half as large as pointers.
//
// Objects are taken from the fullest slabs, so that the others become empty and can go back. Empty
// ones beyond what fills a magazine go at once, the others by shrink(). Nothing is stranded: before
// an allocation fails, what lies in all CPU caches of this cache is taken back. Memory that other
// users of the arena need and that lies here free is theirs after shrink().
//
// Colouring (Bonwick 1994): what remains of a slab besides its objects is used to let the first one
// begin a line or more later in neighbouring slabs, so that equal fields of objects do not all meet
// in the same sets of a processor's cache. It costs nothing: the free map tells where objects are.
// Sizes that fill their slabs (powers of two) have nothing remaining. slab_bench.cc measures it.
//
// Debug mode (slab_debug.h), the address sanitizer and valgrind: the CPU caches are bypassed and
// each object passes allocate_checked() and free_checked().
//
// Locks: lock_ guards the lists, the numbers and the frames' state. The arena's lock is not taken
// under it. Lock order: the registry's lock, the CPU caches' locks, lock_.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>

#include "forebay/memory/arena.h"
#include "forebay/memory/cpu_cache.h"
#include "forebay/memory/registry.h"
#include "forebay/memory/slab_debug.h"

namespace forebay {

// Exact when no thread is inside; a moment's approximation otherwise.
struct slab_statistics {
  std::uint64_t objects_in_use = 0;
  std::uint64_t objects_total = 0;   // in all slabs
  std::uint64_t objects_cached = 0;  // free, in CPU caches
  std::uint64_t slabs = 0;
  std::uint64_t partial_slabs = 0;  // with objects that are free, and not only such; cached ones
  std::uint64_t empty_slabs = 0;    //   count as not free here
  std::uint64_t slab_bytes = 0;     // of one slab as it is wished for; see total_bytes
  std::uint64_t total_bytes = 0;    // of all slabs, also of smaller ones where memory was scattered
  std::uint64_t allocations = 0;
  std::uint64_t frees = 0;
  std::uint64_t cpu_hits = 0;  // allocations that one restartable sequence served
  std::uint64_t failures = 0;  // allocations refused because the arena was empty
  std::uint64_t high_watermark =
      0;                 // the most objects that were out of the slabs, cached or in use
  bool per_cpu = false;  // restartable sequences are in use
  bool debug = false;
};

class slab_cache final : public registered_memory, private free_list {
 public:
  static constexpr std::size_t max_object_bytes = std::size_t{256} << 10;

  struct options {
    std::string name;
    std::size_t object_bytes = 0;  // 1 to max_object_bytes
    std::size_t alignment = 64;    // power of two up to page_bytes; below 64 it counts as 64, so
                                   // that every object has a handle
    bool type_stable = false;
    void (*construct)(void*) = nullptr;    // run once on every object of a new slab
    bool debug = false;                    // see slab_debug.h; the environment may ask for it too
    bool cpu_caches = true;                // false: every call takes the lock
    bool colour = true;                    // false: every slab begins with an object
    std::size_t cpu_cache_bytes = 0;       // at most so much waits free in all CPU caches and their
                                           // depot; 0: 1/16 of the arena
    memory_registry* registry = nullptr;   // null: the process's
    bool number_if_name_is_taken = false;  // instead of EEXIST; see registry.h
  };

  // Errors: EINVAL for a size of 0, an alignment that is no power of two or too large, no name;
  // errc::too_large for objects above max_object_bytes or that no slab in this arena can hold;
  // EEXIST if the name is taken; ENOMEM. The arena must outlive the cache.
  static result<std::unique_ptr<slab_cache>> create(arena& memory, options opts);

  // For caches that are members: options that create() refuses are a mistake here (an assertion),
  // and a name that is taken gets a number.
  slab_cache(arena& memory, options opts);

  // Every object must have been given back: otherwise a report names the cache and the objects, and
  // the process ends. destroy() is for who wants to be told.
  ~slab_cache() override;
  slab_cache(const slab_cache&) = delete;
  slab_cache& operator=(const slab_cache&) = delete;

  // Destroys a cache; EBUSY, and nothing has changed, if objects of it are in use. No other thread
  // may be inside.
  static result<> destroy(std::unique_ptr<slab_cache>& cache) noexcept;

  // One object, as its constructor or last user left it; null when the arena has no frames for
  // another slab. Any thread.
  void* allocate() noexcept {
    const std::uint32_t handle = cpu_.pop();
    if (handle == cpu_cache::none) [[unlikely]]
      return allocate_slow();
    return from_handle(handle);
  }

  // Gives back an object of this cache. What is not in the arena, or no multiple of 64 bytes, is
  // caught here, objects of other caches at the latest when they leave the CPU's cache. Any thread.
  void free(void* object) noexcept {
    const std::size_t unit = unit_of(object);
    if (unit >= unit_limit_) [[unlikely]]
      return free_slow(object);
    FOREBAY_DCHECK(owns_frame_of(object));
    cpu_.push(static_cast<std::uint32_t>(unit));
  }

  // The same for many. allocate() fills `objects` from the front and returns how many there were.
  std::size_t allocate(std::span<void*> objects) noexcept;
  void free(std::span<void* const> objects) noexcept;

  // Takes back what CPU caches hold and gives every empty slab to the arena (none if type-stable):
  // how many bytes. Any thread.
  std::size_t shrink() noexcept;

  // Debug mode: looks at every object's red zones, and at the poison of the free ones; damage is
  // reported as by free(). Otherwise nothing. No other thread may be inside.
  void check() noexcept;

  std::uint32_t handle_of(const void* object) const noexcept {
    return static_cast<std::uint32_t>((static_cast<const std::byte*>(object) - base_) >>
                                      handle_shift);
  }
  void* from_handle(std::uint32_t handle) const noexcept {
    return base_ + (std::size_t{handle} << handle_shift);
  }

  std::size_t object_bytes() const noexcept { return options_.object_bytes; }
  // Bytes from one object to the next.
  std::size_t stride_bytes() const noexcept { return stride_; }
  std::uint32_t objects_per_slab() const noexcept { return shapes_[0].count; }
  bool debug() const noexcept { return debug_; }

  slab_statistics statistics() const noexcept;
  // What CPU caches hold, in bytes: cheaper.
  std::size_t cached_bytes() const noexcept { return cpu_.cached() * stride_; }
  memory_statistics report() const override;

 private:
  friend class general_cache;

  static constexpr unsigned handle_shift = 6;
  static constexpr std::uint32_t frame_units = page_bytes >> handle_shift;

  using slab_list = intrusive_list<page, &page::link>;
  // Lists by the share of free objects: those taken from first come first.
  enum fullness : unsigned { fullest, fuller, emptier, empty, full, fullness_count };

  struct geometry {
    std::size_t stride = 0;        // multiple of 64
    std::uint32_t first = 0;       // of object 0 in a slab without colour, in units of 64 bytes
    std::uint8_t order = 0;        // of slabs
    std::uint8_t small_order = 0;  // of slabs when there is no block of `order`
    bool debug = false;
  };

  // What slabs of one order look like.
  struct shape {
    std::uint32_t count = 0;        // objects
    std::uint32_t colour_mask = 0;  // of the slab's number, for its colour
  };

  // Makes a cache in raw memory, of which nothing is left on an error.
  static result<slab_cache*> make_at(void* storage, arena& memory, options opts);
  static result<geometry> plan(const arena& memory, const options& opts);
  static cpu_cache::options cache_options(const arena& memory, const options& opts,
                                          std::size_t stride) noexcept;
  slab_cache(arena& memory, options opts, const geometry& g) noexcept;

  // The backing list of the CPU caches.
  std::size_t take(std::span<std::uint32_t> handles) noexcept override;
  void give(std::span<const std::uint32_t> handles) noexcept override;

  std::size_t take_from_slabs(std::span<std::uint32_t> handles) noexcept;
  std::size_t take_available(std::span<std::uint32_t> handles) noexcept FOREBAY_REQUIRES(lock_);
  std::size_t take_free(page& head, std::span<std::uint32_t> handles) noexcept
      FOREBAY_REQUIRES(lock_);
  void give_one(std::uint32_t handle, slab_list& to_release) noexcept FOREBAY_REQUIRES(lock_);
  void move(page& head, fullness from, fullness to) noexcept FOREBAY_REQUIRES(lock_);
  page* new_slab() noexcept;
  void add_slab(page& head) noexcept FOREBAY_REQUIRES(lock_);
  void remove_slab(page& head, slab_list& to_release) noexcept FOREBAY_REQUIRES(lock_);
  void release_slabs(slab_list& slabs) noexcept;

  void* allocate_slow() noexcept;
  void* allocate_checked() noexcept;
  void free_slow(void* object) noexcept;
  void free_checked(void* object) noexcept;

  // An address in units of 64 bytes from the arena's start; what is not a multiple of one turns up
  // in the upper bits.
  std::size_t unit_of(const void* object) const noexcept {
    return std::rotr(static_cast<std::size_t>(static_cast<const std::byte*>(object) - base_),
                     int{handle_shift});
  }
  bool in_arena(const void* object) const noexcept;
  bool owns_frame_of(const void* object) const noexcept;

  shape shape_of(unsigned order) const noexcept;
  const shape& shape_of(const page& head) const noexcept {
    return shapes_[head.order == order_ ? 0 : 1];
  }
  std::uint32_t start_of(const page& head) const noexcept;
  page& head_of(page& frame) const noexcept;
  bool is_object(const page& head, std::uint32_t handle) const noexcept;
  bool is_free(const std::byte* object) const noexcept;
  std::uint32_t free_in(page& head) const noexcept;
  static fullness fullness_of(std::uint32_t free_objects, std::uint32_t count) noexcept;
  template <typename F>
  void each_map(page& head, F f) const noexcept;
  template <typename F>
  void each_object(page& head, F f) const noexcept {
    const std::uint32_t start = start_of(head);
    for (std::uint32_t i = 0; i < shape_of(head).count; ++i) {
      f(head.data() + (std::size_t{start + i * stride_units_} << handle_shift));
    }
  }
  std::uint64_t objects_out() const noexcept;

  void check_object(std::byte* object, bool in_use) const noexcept;
  std::string foreign(const void* object) const;
  [[noreturn]] void misused(const char* what, const void* object,
                            const std::string& details = {}) const noexcept;
  [[noreturn]] void report_leaks() noexcept;

  arena& arena_;
  const options options_;
  const slab_debug layout_;
  const std::size_t stride_;
  const std::uint32_t stride_units_;
  const std::uint32_t first_;
  const std::uint8_t order_;
  const std::uint8_t small_order_;
  const std::array<shape, 2> shapes_;  // of order_ and of small_order_
  const bool debug_;
  const bool checked_;             // every object passes allocate_checked() and free_checked()
  std::uint32_t empty_limit_ = 1;  // empty slabs that are kept

  mutable mutex lock_;
  std::array<slab_list, fullness_count> lists_ FOREBAY_GUARDED_BY(lock_);
  std::array<std::uint64_t, fullness_count> slabs_ FOREBAY_GUARDED_BY(lock_) = {};
  std::uint64_t total_objects_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint64_t free_objects_ FOREBAY_GUARDED_BY(lock_) = 0;  // in slabs, not in CPU caches
  std::uint64_t total_frames_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint64_t watermark_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::uint64_t checked_allocations_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::atomic<std::uint64_t> failures_{0};

  // What the fast paths read, beside the cpu_cache's own.
  std::byte* const base_;
  std::size_t unit_limit_;  // handles are below it; 0 if all objects are checked
  cpu_cache cpu_;           // the last: it gives its items to the slabs when it goes
};

// A cache of objects of one type, made and unmade by constructor and destructor.
template <typename T>
class object_cache {
 public:
  // The name gets a number if it is taken.
  object_cache(arena& memory, std::string name) : slabs_(memory, options_for(std::move(name))) {}
  // `opts` without size and alignment; the rest as slab_cache's constructor has it.
  object_cache(arena& memory, slab_cache::options opts) : slabs_(memory, typed(std::move(opts))) {}

  // Null when there is no memory.
  template <typename... Args>
  T* create(Args&&... args) noexcept {
    void* memory = slabs_.allocate();
    return memory == nullptr ? nullptr : new (memory) T(std::forward<Args>(args)...);
  }

  void destroy(T* object) noexcept {
    object->~T();
    slabs_.free(object);
  }

  slab_cache& slabs() noexcept { return slabs_; }
  const slab_cache& slabs() const noexcept { return slabs_; }

 private:
  static slab_cache::options typed(slab_cache::options opts) {
    opts.object_bytes = sizeof(T);
    opts.alignment = alignof(T);
    return opts;
  }
  static slab_cache::options options_for(std::string name) {
    slab_cache::options opts;
    opts.name = std::move(name);
    return typed(std::move(opts));
  }

  slab_cache slabs_;
};

}  // namespace forebay
