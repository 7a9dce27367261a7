#include "forebay/serve/virtqueue.h"

#include <bit>

namespace forebay {
namespace {

template <typename Word>
Word* word_at(std::span<std::byte> memory, std::size_t offset) noexcept {
  // The processor's atomics lie in memory as the integers do (descriptor_ring.h relies on it too).
  static_assert(sizeof(Word) == sizeof(typename Word::value_type) && Word::is_always_lock_free);
  return reinterpret_cast<Word*>(memory.data() + offset);
}

bool aligned(std::span<std::byte> memory, std::size_t to) noexcept {
  return reinterpret_cast<std::uintptr_t>(memory.data()) % to == 0;
}

}  // namespace

result<virtqueue> virtqueue::create(const virtqueue_setup& s, const guest_memory& memory) noexcept {
  if (s.size == 0 || s.size > virtqueue_size_max) return fail(EINVAL);
  if (!s.packed && !std::has_single_bit(s.size)) return fail(EINVAL);
  virtqueue q;
  q.memory_ = &memory;
  q.size_ = s.size;
  q.packed_ = s.packed;
  q.event_index_ = s.event_index;
  q.indirect_ = s.indirect;
  if (auto r = s.packed ? q.place_packed(s) : q.place_split(s); !r) return fail(r.error());
  return q;
}

result<> virtqueue::place_split(const virtqueue_setup& s) noexcept {
  const std::size_t n = s.size;
  const auto table = memory_->at_user_address(s.descriptors, 16 * n);
  if (!table) return fail(table.error());
  const auto avail = memory_->at_user_address(s.driver, 6 + 2 * n);
  if (!avail) return fail(avail.error());
  const auto used = memory_->at_user_address(s.device, 6 + 8 * n);
  if (!used) return fail(used.error());
  if (!aligned(*table, 16) || !aligned(*avail, 2) || !aligned(*used, 4)) return fail(EINVAL);
  if (s.base > UINT16_MAX) return fail(EINVAL);
  table_ = *table;
  split_words_ = {.avail_flags = word_at<std::atomic<std::uint16_t>>(*avail, 0),
                  .avail_idx = word_at<std::atomic<std::uint16_t>>(*avail, 2),
                  .avail_ring = word_at<std::atomic<std::uint16_t>>(*avail, 4),
                  .used_event = word_at<std::atomic<std::uint16_t>>(*avail, 4 + 2 * n),
                  .used_flags = word_at<std::atomic<std::uint16_t>>(*used, 0),
                  .used_idx = word_at<std::atomic<std::uint16_t>>(*used, 2),
                  .used_ring = word_at<std::atomic<std::uint32_t>>(*used, 4),
                  .avail_event = word_at<std::atomic<std::uint16_t>>(*used, 4 + 8 * n)};
  const auto base = static_cast<std::uint16_t>(s.base);
  // Nothing is under way, unless a log says otherwise: what is behind the base has been used.
  restart_split(base, base);
  return {};
}

result<> virtqueue::place_packed(const virtqueue_setup& s) noexcept {
  const auto ring = memory_->at_user_address(s.descriptors, 16 * std::size_t{s.size});
  if (!ring) return fail(ring.error());
  const auto driver = memory_->at_user_address(s.driver, 4);
  if (!driver) return fail(driver.error());
  const auto device = memory_->at_user_address(s.device, 4);
  if (!device) return fail(device.error());
  if (!aligned(*ring, 16) || !aligned(*driver, 4) || !aligned(*device, 4)) return fail(EINVAL);
  packed_words_ = {.descriptors = word_at<std::atomic<std::uint64_t>>(*ring, 0),
                   .driver_event = word_at<std::atomic<std::uint32_t>>(*driver, 0),
                   .device_event = word_at<std::atomic<std::uint32_t>>(*device, 0)};
  const packed_position taken = packed_position::unpack(static_cast<std::uint16_t>(s.base));
  // As the split ring's: what was taken has been used. The message says where, in its upper half,
  // which front-ends that know the split ring only leave empty.
  if (taken.slot >= size_) return fail(EINVAL);
  restart_packed(taken, taken);
  return {};
}

void virtqueue::restart_split(std::uint16_t base, std::uint16_t used) noexcept {
  split_ring_ = split_ring<real_atomics>(split_words_, size_, event_index_, base, used);
}

void virtqueue::restart_packed(packed_position taken, packed_position used) noexcept {
  packed_ring_ = packed_ring<real_atomics>(packed_words_, size_, event_index_, taken, used);
}

std::uint16_t virtqueue::published_used() const noexcept {
  // relaxed: read once, before anything is taken.
  return split_words_.used_idx->load(std::memory_order_relaxed);
}

std::uint32_t virtqueue::base() const noexcept {
  if (!packed_) return split_ring_.base();
  return packed_ring_.taken().pack() | std::uint32_t{packed_ring_.used().pack()} << 16;
}

result<bool> virtqueue::take(element& e, piece_storage& storage) noexcept {
  e = {};
  if (!packed_) {
    const auto there = split_ring_.available();
    if (!there || !*there) return there;
    const auto head = split_ring_.take();
    if (!head) return fail(head.error());
    take_again(*head, e, storage);
    return true;
  }
  if (!packed_ring_.available()) return false;
  const auto chain = packed_ring_.take(taken_);
  if (!chain) return fail(chain.error());
  take_again(std::span(taken_).first(chain->slots), e, storage);
  return true;
}

namespace {

void set_pieces(virtqueue::element& e, const result<chain_pieces>& r,
                virtqueue::piece_storage& storage) noexcept {
  if (!r) {
    e.error = r.error();
    return;
  }
  e.readable = r->readable.size();
  e.pieces = std::span(storage).first(e.readable + r->writable.size());
  e.readable_bytes = r->readable_bytes;
  e.writable_bytes = r->writable_bytes;
}

}  // namespace

void virtqueue::take_again(std::uint16_t head, element& e, piece_storage& storage) const noexcept {
  e.id = head;
  const chain_limits limits{.descriptors_max = chain_descriptors_max,
                            .bytes_max = chain_bytes_max,
                            .indirect = indirect_};
  const auto table = shared_descriptor_table::at(table_);
  set_pieces(e, collect_chain(*table, head, limits, *memory_, storage), storage);
  if (e.error) e.last_writable = last_writable_byte(*table, head, indirect_, *memory_);
}

void virtqueue::take_again(std::span<const descriptor> chain, element& e,
                           piece_storage& storage) const noexcept {
  e.id = chain.back().next;  // where packed_ring::take() leaves it
  e.slots = static_cast<std::uint16_t>(chain.size());
  e.descriptors = chain;
  std::array<descriptor, chain_descriptors_max> copy;
  const descriptor& first = chain.front();
  if ((first.flags & descriptor_indirect) == 0) {
    std::ranges::copy(chain, copy.begin());
    return collect(std::span(copy).first(chain.size()), e, storage);
  }
  // A table of descriptors elsewhere in the guest's memory, one after the other.
  const bool may_be =
      indirect_ && chain.size() == 1 && (first.flags & ~descriptor_write) == descriptor_indirect;
  if (!may_be) return set_pieces(e, fail(ring_errc::bad_flags), storage);
  const auto memory = memory_->translate(first.address, first.length, device_access::read);
  if (!memory) return set_pieces(e, fail(memory.error()), storage);
  if (memory->size() != first.length) {
    return set_pieces(e, fail(ring_errc::unmapped_address), storage);
  }
  const auto table = shared_descriptor_table::at(*memory);
  if (!table) return set_pieces(e, fail(table.error()), storage);
  if (table->size() > copy.size()) {
    descriptor last = table->read(table->size() - 1);
    last.flags = last.next & descriptor_write;
    e.last_writable = last_writable_byte(descriptor_list({&last, 1}), 0, false, *memory_);
    return set_pieces(e, fail(ring_errc::chain_too_long), storage);
  }
  for (std::uint32_t i = 0; i < table->size(); ++i) {
    copy[i] = table->read(i);
    // A packed table has its number before the flags, of which only this one counts (2.8.7).
    copy[i].flags = copy[i].next & descriptor_write;
  }
  collect(std::span(copy).first(table->size()), e, storage);
}

// Descriptors that lie behind each other, which are this process's own.
void virtqueue::collect(std::span<descriptor> chain, element& e,
                        piece_storage& storage) const noexcept {
  for (std::size_t i = 0; i < chain.size(); ++i) {
    const bool last = i + 1 == chain.size();
    chain[i].flags = static_cast<std::uint16_t>((chain[i].flags & ~descriptor_next) |
                                                (last ? 0 : descriptor_next));
    chain[i].next = static_cast<std::uint16_t>(i + 1);
  }
  const chain_limits limits{.descriptors_max = chain_descriptors_max, .bytes_max = chain_bytes_max};
  const descriptor_list list(chain);
  set_pieces(e, collect_chain(list, 0, limits, *memory_, storage), storage);
  if (e.error) e.last_writable = last_writable_byte(list, 0, false, *memory_);
}

}  // namespace forebay
