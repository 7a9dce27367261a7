// Which chains of a virtqueue a device has taken and not used, in memory that the front-end keeps:
// when the device's process ends without warning, the next one takes them again. Without that a
// guest would wait for ever for what was under way.
//
//   take ─► taken(e) ─► … ─► before_put(n) ─► put ─► publish ─► after_publish()
//
// The layout, and the order of the steps in which every moment can be told from the others
// afterwards, are those of the vhost-user protocol ("Inflight I/O tracking", QEMU
// docs/interop/vhost-user.rst); a packed ring's log has copies of the descriptors, because the ring
// is written over. Packed chains are put one by one, so each is a batch of its own.
//
// Every byte is the front-end's to change: what the log relies on while it runs is kept here and
// only written through; what it reads when it begins is checked.
//
// Of one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "forebay/base/result.h"
#include "forebay/serve/virtqueue.h"

namespace forebay {

class inflight_log {
 public:
  // What one queue takes of the memory, for either kind of ring; a multiple of 64.
  static std::size_t bytes_for(std::uint16_t queue_size) noexcept;

  inflight_log() noexcept = default;  // keeps no log

  // Opens the log of `q`, which has not taken anything; one that is all zeros begins empty. The
  // queue goes on where the log says, and chains that were under way come out of next_again().
  // `memory` has bytes_for() bytes, aligned to 8, and outlives the log. Errors, the queue is as
  // before: EINVAL for a log of another size or version, or one that contradicts itself; ENOMEM.
  static result<inflight_log> open(std::span<std::byte> memory, virtqueue& q);

  static constexpr std::uint16_t batch_max = 64;

  explicit operator bool() const noexcept { return !memory_.empty(); }

  // Whether a device has kept it before this one: which may have ended between what it published
  // and its call of the driver.
  bool is_continued() const noexcept { return is_continued_; }

  // The next chain that was under way when the log was opened, in the order in which they had been
  // taken; false if there is none left. The value is taken()'s.
  bool next_again(const virtqueue& q, virtqueue::element& e, virtqueue::piece_storage& storage,
                  std::uint16_t& number) noexcept;

  // A chain has been taken. The value stands for it in before_put().
  std::uint16_t taken(const virtqueue::element& e) noexcept;

  // The chain is about to be put.
  void before_put(const virtqueue& q, std::uint16_t number, std::uint16_t slots) noexcept;
  // What was put since the last call, batch_max at most, has been published.
  void after_publish(std::uint16_t used) noexcept;

 private:
  struct split_entry;
  struct split_header;
  struct packed_entry;
  struct packed_header;

  // What was under way at the beginning.
  struct pending {
    std::uint64_t counter = 0;
    std::uint16_t number = 0;
    std::uint16_t slots = 1;  // packed
  };

  result<> open_split(virtqueue& q);
  result<> open_packed(virtqueue& q);
  void format_packed(const virtqueue& q) noexcept;
  void slots_from(std::uint16_t first, std::uint16_t count,
                  std::span<descriptor> out) const noexcept;
  split_header& split() const noexcept { return *reinterpret_cast<split_header*>(memory_.data()); }
  split_entry& split_at(std::uint16_t i) const noexcept;
  packed_header& packed() const noexcept {
    return *reinterpret_cast<packed_header*>(memory_.data());
  }
  packed_entry& packed_at(std::uint16_t i) const noexcept;

  std::span<std::byte> memory_;
  std::uint16_t size_ = 0;
  bool is_packed_ = false;
  bool is_continued_ = false;
  std::uint64_t counter_ = 0;  // of the next chain
  // Split: the numbers that were put and are not published. Packed: of each entry, the next one on
  // the free list or in its chain.
  std::unique_ptr<std::uint16_t[]> links_;
  std::uint16_t put_ = 0;         // split: how many there are
  std::uint16_t batch_head_ = 0;  // split
  std::uint16_t free_head_ = 0;   // packed
  packed_position used_;          // packed: behind what before_put() was told
  std::uint16_t putting_ = 0;     // packed: the chain that is being put
  bool is_putting_ = false;       // packed
  std::unique_ptr<pending[]> again_;
  std::uint16_t again_count_ = 0;
  std::uint16_t again_next_ = 0;
};

}  // namespace forebay
