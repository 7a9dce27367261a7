// Descriptors: how one side tells the other where memory is, and chains of them.
//
// A descriptor is an address in the device's address space, a length and flags. Several make one
// transfer when they are chained: by number in a table (`next`, as virtio's split rings do), or by
// lying behind each other (in a descriptor_ring). A chain's buffers that the device reads come
// before those that it writes.
//
//     head ─► 3 ┌ address, length │ next=7 ┐     7 ┌ address, length │ next=1, write ┐    1 ┌ … ┐
//
// The table is the other side's memory: it may change while it is read. A table's read() therefore
// copies a descriptor once, with two loads, and only the copy is looked at.
#pragma once

#include <atomic>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include "forebay/base/cache_line.h"
#include "forebay/base/result.h"
#include "forebay/ring/ring_error.h"

namespace forebay {

// As struct vring_desc, virtio 1.2, 2.7.5.
struct descriptor {
  std::uint64_t address = 0;
  std::uint32_t length = 0;  // bytes
  std::uint16_t flags = 0;
  std::uint16_t next = 0;  // number in the table, if descriptor_next is set

  bool operator==(const descriptor&) const = default;
};
static_assert(sizeof(descriptor) == 16);

inline constexpr std::uint16_t descriptor_next = 1;      // the chain goes on
inline constexpr std::uint16_t descriptor_write = 2;     // the device writes, and may not read
inline constexpr std::uint16_t descriptor_indirect = 4;  // of a table that holds the chain itself
inline constexpr std::uint16_t descriptor_flags =
    descriptor_next | descriptor_write | descriptor_indirect;

// A descriptor in two 64-bit words; on a little-endian machine the words lie in memory as the
// struct does.
struct descriptor_words {
  std::uint64_t address = 0;
  std::uint64_t shape = 0;

  static constexpr descriptor_words pack(const descriptor& d) noexcept {
    return {d.address, d.length | std::uint64_t{d.flags} << 32 | std::uint64_t{d.next} << 48};
  }
  constexpr descriptor unpack() const noexcept {
    return {.address = address,
            .length = static_cast<std::uint32_t>(shape),
            .flags = static_cast<std::uint16_t>(shape >> 32),
            .next = static_cast<std::uint16_t>(shape >> 48)};
  }
};

template <typename T>
concept DescriptorTable = requires(const T& table, std::uint32_t i) {
  { table.size() } noexcept -> std::convertible_to<std::uint32_t>;
  // One copy; i < size().
  { table.read(i) } noexcept -> std::same_as<descriptor>;
};

// Descriptors that are this process's own; `next` is what they say.
class descriptor_list {
 public:
  explicit descriptor_list(std::span<const descriptor> list) noexcept : list_(list) {}
  std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(list_.size()); }
  descriptor read(std::uint32_t i) const noexcept { return list_[i]; }

 private:
  std::span<const descriptor> list_;
};

// A table in memory that another process may write at any time: virtio's descriptor area, or the
// table that an indirect descriptor leads to.
class shared_descriptor_table {
 public:
  static_assert(std::endian::native == std::endian::little, "the words are little-endian");
  static constexpr std::uint32_t size_max = 1u << 16;  // what `next` can number

  // The memory must outlive the table. Error: ring_errc::misaligned_table if it is not aligned to 8
  // bytes, or its size not that of 1 to size_max descriptors.
  static result<shared_descriptor_table> at(std::span<std::byte> memory) noexcept {
    if (!is_aligned(reinterpret_cast<std::uintptr_t>(memory.data()), alignof(std::uint64_t)) ||
        memory.empty() || memory.size() % sizeof(descriptor) != 0 ||
        memory.size() / sizeof(descriptor) > size_max) {
      return fail(ring_errc::misaligned_table);
    }
    return shared_descriptor_table(memory);
  }

  std::uint32_t size() const noexcept { return size_; }

  descriptor read(std::uint32_t i) const noexcept {
    // relaxed: that the chain's head was published before orders the table's words; a peer that
    // writes them later gives words of one moment or the other, and the copy is checked.
    return descriptor_words{word(2 * i).load(std::memory_order_relaxed),
                            word(2 * i + 1).load(std::memory_order_relaxed)}  // relaxed: see above
        .unpack();
  }

  // For the side that makes the chains.
  void write(std::uint32_t i, const descriptor& d) const noexcept {
    const descriptor_words words = descriptor_words::pack(d);
    // relaxed: publishing the chain's head is what orders them.
    word(2 * i).store(words.address, std::memory_order_relaxed);
    word(2 * i + 1).store(words.shape, std::memory_order_relaxed);  // relaxed: see above
  }

 private:
  explicit shared_descriptor_table(std::span<std::byte> memory) noexcept
      : words_(reinterpret_cast<std::uint64_t*>(memory.data())),
        size_(static_cast<std::uint32_t>(memory.size() / sizeof(descriptor))) {}

  std::atomic_ref<std::uint64_t> word(std::uint32_t i) const noexcept {
    return std::atomic_ref<std::uint64_t>(words_[i]);
  }

  std::uint64_t* words_;
  std::uint32_t size_;
};

static_assert(DescriptorTable<descriptor_list> && DescriptorTable<shared_descriptor_table>);

}  // namespace forebay
