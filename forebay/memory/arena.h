// Arena: one stretch of memory, its page frames, and the buddy allocator that hands them out.
//
//    data   | frame 0 | frame 1 | frame 2 | …   page_count() × 4 KiB, 2 MiB aligned, one mapping
//    pages  | page 0  | page 1  | page 2  | …   52 bytes each, a mapping of its own, never moves
//
// The address space of both is reserved at the start and stays. The memory behind the data comes
// and goes in chunks of 2 MiB, as long as limit_bytes() allows:
//
//    offline --bring_back()--> online --isolate_chunk()--> isolated --give_back()--> leaving
//       ^                        ^-----undo_isolate()---------'   (all its frames    |
//       |                                                          must be free)     |
//       '---------------------- every device has forgotten the chunk ----------------'
//
// bring_back() is called by allocate() too, when no free frame is left. The page states stay, so a
// stale pointer to a frame always finds a frame, with a reference count of zero while it is
// offline.
//
// Single movable frames go through per-CPU caches (cpu_cache.h): allocate() and release() of one
// take no lock then. A frame that waits there is free (refs 0) and not in the buddy; it counts in
// free_pages(), and the chunk it is in has it for in use until the caches are flushed, which every
// member does that must know better: isolate_chunk(), give_back(), trim(), candidates(),
// free_blocks(), and allocate() before it says no.
//
// Fall-backs are never silent: remarks() says what the arena was to have and has not.
//
// Locks: `lock_` guards the buddy, the chunks' states and the limit, and of each frame what the
// buddy has of it. `device_lock_` guards the list of devices; lock_ may be taken under it, and
// under the locks of the per-CPU caches. No lock is held while the operating system is asked for
// something. Any thread may call any member unless it says otherwise.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "forebay/memory/buddy.h"
#include "forebay/memory/cpu_cache.h"
#include "forebay/memory/page.h"
#include "forebay/os/memory.h"
#include "forebay/os/mutex.h"

namespace forebay {

class arena;

// Something that knows the arena's memory by other means than its addresses, such as an io_uring
// that has it registered, and keeps it in use by that. Added to an arena it is asked to let go of
// chunks.
class arena_device {
 public:
  arena_device() noexcept = default;
  arena_device(const arena_device&) = delete;
  arena_device& operator=(const arena_device&) = delete;
  // It must have been removed and have answered every forget().
  virtual ~arena_device();

  // The chunk's memory is to be given back: nothing is under way in it and nothing will be. The
  // device lets go of it and then calls arena::device_forgot(), from any thread, at once or later.
  // Called from any thread; must not block and not call other members of the arena.
  virtual void forget(std::uint32_t chunk) noexcept = 0;

  // The chunk is in use again: a hint, nobody waits for an answer. Comes once more than needed at
  // times. Called as forget().
  virtual void remember(std::uint32_t chunk) noexcept = 0;

 private:
  friend class arena;
  list_node link_;                      // guarded by the arena's device_lock_
  std::atomic<std::uint32_t> owed_{0};  // calls of forget() without an answer
};

enum class chunk_state : std::uint8_t {
  offline,   // its memory is the operating system's
  arriving,  // being brought in
  online,
  isolated,  // its free frames are not handed out
  leaving,   // devices are letting go of it, then it goes offline
};

struct arena_statistics {
  std::uint64_t reserved_bytes = 0;   // address space for frames
  std::uint64_t committed_bytes = 0;  // in chunks that are not offline
  std::uint64_t limit_bytes = 0;      // UINT64_MAX: none
  std::uint64_t pinned_bytes = 0;
  std::uint64_t free_pages = 0;
  std::uint32_t offline_chunks = 0;
  std::uint32_t isolated_chunks = 0;
  std::uint32_t leaving_chunks = 0;
  std::uint64_t given_back = 0;           // chunks, since the start
  std::uint64_t brought_back = 0;         // chunks, since the start, those at the start apart
  std::uint64_t give_back_failures = 0;   // the operating system refused
  std::uint64_t bring_back_failures = 0;  // the operating system had none
  std::uint64_t unpinned_chunks = 0;      // in use without the pin that was asked for
  buddy::counts free_blocks{};            // of each order
  page_backing backing = page_backing::ordinary;
};

class arena {
 public:
  static constexpr unsigned max_order = buddy::max_order;
  static constexpr std::uint32_t chunk_frames = buddy::chunk_frames;
  static constexpr std::size_t chunk_bytes = page_bytes << buddy::chunk_order;

  struct options {
    std::size_t bytes = 0;   // address space for data and page state together; at least min_bytes
    bool huge_pages = true;  // false: ordinary pages, whatever largest_pages says
    // With which pages to begin, and to remark on when it gets smaller ones. None: reserved 2 MiB
    // pages if there are some, and transparent ones are as good.
    std::optional<page_backing> largest_pages = std::nullopt;
    int numa_node = any_numa_node;           // where the memory is to lie
    bool pin = false;                        // keep it from being swapped out
    std::uint64_t limit_bytes = UINT64_MAX;  // to start with
  };

  static constexpr std::size_t min_bytes = 1u << 20;
  // What 31-bit object handles reach.
  static constexpr std::size_t max_bytes = std::size_t{128} << 30;

  // How many frames so many bytes are.
  static constexpr std::uint32_t frames_of(std::size_t bytes) noexcept {
    return static_cast<std::uint32_t>(bytes / (page_bytes + page_state_bytes));
  }

  // Errors: errc::too_small and errc::too_large outside [min_bytes, max_bytes]; ENODEV if there is
  // no such NUMA node; ENOMEM; those of `source`. That pages are smaller than wished or not pinned
  // is not an error but a remark.
  static result<std::unique_ptr<arena>> create(const options& opts,
                                               memory_source& source = memory_source::system());

  // Every frame must have been given back and every device removed.
  ~arena();
  arena(const arena&) = delete;
  arena& operator=(const arena&) = delete;

  // ---- Frames ----

  // A block of 2^order contiguous frames with one reference, held through its first frame; owner
  // and private_data are clear, and the flags but for page_fixed, which tells the placement. Null
  // when there is none, and no chunk can be brought back for it.
  page* allocate(unsigned order = 0, placement where = placement::movable) noexcept;

  // At least `bytes` in as few blocks as can be had, each as from allocate() with its order in
  // page::order: one block when there is one, smaller and smaller ones otherwise. Returns how many
  // of `blocks` it filled in; together they have `bytes`, rounded up to whole frames. Errors:
  // EINVAL for 0 bytes, EMSGSIZE when blocks.size() do not suffice, ENOMEM; nothing is taken then.
  result<std::size_t> allocate_scattered(std::size_t bytes, std::span<page*> blocks,
                                         placement where = placement::movable) noexcept;

  // Turns an allocated block into single frames with one reference each. The block must have no
  // other holders.
  void split(page& block) noexcept;

  // Returns a block whose last reference has gone. put_page() calls it.
  void release(page& block) noexcept;

  std::byte* address_of(const page& p) const noexcept {
    return data_.data() + (static_cast<std::size_t>(&p - pages()) << page_shift);
  }
  std::uint32_t frame_of(const page& p) const noexcept {
    return static_cast<std::uint32_t>(&p - pages());
  }
  page& frame(std::uint32_t number) const noexcept { return pages()[number]; }
  // The frame that holds an address inside the arena.
  page& frame_at(const void* address) const noexcept {
    return pages()[(static_cast<const std::byte*>(address) - data_.data()) >> page_shift];
  }

  // Frames that the address space has room for.
  std::uint32_t page_count() const noexcept { return page_count_; }
  // All of it, online or not.
  std::span<std::byte> memory() const noexcept {
    return {data_.data(), std::size_t{page_count_} << page_shift};
  }
  page_backing backing() const noexcept { return data_.backing(); }
  // What was wished for and not to be had, what that costs and what can be done: a sentence each,
  // without a full stop. Does not change.
  std::span<const std::string> remarks() const noexcept { return remarks_; }

  // Free frames, all orders together, isolated and offline ones not among them; exact at rest.
  // Takes no lock.
  std::uint32_t free_pages() const noexcept {
    return buddy_.free_frames() + static_cast<std::uint32_t>(cache_.cached());
  }
  // Free blocks of each order, at one moment.
  buddy::counts free_blocks() const noexcept;

  // ---- Chunks ----

  std::uint32_t chunk_count() const noexcept { return buddy::chunks_of(page_count_); }
  std::uint32_t chunk_of(const page& p) const noexcept { return frame_of(p) >> buddy::chunk_order; }
  std::span<std::byte> memory_of(std::uint32_t chunk) const noexcept;

  struct chunk_info {
    chunk_state state = chunk_state::offline;
    std::uint32_t frames = 0;  // 512, fewer in the last chunk
    std::uint32_t free = 0;    // when isolated: those that wait to leave
    std::uint32_t fixed = 0;   // in use and not to be emptied at will
  };
  chunk_info info(std::uint32_t chunk) const noexcept;

  // From now on the chunk's free frames are not handed out, nor those that become free. False if
  // it is not online.
  bool isolate_chunk(std::uint32_t chunk) noexcept;
  // Back to normal; false if it is not isolated.
  bool undo_isolate(std::uint32_t chunk) noexcept;
  // Gives an isolated chunk to the operating system once every device has forgotten it; without
  // devices before this returns. Errors: EBUSY if a frame of it is in use, EINVAL if it is not
  // isolated, EOPNOTSUPP with 1 GiB pages, errno of the operating system. On an error, also one
  // that comes after a device's answer, the chunk is online again, but after EBUSY it stays
  // isolated.
  result<> give_back(std::uint32_t chunk) noexcept;

  // Brings the lowest offline chunk back; false if there is none, if the limit does not allow it,
  // or if the operating system has no memory for it.
  bool bring_back() noexcept;

  // How much memory frames may have, in bytes. Lowering it takes wholly free chunks back and evicts
  // nothing; while there is more than it allows, nothing is brought back. See trim().
  void set_limit_bytes(std::uint64_t bytes) noexcept;
  std::uint64_t limit_bytes() const noexcept;
  // Bytes of frames that have memory: of all chunks that are not offline.
  std::uint64_t committed_bytes() const noexcept {
    return std::uint64_t{committed_frames_.load(std::memory_order_relaxed)}  // relaxed: a level
           << page_shift;
  }
  // By how much the chunks that stay exceed the limit.
  std::uint64_t excess_bytes() const noexcept;
  // Starts to give back wholly free chunks, the highest first, as long as there is an excess;
  // returns how many.
  std::uint32_t trim() noexcept;

  // For who empties chunks: fills `out` with online chunks, the cheapest first: those with the
  // fewest fixed frames, and of these the ones with the most free ones. Returns how many.
  std::size_t candidates(std::span<std::uint32_t> out) const noexcept;
  // The frames of a chunk that somebody has, at this moment: bit i stands for frame 512 × chunk +
  // i.
  buddy::frame_set used_frames(std::uint32_t chunk) const noexcept;

  // ---- Devices ----

  // From now on the device is asked. It should look at each chunk's state after this and know only
  // those that are online or isolated.
  void add_device(arena_device& d) noexcept;
  // From now on it is not asked; what it has been asked it must still answer.
  void remove_device(arena_device& d) noexcept;
  void device_forgot(arena_device& d, std::uint32_t chunk) noexcept;

  arena_statistics statistics() const noexcept;

 private:
  struct chunk_record {
    chunk_state state = chunk_state::offline;
    bool made = false;          // its frames' states have been constructed
    bool pinned = false;        // changed while arriving and leaving only
    std::uint32_t answers = 0;  // while leaving: that are still to come
  };

  // The buddy's single movable frames by their numbers, for the per-CPU caches before it.
  class frame_list final : public free_list {
   public:
    explicit frame_list(arena& a) noexcept : arena_(a) {}
    std::size_t take(std::span<std::uint32_t> items) noexcept override;
    void give(std::span<const std::uint32_t> items) noexcept override;

   private:
    arena& arena_;
  };

  struct parts {
    memory_mapping data;
    memory_mapping page_states;
    std::uint32_t page_count = 0;
    std::unique_ptr<chunk_record[]> chunks;
    std::unique_ptr<buddy::chunk_record[]> buddy_chunks;
  };

  arena(memory_source& source, const options& opts, parts p) noexcept;

  void start(const options& opts);
  void remark_on_pages(page_backing wanted);
  void remark_on_pin(std::error_code error);
  page* take_block(unsigned order, placement where) noexcept;
  frame_table& table() const noexcept {
    return *reinterpret_cast<frame_table*>(page_states_.data());
  }
  page* pages() const noexcept { return reinterpret_cast<page*>(table().frames); }
  std::span<std::byte> mapping_of(std::uint32_t chunk) const noexcept;
  void make_frames(std::uint32_t chunk) noexcept;
  bool begin_isolation(std::uint32_t chunk) noexcept FOREBAY_REQUIRES(lock_);
  void end_isolation(std::uint32_t chunk) noexcept FOREBAY_REQUIRES(lock_);
  void put_online(std::uint32_t chunk) noexcept FOREBAY_REQUIRES(lock_);
  std::optional<std::uint32_t> begin_bringing() noexcept;
  result<> answered(std::uint32_t chunk) noexcept;
  result<> discard(std::uint32_t chunk) noexcept;
  void ask_to_remember(std::uint32_t chunk) noexcept;
  std::uint64_t staying_bytes() const noexcept FOREBAY_REQUIRES(lock_);

  memory_source& source_;
  memory_mapping data_;
  memory_mapping page_states_;
  const std::uint32_t page_count_;
  std::vector<std::string> remarks_;
  bool pin_ = false;  // chunks are pinned as they come; set at the start

  std::unique_ptr<chunk_record[]> chunks_;               // guarded by lock_
  std::unique_ptr<buddy::chunk_record[]> buddy_chunks_;  // buddy_'s

  mutable mutex lock_;
  buddy buddy_;  // guarded by lock_, but for free_frames()
  std::uint64_t limit_ FOREBAY_GUARDED_BY(lock_);
  arena_statistics counts_ FOREBAY_GUARDED_BY(lock_);  // only what is not computed
  std::uint32_t leaving_frames_ FOREBAY_GUARDED_BY(lock_) = 0;
  std::atomic<std::uint32_t> committed_frames_{0};  // written under lock_, as is the next
  std::atomic<std::uint32_t> offline_chunks_{0};
  std::uint32_t lowest_offline_ FOREBAY_GUARDED_BY(lock_) = 0;  // none is below it

  // Chunks that are isolated: while there are any, frames are released past the caches.
  std::atomic<std::uint32_t> isolated_{0};
  frame_list frame_list_;
  mutable cpu_cache cache_;  // after what it gives its frames to

  mutable mutex device_lock_;
  intrusive_list<arena_device, &arena_device::link_> devices_ FOREBAY_GUARDED_BY(device_lock_);
};

}  // namespace forebay
