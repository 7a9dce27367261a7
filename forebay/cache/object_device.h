// The device under a mapped object's pages: takes bios of the object's bytes apart and passes them
// on to where its mapping says they lie.
//
//   address_space      pages of the object         bio: bytes [8K, 40K) of the object
//        │                                              │
//   object_device      hole: zeros, no I/O          [8K,16K) hole │ [16K,32K) at 7M │ [32K,40K) at
//   3M
//        │                                                               │                  │
//   device             blocks                           bios:         7M..7M+16K         3M..3M+8K
//
// So an object is read, written, pinned, evicted, read ahead and flushed as a device is, by the
// same code. What is not a device's:
//   - a discard is an unmap(), and waits until no transfer is under way: no block is given back
//   while
//     somebody reads or writes it;
//   - a flush is the mapping's commit() and a flush of the device; FUA is commit() too, if anything
//     has been mapped since the last one;
//   - what is read beyond data_end() is zeros.
//
// The block path keeps its answers in the buffer heads of the object's pages, where there are any
// (bh_mapped, block_number and the bits beside it); the extent path in known_extents.
//
// Lock order: transfers_ (many, or an unmap alone), then mapping_, which whoever calls the mapping
// holds alone. Buffer heads' mapping changes under mapping_.
//
// Thread-safety: any thread that has an executor.
#pragma once

#include <atomic>

#include "forebay/block/device.h"
#include "forebay/cache/bio_batch.h"
#include "forebay/cache/known_extents.h"
#include "forebay/cache/mapping.h"
#include "forebay/cache/shared_gate.h"

namespace forebay {

class address_space;
class page_cache;

class object_device final : public device {
 public:
  struct options {
    std::uint64_t max_bytes = 0;
    std::uint32_t block_bytes = 0;
    std::size_t known_extents_max = 0;
    address_space* device_space = nullptr;
  };
  // One of the two mappings.
  object_device(page_cache& cache, device& below, extent_mapping* extents, block_mapping* blocks,
                const options& opts);

  // The space of the object, which is over this device; before anything else.
  void attach(address_space& space) noexcept { space_ = &space; }

  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override;

  bool by_blocks() const noexcept { return blocks_ != nullptr; }

  // The object's size, and how far there may be data on its pages or blocks: no less than that,
  // more while a write is about to make it larger.
  std::uint64_t size_bytes() const noexcept {
    return size_bytes_.load(std::memory_order_acquire);  // acquire: who sees it sees the data
  }
  void set_size(std::uint64_t bytes) noexcept;
  void set_data_end(std::uint64_t bytes) noexcept {
    data_end_.store(bytes, std::memory_order_release);  // release: pairs with readers' acquire
  }

  // Sees to it that all blocks of a range may be written, by the extent path.
  task<> reserve(std::uint64_t offset, std::uint64_t length);
  // The same for blocks of a page, by the block path. The caller holds the page, which has buffers.
  task<> reserve_in_page(page& p, std::size_t from, std::size_t to);
  // Gives back what reserve_in_page() has allocated and nobody has written.
  task<> give_back_new(page& p, std::size_t from, std::size_t to);

  // What the mapping says of a place, for nobody's I/O.
  task<mapped_extent> report(std::uint64_t offset, std::uint64_t length);

  // Whatever is known of a range is to be asked again.
  task<> forget(std::uint64_t offset, std::uint64_t length);

  std::uint64_t map_calls() const noexcept {
    return map_calls_.load(std::memory_order_relaxed);  // relaxed: a statistic
  }
  std::uint64_t lies() const noexcept {
    return lies_.load(std::memory_order_relaxed);  // relaxed: a statistic
  }
  std::size_t extents_known() const noexcept { return known_.count(); }

 private:
  // A coroutine that nobody waits for: it ends with its bio.
  struct detached;
  class walk;

  detached run(bio& b);
  task<> transfer(bio& b);
  task<> read(bio& b);
  task<> write(bio& b);
  task<> unmap(const bio& b);
  task<> commit(bool always);

  // The extent path.
  task<mapped_extent> place(std::uint64_t offset, std::uint64_t length, map_purpose why);
  task<mapped_extent> ask(std::uint64_t offset, std::uint64_t length, map_purpose why);
  bool is_possible(const mapped_extent& e, std::uint64_t offset, map_purpose why) const noexcept;
  task<> written_extents(const bio& b);

  // The block path.
  struct block_answer {
    bool has_data = false;  // to be read; always, to be written
    bool filled = false;    // get_block has put the data into the buffer
    bool boundary = false;
    bool unwritten = false;
    std::uint64_t device_offset = 0;
  };
  task<block_answer> map_block(std::uint64_t block, buffer_head& b, map_purpose why);
  task<> get_block(std::uint64_t block, buffer_head& b, map_purpose why);
  bool is_possible(std::uint64_t block, const buffer_head& b, map_purpose why) const noexcept;
  task<> block_read_full_page(page& p, std::size_t from, std::size_t to, bio_batch& batch);
  task<bool> block_write_full_page(page& p, std::size_t from, std::size_t to, bio_batch& batch);
  task<> written_blocks(page& p, std::size_t from, std::size_t to);
  task<> call_written(std::uint64_t offset, std::uint64_t length);
  void forget_buffers(std::uint64_t offset, std::uint64_t end) noexcept;

  task<> append(bio_batch& batch, std::uint64_t device_offset, std::byte* data, std::size_t bytes);
  std::uint64_t data_end() const noexcept {
    return data_end_.load(std::memory_order_acquire);  // acquire: pairs with set_data_end
  }
  void note_change() noexcept {
    changes_.fetch_add(1, std::memory_order_release);  // release: pairs with commit
  }
  object_mapping& mapping() const noexcept;

  page_cache& cache_;
  device& below_;
  extent_mapping* const extents_;
  block_mapping* const blocks_;
  address_space* const device_space_;  // of below_, null if there is none
  address_space* space_ = nullptr;
  device_limits limits_;
  const std::uint32_t block_bytes_;

  std::atomic<std::uint64_t> size_bytes_{0};
  std::atomic<std::uint64_t> data_end_{0};

  shared_gate transfers_;
  shared_gate mapping_;  // only ever closed
  known_extents known_;

  std::atomic<std::uint64_t> changes_{0};    // of the mapping or the size
  std::atomic<std::uint64_t> committed_{0};  // of these, those that are durable
  std::atomic<std::uint64_t> map_calls_{0};
  std::atomic<std::uint64_t> lies_{0};
};

}  // namespace forebay
