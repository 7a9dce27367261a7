// What an address space tells its cache's warm store of its pages, if the cache has one: nothing,
// at the cost of a look at a pointer, if not. In warm_store.h stands what must be told when.
//
// Guards: the page is locked by the caller, or frozen; at the end of write-back, and for discards,
// the caller has the space's lock_.
#pragma once

#include <cstdint>
#include <optional>

#include "forebay/base/growing_size.h"
#include "forebay/memory/page.h"

namespace forebay {

class warm_store;
struct warm_record;

class warm_notes {
 public:
  // Of a space of that size with blocks of that size, which `store` knows by `slot`; null: none.
  warm_notes(warm_store* store, unsigned slot, const arena& memory, std::uint32_t block_bytes,
             std::uint64_t size_bytes) noexcept
      : store_(store),
        memory_(memory),
        size_bytes_(size_bytes),
        block_bytes_(block_bytes),
        slot_(slot) {}

  explicit operator bool() const noexcept { return store_ != nullptr; }
  bool is_of(unsigned slot) const noexcept { return store_ != nullptr && slot_ == slot; }

  // The space is about to have so many bytes; no page is there yet behind those it had, and who
  // notes something of the last one does so before or after.
  void grow(std::uint64_t bytes) noexcept;

  // These bytes are valid, and what shares a block with them, and equal to the device's; or newer.
  void filled(page& p, std::size_t from, std::size_t to) const noexcept {
    if (store_ != nullptr) note_filled(p, from, to, false);
  }
  void dirtied(page& p, std::size_t from, std::size_t to) const noexcept {
    if (store_ != nullptr) note_filled(p, from, to, true);
  }
  // They are about to be written to, and may be valid.
  void changing(page& p, std::size_t from, std::size_t to) const noexcept {
    if (store_ != nullptr) note_changing(p, from, to);
  }
  // What is neither dirty now nor under write-back has been written, or is not wanted.
  void written(page& p) const noexcept {
    if (store_ != nullptr) note_written(p);
  }
  void gone(page& p) const noexcept {
    if (store_ != nullptr) note_gone(p);
  }
  void moved(page& p, page& fresh) const noexcept {
    if (store_ != nullptr) note_moved(p, fresh);
  }
  void hot(page& p) const noexcept {
    if (store_ != nullptr) note_hot(p);
  }

  // A discard of the bytes [from, end): false if too many are under way. `number` is for its end.
  bool may_begin_discard() const noexcept;
  bool begin_discard(std::uint64_t from, std::uint64_t end,
                     std::optional<unsigned>& number) const noexcept;
  void end_discard(std::optional<unsigned> number) const noexcept;

 private:
  template <typename F>
  void for_each_frame(page& p, std::size_t from, std::size_t to, F f) const noexcept;
  void note_filled(page& p, std::size_t from, std::size_t to, bool dirty) const noexcept;
  void note_changing(page& p, std::size_t from, std::size_t to) const noexcept;
  void note_written(page& p) const noexcept;
  void note_gone(page& p) const noexcept;
  void note_moved(page& p, page& fresh) const noexcept;
  void note_hot(page& p) const noexcept;

  warm_store* const store_;
  const arena& memory_;
  growing_size size_bytes_;
  const std::uint32_t block_bytes_;
  const unsigned slot_;
};

}  // namespace forebay
