// From a chain of descriptors to pieces of this process's memory, with every check that a chain of
// another process needs. What collect_chain() returns is safe to read and write: every byte lies
// within a region, there are not too many, and nothing in the table is looked at again.
//
// Checked, each with an error of its own (ring_errc): numbers within the table, no loop, no more
// descriptors than the limit, no more bytes than the limit, no descriptor of zero bytes, known
// flags, readable before writable, an indirect descriptor only where it may be (the chain's last,
// not nested; what its write flag says is ignored, virtio 1.2, 2.7.5.3.2), every byte within a
// region and written only where that is allowed.
//
// A walk takes at most `descriptors_max` steps. A loop is seen by comparing each number with one
// that is kept for 1, 2, 4, … steps (Brent 1980), so that it has its name; the limit would end it
// anyway.
#pragma once

#include "forebay/base/assert.h"
#include "forebay/ring/descriptor.h"
#include "forebay/ring/memory_regions.h"

namespace forebay {

struct chain_limits {
  std::uint32_t descriptors_max = 256;
  std::uint64_t bytes_max = std::uint64_t{64} << 20;
  bool indirect = false;  // the last may be an indirect descriptor
};

// Pieces of memory in the order of the chain; neighbours that touch are one piece. The spans lie in
// the storage that the caller gave.
struct chain_pieces {
  std::span<const std::span<std::byte>> readable;
  std::span<const std::span<std::byte>> writable;
  std::uint64_t readable_bytes = 0;
  std::uint64_t writable_bytes = 0;
  std::uint32_t descriptors = 0;
};

namespace detail {

template <AddressTranslation Memory>
class chain_collector {
 public:
  chain_collector(const Memory& memory, const chain_limits& limits,
                  std::span<std::span<std::byte>> storage) noexcept
      : memory_(memory), limits_(limits), storage_(storage) {}

  template <DescriptorTable Table>
  result<> walk(const Table& table, std::uint32_t at, bool may_be_indirect) noexcept {
    std::uint32_t kept = at;
    for (std::uint32_t steps = 0, power = 1;;) {
      if (at >= table.size()) return fail(ring_errc::chain_index);
      if (count_ == limits_.descriptors_max) return fail(ring_errc::chain_too_long);
      ++count_;
      const descriptor d = table.read(at);
      if ((d.flags & ~descriptor_flags) != 0) return fail(ring_errc::bad_flags);
      if ((d.flags & descriptor_indirect) != 0) {
        if (!may_be_indirect || (d.flags & descriptor_next) != 0) {
          return fail(ring_errc::bad_flags);
        }
        return walk_indirect(d);
      }
      if (auto r = add(d); !r) return r;
      if ((d.flags & descriptor_next) == 0) return {};
      at = d.next;
      if (at == kept) return fail(ring_errc::chain_loop);
      if (++steps == power) {
        kept = at;
        power *= 2;
        steps = 0;
      }
    }
  }

  chain_pieces pieces() const noexcept {
    return {.readable = storage_.first(readable_),
            .writable = storage_.subspan(readable_, used_ - readable_),
            .readable_bytes = readable_bytes_,
            .writable_bytes = writable_bytes_,
            .descriptors = count_};
  }

 private:
  result<> walk_indirect(const descriptor& d) noexcept {
    if (d.length == 0) return fail(ring_errc::bad_length);
    const auto memory = memory_.translate(d.address, d.length, device_access::read);
    if (!memory) return fail(memory.error());
    // A table in two regions would be in two places of this process.
    if (memory->size() != d.length) return fail(ring_errc::unmapped_address);
    const auto table = shared_descriptor_table::at(*memory);
    if (!table) return fail(table.error());
    --count_;  // the descriptor of the table is none of the chain
    return walk(*table, 0, false);
  }

  result<> add(const descriptor& d) noexcept {
    const bool write = (d.flags & descriptor_write) != 0;
    if (d.length == 0) return fail(ring_errc::bad_length);
    if (d.length > limits_.bytes_max - readable_bytes_ - writable_bytes_) {
      return fail(ring_errc::bad_length);
    }
    if (!write && writable_bytes_ != 0) return fail(ring_errc::bad_order);
    std::uint64_t address = d.address;
    for (std::uint64_t left = d.length; left != 0;) {
      const auto piece =
          memory_.translate(address, left, write ? device_access::write : device_access::read);
      if (!piece) return fail(piece.error());
      FOREBAY_ASSERT(!piece->empty() && piece->size() <= left);
      if (!append(*piece, write)) return fail(ring_errc::chain_pieces);
      address += piece->size();
      left -= piece->size();
      // The end of the address space is the end of the memory.
      if (address == 0 && left != 0) return fail(ring_errc::unmapped_address);
    }
    return {};
  }

  bool append(std::span<std::byte> piece, bool write) noexcept {
    (write ? writable_bytes_ : readable_bytes_) += piece.size();
    const std::size_t first = write ? readable_ : 0;  // of this kind
    if (used_ != first) {
      std::span<std::byte>& last = storage_[used_ - 1];
      if (last.data() + last.size() == piece.data()) {
        last = {last.data(), last.size() + piece.size()};
        return true;
      }
    }
    if (used_ == storage_.size()) return false;
    storage_[used_++] = piece;
    if (!write) readable_ = used_;
    return true;
  }

  const Memory& memory_;
  const chain_limits limits_;
  const std::span<std::span<std::byte>> storage_;
  std::size_t used_ = 0;      // pieces
  std::size_t readable_ = 0;  // of them, the first ones
  std::uint64_t readable_bytes_ = 0;
  std::uint64_t writable_bytes_ = 0;
  std::uint32_t count_ = 0;  // descriptors
};

}  // namespace detail

// The memory of the chain that begins with number `head` of the table. `storage` takes the pieces
// and is all that is written. Errors: those of ring_errc that are listed at the top; chain_pieces
// if there are more pieces than `storage` has room for.
template <DescriptorTable Table, AddressTranslation Memory>
result<chain_pieces> collect_chain(const Table& table, std::uint32_t head,
                                   const chain_limits& limits, const Memory& memory,
                                   std::span<std::span<std::byte>> storage) noexcept {
  detail::chain_collector<Memory> collector(memory, limits, storage);
  if (auto r = collector.walk(table, head, limits.indirect); !r) return fail(r.error());
  return collector.pieces();
}

// Of a chain that is not as it should be: the last byte of its last descriptor, if that can be
// found and is the device's to write, else null. There a device says that it has refused the chain.
template <DescriptorTable Table, AddressTranslation Memory>
std::byte* last_writable_byte(const Table& table, std::uint32_t head, bool indirect,
                              const Memory& memory) noexcept {
  constexpr unsigned steps_max = 1024;
  std::uint32_t at = head;
  for (unsigned steps = 0; steps < steps_max && at < table.size(); ++steps) {
    const descriptor d = table.read(at);
    if ((d.flags & descriptor_next) != 0) {
      at = d.next;
      continue;
    }
    if ((d.flags & descriptor_indirect) != 0) {
      if (!indirect) return nullptr;
      const auto inner = memory.translate(d.address, d.length, device_access::read);
      if (!inner || inner->size() != d.length) return nullptr;
      const auto its_table = shared_descriptor_table::at(*inner);
      if (!its_table) return nullptr;
      return last_writable_byte(*its_table, 0, false, memory);
    }
    if ((d.flags & descriptor_write) == 0 || d.length == 0) return nullptr;
    if (d.address > UINT64_MAX - (d.length - 1)) return nullptr;
    const auto byte = memory.translate(d.address + d.length - 1, 1, device_access::write);
    return byte ? byte->data() : nullptr;
  }
  return nullptr;
}

}  // namespace forebay
