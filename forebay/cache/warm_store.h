// Warm store: a page cache's memory in a file that outlives the process, and for each frame a
// record that says what lies in it. Who is killed, or ends, and comes back with the same file finds
// his pages, clean and dirty, where they were.
//
//   | header | images: 64 | records: 8 bytes a frame |       | frames                          |
//   0        4 KiB        |<-- mapped at once ------>|       2 MiB × n, the arena's (kept_memory.h)
//
// A record is one word, and 0 for a frame that has nothing to be kept:
//
//   63    61   60    59     52 51   44 43   36 35           0
//   | 0    | hot  | image + 1 | dirty | valid | page number |
//
//   dirty, valid: a bit for each 512 bytes
//
// What makes the records right, whatever instruction the process ends at:
//  1. A block is said to be valid after its data are there; a frame says whose page it is with its
//     first valid block.
//  2. A valid block that is to be written is said to be dirty before the first byte of it changes;
//     one that was not valid becomes valid and dirty together, after the last.
//  3. A block is dirty until its write-back has ended without error.
//  4. A frame's record is cleared before the frame leaves the index, and so before somebody else
//     has it.
//  5. A page that is moved has both records for a moment, which are equal, as its data are then.
//  6. A range that a discard works on is noted with its image before the device is asked, until the
//     cache has forgotten it: of these pages only what is dirty is believed.
// So nothing that was acknowledged is lost, and what is clean is what the device has. A write that
// was under way may be there in part, even of a block.
//
// It takes stores and nothing else: no system call, and nothing at all for a hit. The stores
// outlive the process, not the machine: what is to survive a power cut must be flushed, as ever.
//
// Records know the frames behind the head of a large page as they know all others, so such a page
// comes back as small ones. Buffer heads, index nodes and bios lie in the frames too, have no
// records, and are made anew. Of the order of eviction it is kept which pages were in the policy's
// main queue (`hot`); the rest begins as if all had just been read.
//
// Life of a file: open() judges what is in it, and writes back, or refuses, what this run cannot
// take over; page_cache::create() claims the frames of what is left, before anything else can have
// them; page_cache::recover() makes them pages of their spaces; close() ends it. Between open() and
// recover() nothing is changed in the records but what was written back, so a start that fails
// costs nothing.
//
// The file is input: every field is checked, and what contradicts itself is refused.
//
// Thread-safety: the note_ functions are called by address spaces under the page's lock, or with
// the page frozen, or (end of write-back) under the space's lock_; a record is changed by
// read-modify-writes, so the three may meet. Everything else belongs to one thread, before and
// after the cache is used.
#pragma once

#include <array>
#include <atomic>
#include <expected>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "forebay/memory/arena.h"
#include "forebay/os/kept_memory.h"

namespace forebay {

class address_space;
class page_cache;

// A record, taken apart.
struct warm_record {
  static constexpr unsigned index_bits = 36;
  static constexpr std::uint64_t index_max = (std::uint64_t{1} << index_bits) - 1;
  static constexpr unsigned valid_shift = 36;
  static constexpr unsigned dirty_shift = 44;
  static constexpr unsigned image_shift = 52;
  static constexpr std::uint64_t hot_bit = std::uint64_t{1} << 60;
  static constexpr unsigned block_bytes = 512;
  static constexpr unsigned all_blocks = 0xff;

  std::uint64_t index = 0;
  unsigned valid = 0;
  unsigned dirty = 0;
  unsigned image = 0;
  bool hot = false;

  static constexpr std::uint64_t identity(unsigned image, std::uint64_t index) noexcept {
    return std::uint64_t{image + 1} << image_shift | index;
  }
  static constexpr warm_record of(std::uint64_t word) noexcept {
    return {word & index_max, static_cast<unsigned>(word >> valid_shift & all_blocks),
            static_cast<unsigned>(word >> dirty_shift & all_blocks),
            static_cast<unsigned>(word >> image_shift & 0xff) - 1, (word & hot_bit) != 0};
  }
  constexpr std::uint64_t word() const noexcept {
    return identity(image, index) | std::uint64_t{valid} << valid_shift |
           std::uint64_t{dirty} << dirty_shift | (hot ? hot_bit : 0);
  }
  // The blocks that the bytes [from, to) of a page touch.
  static constexpr unsigned blocks(std::size_t from, std::size_t to) noexcept {
    const auto first = static_cast<unsigned>(from / block_bytes);
    const auto end = static_cast<unsigned>((to + block_bytes - 1) / block_bytes);
    return ((1u << (end - first)) - 1) << first;
  }
};

struct warm_statistics {
  std::uint64_t recovered_pages = 0;
  std::uint64_t dirty_pages = 0;         // of these
  std::uint64_t dropped_pages = 0;       // clean, and not taken over
  std::uint64_t written_back_pages = 0;  // before the start
  std::uint64_t recovery_ns = 0;         // what it took to find the pages and index them
  bool was_clean = false;                // the run before this one ended in order
};

class warm_store {
 public:
  static constexpr unsigned images_max = 64;
  static constexpr unsigned discards_max = 16;  // under way at a time, in an image
  static constexpr std::size_t path_max = 4095;

  // What is to be served.
  struct image_options {
    std::string path;
    std::uint32_t block_bytes = 512;
    bool read_only = false;
  };
  struct options {
    std::string path;  // of the file
    std::size_t cache_bytes = 0;
    std::vector<image_options> images;
    bool discard = false;                   // forget all that the file holds
    std::uint64_t wait_ns = 3'000'000'000;  // for the lock, while the run before this one ends
  };

  // Opens or makes the file. The error is a sentence for the user, without a full stop: then the
  // file is as it was, but for what has been written back.
  static std::expected<std::unique_ptr<warm_store>, std::string> open(const options& opts);

  ~warm_store();
  warm_store(const warm_store&) = delete;
  warm_store& operator=(const warm_store&) = delete;

  // What was done with what the file held, in words for the user.
  std::span<const std::string> remarks() const noexcept { return remarks_; }
  const std::string& path() const noexcept { return path_; }
  // To be kept open by whatever transfers to or from the frames.
  int fd() const noexcept { return file_.fd(); }
  const warm_statistics& statistics() const noexcept { return statistics_; }
  // By what number the file knows an image; `number` is its place in options::images.
  unsigned slot_of(std::size_t number) const noexcept { return slots_[number]; }

  // ---- For the page cache ----

  memory_source& memory() noexcept { return source_; }
  // Takes the frames of what is to be recovered; the arena is new.
  void claim(arena& memory);
  // Gives those back that were claimed and not recovered, and leaves their records.
  void abandon(arena& memory) noexcept;
  // Makes what was claimed pages of their spaces, which are given by slot_of() and are not used
  // yet. Clean pages for which memory is too short are dropped. Errors: errc::corrupt for two
  // different pages of one place, ENOMEM; the file is as it was then.
  result<> recover(page_cache& cache, std::span<address_space* const> by_slot);

  // From now on no record changes any more: for the end, before the spaces go. `clean`: nothing is
  // dirty and every image is as it will be found.
  void close(bool clean) noexcept;
  bool closed() const noexcept { return closed_; }

  // ---- For address spaces ----

  // Blocks of a frame are valid, and perhaps dirty.
  void note(std::uint32_t frame, unsigned image, std::uint64_t index, unsigned valid,
            unsigned dirty) noexcept {
    const std::uint64_t bits = warm_record::identity(image, index) |
                               std::uint64_t{valid} << warm_record::valid_shift |
                               std::uint64_t{dirty} << warm_record::dirty_shift;
    std::atomic<std::uint64_t>& word = records_[frame];
    // relaxed: under the page's lock no bit is taken away that is looked for here.
    if ((word.load(std::memory_order_relaxed) & bits) == bits) return;
    // acq_rel: neither the data before it nor those after it are moved across it, by the compiler
    // or otherwise; whose end is to be survived is this thread.
    word.fetch_or(bits, std::memory_order_acq_rel);
  }
  // Of these blocks those that are valid are about to change.
  void note_change(std::uint32_t frame, unsigned blocks) noexcept {
    std::atomic<std::uint64_t>& word = records_[frame];
    const std::uint64_t now = word.load(std::memory_order_relaxed);  // relaxed: as above
    const std::uint64_t fresh = warm_record::of(now).valid & blocks & ~warm_record::of(now).dirty;
    // acq_rel: as above
    if (fresh != 0) word.fetch_or(fresh << warm_record::dirty_shift, std::memory_order_acq_rel);
  }
  // Only these blocks are dirty still.
  void note_clean(std::uint32_t frame, unsigned dirty) noexcept {
    const std::uint64_t gone = std::uint64_t{warm_record::all_blocks & ~dirty};
    records_[frame].fetch_and(~(gone << warm_record::dirty_shift),
                              std::memory_order_acq_rel);  // acq_rel: as above
  }
  void note_hot(std::uint32_t frame) noexcept {
    std::atomic<std::uint64_t>& word = records_[frame];
    // relaxed, both: a hint; and a frame with no record is not to get one by it.
    std::uint64_t now = word.load(std::memory_order_relaxed);
    if (now == 0 || (now & warm_record::hot_bit) != 0) return;
    word.compare_exchange_strong(now, now | warm_record::hot_bit,
                                 std::memory_order_relaxed);  // relaxed: as above
  }
  void note_gone(std::uint32_t frame) noexcept {
    if (closed_) return;
    records_[frame].exchange(0, std::memory_order_acq_rel);  // acq_rel: as above
  }
  void note_moved(std::uint32_t from, std::uint32_t to) noexcept {
    // acq_rel, both: as above; the new place is known before the old one is forgotten.
    records_[to].exchange(records_[from].load(std::memory_order_relaxed),  // relaxed: frozen
                          std::memory_order_acq_rel);
    records_[from].exchange(0, std::memory_order_acq_rel);  // acq_rel: as above
  }
  // A discard of [from, end), in bytes, is about to begin: a number for note_discarded(), none if
  // so many are under way in this image. Under the space's lock_.
  std::optional<unsigned> note_discarding(unsigned image, std::uint64_t from,
                                          std::uint64_t end) noexcept;
  bool may_note_discarding(unsigned image) const noexcept;
  void note_discarded(unsigned image, unsigned number) noexcept;
  // An image has become so many bytes long; before anything of it is noted behind its old end.
  void note_grown(unsigned image, std::uint64_t bytes) noexcept;

  // The file's layout (warm_parts.h).
  struct header;
  struct image_entry;

 private:
  class opening;  // warm_opening.cc

  warm_store(kept_memory file, std::string path, std::uint64_t data_offset) noexcept
      : file_(std::move(file)), path_(std::move(path)), source_(file_, data_offset) {}

  void drop(arena& memory, std::uint32_t frame) noexcept;
  void keep_room(arena& memory) noexcept;
  result<> adopt(page_cache& cache, address_space& space, std::uint32_t frame,
                 const warm_record& r) noexcept;

  kept_memory file_;
  const std::string path_;
  kept_memory_source source_;
  header* header_ = nullptr;
  image_entry* entries_ = nullptr;  // images_max of them
  std::span<std::atomic<std::uint64_t>> records_;
  std::vector<std::uint32_t> claimed_;  // frames, each with a reference of ours
  std::vector<unsigned> slots_;         // of the images of this run
  std::vector<std::string> remarks_;
  warm_statistics statistics_;
  bool closed_ = false;
};

}  // namespace forebay
