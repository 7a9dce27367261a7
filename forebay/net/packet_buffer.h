// Packet buffer: the descriptor of one packet, as Linux's sk_buff, and `packet`, which holds it.
//
//              head        data                  tail          end
//                |           |                     |            |
//    block:      | headroom  | Ethernet | IP | …   | tailroom   |       fragments
//                |           |<-- linear_length -->|            |     | bytes | bytes | …
//                |             ^          ^                            <-- fragment_length -->
//                            link      network, transport
//
//    length = linear_length + fragment_length
//
//    push(n)   data -= n: room for a header before what there is     (on the way down)
//    pull(n)   data += n: a header has been read                     (on the way up)
//    put(n)    tail += n: room behind what there is
//    trim(n)   cuts what is behind the first n bytes
//    reserve(n) moves data and tail of an empty packet: headroom
//
// The descriptor is two cache lines, of which the first is all that the common operations touch.
// The bytes lie in a block (packet_block.h) that is counted apart from the descriptor, so that a
// clone is a descriptor of its own on the same bytes. Fragments are further pieces of blocks, in
// order, behind the linear part: pages, other packets' data, external memory. They are read through
// a packet, never written.
//
// Where descriptors come from (packet_pool.h): buffer i of a pool has descriptor i, and one
// allocation gives both ("direct"); a clone, half of a split or external data has a descriptor
// without a buffer ("bare"). A direct descriptor describes its own buffer for all of its life, and
// is free again with it: when its packet has gone while others hold the buffer, it rests.
//
// Header positions are kept as distances from `head`: push and pull do not move them, and what
// gives the packet another block (unshare, expand_head, make_linear) takes them along together with
// the bytes they lead to, also those that have been pulled. (A position that trim() has left behind
// the tail is forgotten then.)
//
// Invariants: data <= tail <= end; the fragments hold fragment_length bytes, each at least one;
// `cloned` is set in every descriptor whose linear bytes another one may describe. Descriptors on
// one block without that mark (packets of one ring block, the halves of a split) describe ranges
// that do not overlap, headroom and tailroom included.
//
// Errors of all operations leave the packet as it was. The _unchecked ones are for who knows that
// there is room: they assert it in debug builds and cost an addition. ENOBUFS: no room; ENODATA:
// the packet has not so many bytes; EBUSY: the bytes are shared, unshare() first; ENOMEM.
//
// A packet belongs to one thread at a time; different packets on one block to any threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "forebay/base/assert.h"
#include "forebay/base/result.h"
#include "forebay/net/packet_block.h"

namespace forebay {

class packet;
class packet_buffer;
class packet_pool;

// A piece of a packet behind its linear part. Holds one reference on its block.
struct packet_fragment {
  packet_block block;
  const std::byte* data = nullptr;
  std::uint32_t length = 0;  // bytes, at least one
  std::uint32_t unused = 0;

  std::span<const std::byte> bytes() const noexcept { return {data, length}; }
};

class alignas(64) packet_buffer {
 public:
  static constexpr std::uint32_t length_max = UINT32_MAX;
  static constexpr unsigned fragments_max = 16;
  static constexpr std::uint32_t no_header = UINT32_MAX;

  packet_buffer(const packet_buffer&) = delete;
  packet_buffer& operator=(const packet_buffer&) = delete;

  // ---- Sizes, in bytes ----

  std::size_t length() const noexcept { return linear_length() + fragment_length_; }
  std::size_t linear_length() const noexcept { return tail_ - data_; }
  std::size_t fragment_length() const noexcept { return fragment_length_; }
  std::size_t headroom() const noexcept { return data_; }
  std::size_t tailroom() const noexcept { return end_ - tail_; }
  bool empty() const noexcept { return length() == 0; }
  bool is_linear() const noexcept { return fragment_length_ == 0; }

  // ---- Bytes ----

  // Of the linear part.
  const std::byte* data() const noexcept { return head_ + data_; }
  std::span<const std::byte> linear() const noexcept { return {data(), linear_length()}; }
  std::span<const packet_fragment> fragments() const noexcept {
    return {const_cast<packet_buffer*>(this)->fragment_array(), fragment_count_};
  }
  // The linear part for who writes. EBUSY if another packet may have these bytes too.
  result<std::span<std::byte>> writable() noexcept {
    if (is_shared()) [[unlikely]]
      return fail(EBUSY);
    return std::span(head_ + data_, linear_length());
  }
  std::byte* writable_unchecked() noexcept {
    FOREBAY_DCHECK(!is_shared());
    return head_ + data_;
  }
  // Whether another packet may have the linear bytes too: clone() makes it so, and unshare() or the
  // end of the others ends it.
  bool is_shared() noexcept {
    if ((flags_ & flag_cloned) == 0) [[likely]]
      return false;
    if (!block_.has_one_holder()) return true;
    flags_ &= static_cast<std::uint8_t>(~flag_cloned);
    return false;
  }

  // Copies to.size() bytes from `offset` on, wherever they lie. ENODATA if there are not so many.
  result<> copy_out(std::size_t offset, std::span<std::byte> to) const noexcept;
  // Calls f with the spans that the packet is made of, in order, none of them empty.
  template <typename F>
  void for_each_segment(F f) const {
    if (linear_length() != 0) f(linear());
    for (const packet_fragment& g : fragments()) f(g.bytes());
  }
  std::size_t segment_count() const noexcept {
    return fragment_count_ + (linear_length() != 0 ? 1u : 0u);
  }

  // ---- put, push, pull, trim ----

  // Headroom of `n` bytes more for an empty packet. Errors: EINVAL if it is not empty, ENOBUFS.
  result<> reserve(std::size_t n) noexcept {
    if (!empty()) [[unlikely]]
      return fail(EINVAL);
    if (n > tailroom()) [[unlikely]]
      return fail(ENOBUFS);
    reserve_unchecked(n);
    return {};
  }
  void reserve_unchecked(std::size_t n) noexcept {
    FOREBAY_DCHECK(empty() && n <= tailroom());
    data_ += static_cast<std::uint32_t>(n);
    tail_ += static_cast<std::uint32_t>(n);
  }

  // `n` bytes more at the end; where they begin. Errors: ENOBUFS, also if there are fragments
  // behind the linear part; EBUSY.
  result<std::byte*> put(std::size_t n) noexcept {
    if (n > tailroom() || fragment_count_ != 0) [[unlikely]]
      return fail(ENOBUFS);
    if (is_shared()) [[unlikely]]
      return fail(EBUSY);
    return put_unchecked(n);
  }
  std::byte* put_unchecked(std::size_t n) noexcept {
    FOREBAY_DCHECK(n <= tailroom() && fragment_count_ == 0 && !is_shared());
    std::byte* const at = head_ + tail_;
    tail_ += static_cast<std::uint32_t>(n);
    return at;
  }

  // `n` bytes more at the front; where they begin: the new data(). Errors: ENOBUFS, EBUSY.
  result<std::byte*> push(std::size_t n) noexcept {
    if (n > headroom()) [[unlikely]]
      return fail(ENOBUFS);
    if (is_shared()) [[unlikely]]
      return fail(EBUSY);
    return push_unchecked(n);
  }
  std::byte* push_unchecked(std::size_t n) noexcept {
    FOREBAY_DCHECK(n <= headroom() && !is_shared());
    data_ -= static_cast<std::uint32_t>(n);
    return head_ + data_;
  }

  // `n` bytes fewer at the front, of the linear part first; the new data(). ENODATA if there are
  // not so many.
  result<const std::byte*> pull(std::size_t n) noexcept {
    if (n > linear_length()) [[unlikely]]
      return pull_fragments(n);
    return pull_unchecked(n);
  }
  const std::byte* pull_unchecked(std::size_t n) noexcept {
    FOREBAY_DCHECK(n <= linear_length());
    data_ += static_cast<std::uint32_t>(n);
    return data();
  }

  // Cuts what is behind the first `n` bytes; nothing if there are not more.
  void trim(std::size_t n) noexcept {
    if (fragment_count_ == 0) [[likely]] {
      if (n < linear_length()) tail_ = data_ + static_cast<std::uint32_t>(n);
    } else {
      trim_fragments(n);
    }
  }

  // ---- Header positions ----

  // The header begins at data() + `offset`; at data() itself when nothing is said. ENODATA if that
  // is behind the linear part.
  result<> set_link_header(std::size_t offset = 0) noexcept { return set(link_, offset); }
  result<> set_network_header(std::size_t offset = 0) noexcept { return set(network_, offset); }
  result<> set_transport_header(std::size_t offset = 0) noexcept { return set(transport_, offset); }
  bool has_link_header() const noexcept { return link_ != no_header; }
  bool has_network_header() const noexcept { return network_ != no_header; }
  bool has_transport_header() const noexcept { return transport_ != no_header; }
  // Where a header begins, also when it has been pulled; null if it was never set, or if all of the
  // packet is in fragments.
  const std::byte* link_header() const noexcept { return at(link_); }
  const std::byte* network_header() const noexcept { return at(network_); }
  const std::byte* transport_header() const noexcept { return at(transport_); }
  // Its distance from data(), negative when it has been pulled; it must have been set.
  std::ptrdiff_t link_offset() const noexcept { return distance(link_); }
  std::ptrdiff_t network_offset() const noexcept { return distance(network_); }
  std::ptrdiff_t transport_offset() const noexcept { return distance(transport_); }
  void clear_headers() noexcept { link_ = network_ = transport_ = no_header; }

  // ---- What is known of it ----

  std::uint64_t timestamp_ns() const noexcept { return timestamp_ns_; }  // since 1970; 0: unknown
  void set_timestamp_ns(std::uint64_t ns) noexcept { timestamp_ns_ = ns; }
  std::uint16_t port() const noexcept { return port_; }  // where it came from; 0 at first
  void set_port(std::uint16_t port) noexcept { port_ = port; }
  // How long it was on the wire, if what is here is a part of it.
  std::size_t wire_length() const noexcept { return wire_length_ != 0 ? wire_length_ : length(); }
  void set_wire_length(std::uint32_t n) noexcept { wire_length_ = n; }
  // The user's own; 0 at first.
  std::uint32_t mark() const noexcept { return (flags_ & flag_marked) != 0 ? mark_ : 0; }
  void set_mark(std::uint32_t mark) noexcept {
    mark_ = mark;
    flags_ |= flag_marked;
  }
  packet_pool& pool() const noexcept { return *pool_; }
  packet_block block() const noexcept { return block_; }

  // ---- Sharing, splitting, joining ----

  // Another packet with the same bytes, length, headers, timestamp and port, and no copy. Both are
  // shared then. ENOMEM.
  result<packet> clone() noexcept;
  // A packet with a copy of the bytes, linear, with at least `headroom` bytes of headroom. Pulled
  // headers are copied too. Errors: ENOMEM; errc::too_large if a buffer of the pool has not the
  // room.
  result<packet> copy(std::size_t headroom = 0) const noexcept;
  // Cuts the packet behind the first `at` bytes; the rest, without a copy, as a packet of its own
  // with the same timestamp and port, and no headers set. The rest has the tailroom, and no
  // headroom. Errors: ENODATA if `at` is above length(), ENOMEM.
  result<packet> split(std::size_t at) noexcept;

  // Puts all that `other` has behind what is here, without a copy; `other` is empty after success,
  // and as it was after an error. Errors: ENOBUFS for more than fragments_max fragments, ENOMEM,
  // errc::too_large.
  result<> append(packet&& other) noexcept;
  // The same for `length` bytes of a page from `offset` on, or of external memory; the reference on
  // the block is taken over, but on an error. EINVAL for bytes that are not in the page.
  result<> append(page_ref&& frame, std::size_t offset, std::size_t length) noexcept;
  result<> append(external_block& block, std::span<const std::byte> bytes) noexcept;

 private:
  friend class packet;
  friend class packet_pool;

  enum flag : std::uint8_t {
    flag_cloned = 1u << 0,  // see the invariants
    flag_bare = 1u << 1,    // from the pool's bare descriptors
    flag_marked = 1u << 2,  // mark_ has been set since begin()
    flag_array = 1u << 3,   // there is an array of fragments
  };

  packet_buffer(packet_pool& pool, packet_block block, std::byte* head, std::uint32_t end,
                std::uint32_t number, std::uint8_t flags) noexcept
      : head_(head), block_(block), end_(end), flags_(flags), number_(number), pool_(&pool) {}
  // A bare one on what `from` is on, without its fragments.
  struct bare_clone {};
  packet_buffer(const packet_buffer& from, bare_clone) noexcept
      : head_(from.head_),
        block_(from.block_),
        data_(from.data_),
        tail_(from.tail_),
        end_(from.end_),
        link_(from.link_),
        network_(from.network_),
        transport_(from.transport_),
        wire_length_(from.wire_length_),
        timestamp_ns_(from.timestamp_ns_),
        port_(from.port_),
        flags_((from.flags_ & flag_marked) | flag_bare | (from.block_ ? flag_cloned : 0)),
        pool_(from.pool_),
        mark_(from.mark_) {}

  // A new packet on a buffer of the pool.
  void begin(std::uint32_t headroom, std::uint32_t end) noexcept {
    data_ = headroom;
    tail_ = headroom;
    end_ = end;
    fragment_length_ = 0;
    link_ = no_header;
    network_ = no_header;
    transport_ = no_header;
    wire_length_ = 0;
    timestamp_ns_ = 0;
    port_ = 0;
    flags_ = 0;
    fragment_count_ = 0;
  }
  bool is_plain() const noexcept { return ((flags_ & flag_bare) | fragment_count_) == 0; }
  [[gnu::always_inline]] static void release(packet_buffer& p) noexcept {
    if (!p.is_plain()) [[unlikely]]
      return release_slow(p);
    packet_block::put_buffer(p.block_.pool_buffer(), p.number_);
  }
  static void release_slow(packet_buffer& p) noexcept;
  static void retire(packet_buffer& p) noexcept;

  const std::byte* at(std::uint32_t header) const noexcept {
    return header == no_header ? nullptr : head_ + header;
  }
  std::ptrdiff_t distance(std::uint32_t header) const noexcept {
    FOREBAY_DCHECK(header != no_header);
    return std::ptrdiff_t{header} - std::ptrdiff_t{data_};
  }
  result<> set(std::uint32_t& header, std::size_t offset) const noexcept {
    if (offset > linear_length()) [[unlikely]]
      return fail(ENODATA);
    header = data_ + static_cast<std::uint32_t>(offset);
    return {};
  }

  result<const std::byte*> pull_fragments(std::size_t n) noexcept;
  void trim_fragments(std::size_t n) noexcept;
  void drop_front(std::size_t n) noexcept;
  bool make_room(unsigned fragments) noexcept;
  void add(packet_block block, const std::byte* data, std::size_t length) noexcept;
  result<> can_append(std::size_t length, unsigned fragments) noexcept;
  void forget_fragments() noexcept;
  bool take_shares_of(const packet_buffer& of) noexcept;
  void take_fragments(packet_buffer& from) noexcept;
  void take_description(const packet_buffer& from) noexcept;
  std::size_t kept_before_data() const noexcept;
  void copy_linear(const packet_buffer& from, std::size_t headroom) noexcept;
  result<packet> copy_to_new(std::size_t headroom, std::size_t more) const noexcept;
  void copy_fragments(std::size_t n, packet_buffer& to) const noexcept;

  packet_fragment* fragment_array() noexcept {
    return (flags_ & flag_array) != 0 ? array_ : reinterpret_cast<packet_fragment*>(inline_);
  }

  // The first line. begin() writes all but head_, block_ and number_.
  std::byte* head_;
  packet_block block_;      // of the linear part; none if there is no such part
  std::uint32_t data_ = 0;  // this and what follows: distances from head_
  std::uint32_t tail_ = 0;
  std::uint32_t end_;
  std::uint32_t fragment_length_ = 0;
  std::uint32_t link_ = no_header;
  std::uint32_t network_ = no_header;
  std::uint32_t transport_ = no_header;
  std::uint32_t wire_length_ = 0;  // 0: as long as it is
  std::uint64_t timestamp_ns_ = 0;
  std::uint16_t port_ = 0;
  std::uint8_t flags_;
  std::uint8_t fragment_count_ = 0;
  std::uint32_t number_ = 0;  // direct: of its buffer

  // The second: for packets with fragments. A free descriptor has none, and no array.
  static constexpr unsigned inline_count = 2;
  packet_pool* pool_;
  std::uint32_t mark_ = 0;  // if flag_marked
  union {
    packet_fragment* array_ = nullptr;  // if flag_array: of fragments_max, from the pool
    alignas(packet_fragment) std::byte inline_[inline_count * sizeof(packet_fragment)];
  };
};

static_assert(sizeof(packet_buffer) == 128);

// The holder of a packet: move-only; releases it on destruction.
class packet {
 public:
  packet() noexcept = default;
  // Takes over what release() gave.
  [[nodiscard]] static packet adopt(packet_buffer& p) noexcept { return packet(&p); }

  packet(packet&& other) noexcept : p_(std::exchange(other.p_, nullptr)) {}
  packet& operator=(packet&& other) noexcept {
    if (this != &other) {
      reset();
      p_ = std::exchange(other.p_, nullptr);
    }
    return *this;
  }
  [[gnu::always_inline]] ~packet() { reset(); }

  [[gnu::always_inline]] void reset() noexcept {
    if (p_ != nullptr) packet_buffer::release(*std::exchange(p_, nullptr));
  }
  // Gives it to the caller, who adopts it again some time: for rings that carry pointers.
  [[nodiscard]] packet_buffer* release() noexcept { return std::exchange(p_, nullptr); }

  packet_buffer* get() const noexcept { return p_; }
  packet_buffer& operator*() const noexcept { return *p_; }
  packet_buffer* operator->() const noexcept { return p_; }
  explicit operator bool() const noexcept { return p_ != nullptr; }

  // ---- What may need another descriptor: pointers to the old one are stale after success ----

  // The linear bytes for this packet alone: copied to another buffer of its pool if they are
  // shared. Errors, here and below: ENOMEM; errc::too_large if a buffer of the pool has not the
  // room.
  result<> unshare() noexcept;
  // At least so much headroom and tailroom, in another buffer if need be, which is then not shared.
  result<> expand_head(std::size_t headroom, std::size_t tailroom = 0) noexcept;
  // At least the first `n` bytes in the linear part: for who reads a header. ENODATA if the packet
  // has not so many.
  result<> make_linear(std::size_t n) noexcept {
    if (n <= p_->linear_length()) [[likely]]
      return {};
    return make_linear_slow(n);
  }
  // All of them.
  result<> linearise() noexcept { return make_linear(p_->length()); }

 private:
  explicit packet(packet_buffer* p) noexcept : p_(p) {}
  result<> make_linear_slow(std::size_t n) noexcept;
  result<> move_to_new_buffer(std::size_t headroom, std::size_t tailroom) noexcept;

  packet_buffer* p_ = nullptr;
};

static_assert(sizeof(packet) == sizeof(void*));

}  // namespace forebay
