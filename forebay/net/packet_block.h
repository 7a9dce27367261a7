// A block of data that packet buffers share: who holds it, and where it goes when nobody does.
//
//    packet_buffer ──┐
//    packet_buffer ──┼──> packet_block ──> buffer of a pool | page frame | external_block
//    fragment      ──┘                     (memory/)          (memory/)    (the port's own)
//
// Three kinds, told apart by the low bits of one word. Each has a count of its holders in a place
// that the kind's owner chose; the last holder gives the block back there. A packet_block is a
// word, not a holder: get() and put() are explicit, and packet_buffer calls them.
//
// Any thread may hold; a reference belongs to one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "forebay/base/refcount.h"
#include "forebay/memory/buffer_pool.h"
#include "forebay/memory/page.h"

namespace forebay {

// Memory that is neither a pool's nor an arena's: a block of a receive ring that the kernel shares,
// a frame of a UMEM, the guest's memory. Its owner keeps this object as long as anybody holds the
// block, and has it back when `release` is called: by the thread that gives the last reference
// back, which must not block for long. One block may carry many packets: each holds one reference.
class external_block {
 public:
  using release_function = void (*)(external_block&) noexcept;

  // Nobody holds it: start() begins a life.
  explicit external_block(release_function release) noexcept : refs_(0), release_(release) {}
  external_block(const external_block&) = delete;
  external_block& operator=(const external_block&) = delete;

  // The owner takes `holders` references at once, which then go to as many packets; nobody holds
  // any.
  void start(std::uint32_t holders = 1) noexcept { refs_.set(holders); }
  // One more, by who has one.
  void get() noexcept { refs_.get_likely_alone(); }
  void put() noexcept {
    if (refs_.put()) release_(*this);
  }
  // Whether the caller, a holder, is the only one.
  bool has_one_holder() const noexcept { return refs_.only_holder(); }

 private:
  holder_refcount refs_;
  const release_function release_;
};

class packet_block {
 public:
  enum class kind : std::uint8_t { pool_buffer, page_frame, external };

  packet_block() noexcept = default;
  explicit packet_block(buffer& b) noexcept : word_(word_of(&b, kind::pool_buffer)) {}
  explicit packet_block(page& p) noexcept : word_(word_of(&p, kind::page_frame)) {}
  explicit packet_block(external_block& e) noexcept : word_(word_of(&e, kind::external)) {}

  explicit operator bool() const noexcept { return word_ != 0; }
  kind what() const noexcept { return static_cast<kind>(word_ & kind_mask); }
  // Of a block of the kind pool_buffer.
  buffer& pool_buffer() const noexcept { return *reinterpret_cast<buffer*>(word_); }

  // One more reference, by who has one.
  void get() const noexcept {
    switch (what()) {
      case kind::pool_buffer:
        return buffer_ref_traits::get(pool_buffer());
      case kind::page_frame:
        return as<page>().refs().get();
      case kind::external:
        return as<external_block>().get();
    }
  }
  // Gives one back.
  void put() const noexcept {
    switch (what()) {
      case kind::pool_buffer:
        return put_buffer(pool_buffer());
      case kind::page_frame:
        return put_page(as<page>());
      case kind::external:
        return as<external_block>().put();
    }
  }
  // Whether the caller, a holder, is the only one; then all that others have done is over. A page
  // may be found by others at any time.
  bool has_one_holder() const noexcept {
    switch (what()) {
      case kind::pool_buffer:
        return pool_buffer().has_one_holder();
      case kind::page_frame:
        return false;
      case kind::external:
        return as<external_block>().has_one_holder();
    }
    return false;
  }

  static void put_buffer(buffer& b) noexcept { put_buffer(b, b.index()); }
  // The common case: the only holder gives a buffer back to its pool. Who knows its number from
  // elsewhere spares the next allocation the wait for it.
  [[gnu::always_inline]] static void put_buffer(buffer& b, std::uint32_t number) noexcept {
    if (!b.has_one_holder()) [[unlikely]]
      return put_shared(b);
    b.pool().free_resting(b, number);
  }

  friend bool operator==(packet_block, packet_block) noexcept = default;

 private:
  static constexpr std::uintptr_t kind_mask = 3;

  // The last reference may go while this runs, and then the pool keeps no record of an owner.
  [[gnu::noinline]] static void put_shared(buffer& b) noexcept { b.pool().adopt(b).reset(); }

  static std::uintptr_t word_of(const void* what, kind k) noexcept {
    return reinterpret_cast<std::uintptr_t>(what) | static_cast<std::uintptr_t>(k);
  }
  template <typename T>
  T& as() const noexcept {
    static_assert(alignof(T) > kind_mask);
    return *reinterpret_cast<T*>(word_ & ~kind_mask);
  }

  std::uintptr_t word_ = 0;
};

}  // namespace forebay
