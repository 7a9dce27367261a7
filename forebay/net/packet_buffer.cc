// What packets do beyond their first line: fragments, sharing, other blocks.
#include "forebay/net/packet_buffer.h"

#include <memory>
#include "forebay/net/packet_pool.h"

namespace forebay {

// --- the end ---

// Without fragments, as a free descriptor is. Their references are gone, or somebody else's.
void packet_buffer::forget_fragments() noexcept {
  fragment_count_ = 0;
  fragment_length_ = 0;
  if ((flags_ & flag_array) != 0) pool_->fragment_arrays_->free(array_);
  flags_ &= static_cast<std::uint8_t>(~flag_array);
}

// The descriptor of a packet whose references are gone, or somebody else's.
void packet_buffer::retire(packet_buffer& p) noexcept {
  p.forget_fragments();
  if ((p.flags_ & flag_bare) != 0) p.pool_->bare_->free(&p);
}

void packet_buffer::release_slow(packet_buffer& p) noexcept {
  const packet_block block = p.block_;
  if (p.fragment_count_ != 0) {
    for (const packet_fragment& f : p.fragments()) f.block.put();
    p.forget_fragments();
  }
  if ((p.flags_ & flag_bare) != 0) p.pool_->bare_->free(&p);
  // The last: a direct descriptor is free with its buffer.
  if (block) block.put();
}

// --- reading ---

result<> packet_buffer::copy_out(std::size_t offset, std::span<std::byte> to) const noexcept {
  if (offset > length() || to.size() > length() - offset) return fail(ENODATA);
  std::size_t done = 0;
  for_each_segment([&](std::span<const std::byte> segment) {
    if (offset >= segment.size()) {
      offset -= segment.size();
      return;
    }
    const std::size_t n = std::min(segment.size() - offset, to.size() - done);
    if (n != 0) std::memcpy(to.data() + done, segment.data() + offset, n);
    done += n;
    offset = 0;
  });
  return {};
}

// --- fragments ---

// There may be so many more afterwards. False: no memory.
bool packet_buffer::make_room(unsigned fragments) noexcept {
  if ((flags_ & flag_array) != 0 || fragment_count_ + fragments <= inline_count) return true;
  auto* const array = static_cast<packet_fragment*>(pool_->fragment_arrays_->allocate());
  if (array == nullptr) return false;
  std::uninitialized_copy_n(fragment_array(), fragment_count_, array);
  array_ = array;
  flags_ |= flag_array;
  return true;
}

// There is room.
void packet_buffer::add(packet_block block, const std::byte* data, std::size_t length) noexcept {
  const auto n = static_cast<std::uint32_t>(length);
  std::construct_at(fragment_array() + fragment_count_++, packet_fragment{block, data, n});
  fragment_length_ += n;
}

// Takes `n` bytes, which there are, from the front of the fragments.
void packet_buffer::drop_front(std::size_t n) noexcept {
  fragment_length_ -= static_cast<std::uint32_t>(n);
  packet_fragment* const all = fragment_array();
  unsigned gone = 0;
  for (; gone < fragment_count_ && n >= all[gone].length; ++gone) {
    n -= all[gone].length;
    all[gone].block.put();
  }
  std::copy(all + gone, all + fragment_count_, all);
  fragment_count_ -= static_cast<std::uint8_t>(gone);
  if (fragment_count_ == 0) return forget_fragments();
  all[0].data += n;
  all[0].length -= static_cast<std::uint32_t>(n);
}

result<const std::byte*> packet_buffer::pull_fragments(std::size_t n) noexcept {
  if (n > length()) return fail(ENODATA);
  n -= linear_length();
  data_ = tail_;
  drop_front(n);
  return data();
}

void packet_buffer::trim_fragments(std::size_t n) noexcept {
  if (n >= length()) return;
  if (n < linear_length()) tail_ = data_ + static_cast<std::uint32_t>(n);
  std::size_t kept = n - std::min(n, linear_length());  // of the fragments
  fragment_length_ = static_cast<std::uint32_t>(kept);
  packet_fragment* const all = fragment_array();
  unsigned count = 0;
  for (; count < fragment_count_ && kept != 0; ++count) {
    packet_fragment& f = all[count];
    f.length = static_cast<std::uint32_t>(std::min<std::size_t>(f.length, kept));
    kept -= f.length;
  }
  for (unsigned i = count; i < fragment_count_; ++i) all[i].block.put();
  fragment_count_ = static_cast<std::uint8_t>(count);
  if (count == 0) forget_fragments();
}

// --- joining and splitting ---

result<> packet_buffer::can_append(std::size_t length, unsigned fragments) noexcept {
  if (fragment_count_ + fragments > fragments_max) return fail(ENOBUFS);
  if (length > length_max - this->length()) return fail(errc::too_large);
  if (!make_room(fragments)) return fail(ENOMEM);
  return {};
}

result<> packet_buffer::append(packet&& other) noexcept {
  packet_buffer& o = *other;
  FOREBAY_ASSERT(&o != this);
  if (o.empty()) {
    other.reset();
    return {};
  }
  if (const auto r = can_append(o.length(), static_cast<unsigned>(o.segment_count())); !r) return r;
  static_cast<void>(other.release());
  const packet_block block = o.block_;
  const bool block_is_taken = o.linear_length() != 0;
  if (block_is_taken) add(block, o.data(), o.linear_length());
  for (const packet_fragment& f : o.fragments()) add(f.block, f.data, f.length);
  retire(o);
  if (block && !block_is_taken) block.put();
  return {};
}

result<> packet_buffer::append(page_ref&& frame, std::size_t offset, std::size_t length) noexcept {
  if (offset > frame->bytes() || length > frame->bytes() - offset) return fail(EINVAL);
  if (const auto r = can_append(length, 1); !r) return r;
  page_ref taken = std::move(frame);
  if (length == 0) return {};
  page& p = *taken.release();
  add(packet_block(p), p.data() + offset, length);
  return {};
}

result<> packet_buffer::append(external_block& block, std::span<const std::byte> bytes) noexcept {
  if (const auto r = can_append(bytes.size(), 1); !r) return r;
  if (bytes.empty()) {
    block.put();
  } else {
    add(packet_block(block), bytes.data(), bytes.size());
  }
  return {};
}

result<packet> packet_buffer::split(std::size_t at) noexcept {
  if (at > length()) return fail(ENODATA);
  void* const memory = pool_->new_bare();
  if (memory == nullptr) return fail(ENOMEM);
  auto* const rest = new (memory) packet_buffer(*pool_, {}, nullptr, 0, 0, flag_bare);
  packet made = packet::adopt(*rest);
  if (!rest->make_room(fragment_count_)) return fail(ENOMEM);
  rest->timestamp_ns_ = timestamp_ns_;
  rest->port_ = port_;
  if ((flags_ & flag_marked) != 0) rest->set_mark(mark_);

  const std::size_t linear = linear_length();
  const std::size_t length_before = length();
  if (block_ && at <= linear) {
    block_.get();
    rest->block_ = block_;
    rest->head_ = head_ + data_ + at;
    rest->tail_ = static_cast<std::uint32_t>(linear - at);
    rest->end_ = end_ - data_ - static_cast<std::uint32_t>(at);
    rest->flags_ |= flags_ & flag_cloned;
    end_ = tail_ = data_ + static_cast<std::uint32_t>(at);
  }
  std::size_t skipped = at - std::min(at, linear);  // of the fragments
  for (const packet_fragment& f : fragments()) {
    const std::size_t before = std::min<std::size_t>(skipped, f.length);
    skipped -= before;
    if (before == f.length) continue;
    f.block.get();
    rest->add(f.block, f.data + before, f.length - before);
  }
  if (at < length_before) trim(at);
  return made;
}

// --- sharing ---

result<packet> packet_buffer::clone() noexcept {
  void* const memory = pool_->new_bare();
  if (memory == nullptr) [[unlikely]]
    return fail(ENOMEM);
  auto* const c = new (memory) packet_buffer(*this, bare_clone());
  if (fragment_count_ != 0 && !c->take_shares_of(*this)) [[unlikely]] {
    retire(*c);
    return fail(ENOMEM);
  }
  if (block_) [[likely]] {
    block_.get();
    flags_ |= flag_cloned;
  }
  return packet::adopt(*c);
}

// The same fragments as there are in `of`, with references of its own. False: no memory.
bool packet_buffer::take_shares_of(const packet_buffer& of) noexcept {
  if (!make_room(of.fragment_count_)) return false;
  for (const packet_fragment& f : of.fragments()) {
    f.block.get();
    add(f.block, f.data, f.length);
  }
  return true;
}

void packet_buffer::take_description(const packet_buffer& from) noexcept {
  wire_length_ = from.wire_length_;
  timestamp_ns_ = from.timestamp_ns_;
  port_ = from.port_;
  if ((from.flags_ & flag_marked) != 0) set_mark(from.mark_);
}

// --- another block ---

// Pulled bytes to which a header's position leads.
std::size_t packet_buffer::kept_before_data() const noexcept {
  return data_ - std::min({data_, link_, network_, transport_});
}

// Into an empty packet with room for it: the linear part, and what is kept before it.
void packet_buffer::copy_linear(const packet_buffer& from, std::size_t headroom) noexcept {
  data_ = static_cast<std::uint32_t>(headroom);
  tail_ = data_ + static_cast<std::uint32_t>(from.linear_length());
  const std::size_t before = from.kept_before_data();
  const std::size_t n = before + from.linear_length();
  if (n != 0) std::memcpy(head_ + data_ - before, from.data() - before, n);
  const auto moved = [&](std::uint32_t header) {
    return header <= from.tail_ ? header - from.data_ + data_ : no_header;
  };
  link_ = moved(from.link_);
  network_ = moved(from.network_);
  transport_ = moved(from.transport_);
}

// A new packet of this one's pool with a copy of the linear part and the description; at least
// `headroom` bytes before it, and room for `more` bytes behind it.
result<packet> packet_buffer::copy_to_new(std::size_t headroom, std::size_t more) const noexcept {
  const std::size_t bytes = pool_->buffer_bytes();
  headroom = std::max(headroom, kept_before_data());
  if (headroom > bytes || linear_length() > bytes - headroom ||
      more > bytes - headroom - linear_length()) {
    return fail(errc::too_large);
  }
  // As much headroom as there was, or as a new packet has, if that can be.
  const std::size_t wished = std::max(this->headroom(), pool_->headroom());
  headroom = std::max(headroom, std::min(wished, bytes - linear_length() - more));
  packet made = pool_->try_allocate();
  if (!made) return fail(ENOMEM);
  made->copy_linear(*this, headroom);
  made->take_description(*this);
  return made;
}

// Puts the first `n` bytes of the fragments behind the linear part of `to`, where there is room.
void packet_buffer::copy_fragments(std::size_t n, packet_buffer& to) const noexcept {
  static_cast<void>(copy_out(linear_length(), {to.head_ + to.tail_, n}));
  to.tail_ += static_cast<std::uint32_t>(n);
}

result<packet> packet_buffer::copy(std::size_t headroom) const noexcept {
  auto made = copy_to_new(headroom, fragment_length_);
  if (made) copy_fragments(fragment_length_, **made);
  return made;
}

// Takes all fragments of `from` over; there are none here.
void packet_buffer::take_fragments(packet_buffer& from) noexcept {
  if ((from.flags_ & flag_array) != 0) {
    array_ = from.array_;
    flags_ |= flag_array;
    from.flags_ &= static_cast<std::uint8_t>(~flag_array);
  } else {
    std::uninitialized_copy_n(from.fragment_array(), from.fragment_count_, fragment_array());
  }
  fragment_count_ = std::exchange(from.fragment_count_, 0);
  fragment_length_ = std::exchange(from.fragment_length_, 0);
}

result<> packet::move_to_new_buffer(std::size_t headroom, std::size_t tailroom) noexcept {
  auto made = p_->copy_to_new(headroom, tailroom);
  if (!made) return fail(made.error());
  (*made)->take_fragments(*p_);
  *this = std::move(*made);
  return {};
}

result<> packet::unshare() noexcept {
  if (!p_->is_shared()) return {};
  return move_to_new_buffer(0, 0);
}

result<> packet::expand_head(std::size_t headroom, std::size_t tailroom) noexcept {
  if (headroom <= p_->headroom() && tailroom <= p_->tailroom() && !p_->is_shared()) return {};
  return move_to_new_buffer(headroom, tailroom);
}

result<> packet::make_linear_slow(std::size_t n) noexcept {
  if (n > p_->length()) return fail(ENODATA);
  const std::size_t more = n - p_->linear_length();
  if (more > p_->tailroom() || p_->is_shared()) {
    if (const auto r = move_to_new_buffer(0, more); !r) return r;
  }
  p_->copy_fragments(more, *p_);
  p_->drop_front(more);
  return {};
}

}  // namespace forebay
