// Strong and weak references to one object, against cycles.
//
//   counted block:  | strong : 32 | weak : 32 | deleter | object |      one allocation
//                        ^             ^
//   ref_ptr ×n ──────────+             |      the object lives while strong > 0
//   weak_ref ×m ───────────────────────+      the memory stays while weak > 0;
//                                             all ref_ptr together count as one weak
//
// A ref_ptr keeps the object; a weak_ref keeps only its memory and can be asked for a ref_ptr,
// which it gives until the last one has gone. Who holds the object in a circle (the child its
// parent, the request its connection) holds it weakly. The destructor runs when the last strong
// reference goes, the memory goes back through the deleter when the last weak one has gone too; so
// an object from a slab returns to its slab.
//
// Both counts lie in one word, so that one load shows both: a put that sees "one strong, no weak"
// is alone for good (only a holder of either kind could make another) and skips the locked
// instruction, as does the weak put after it. Every other get and put is one locked instruction.
//
// Both counts saturate as in refcount.h, with the same reports: at any misuse both go to the middle
// of their saturated zones, and object and memory are leaked. That also undoes the borrow from the
// other half when one of them went below zero.
//
// Thread-safety: as shared_ptr. The counts may be changed by any thread; one ref_ptr or weak_ref
// object belongs to one thread at a time. Both are move-only: another reference is a visible
// share().
#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "forebay/base/atomics.h"
#include "forebay/base/refcount.h"

namespace forebay {

// The two counts. Who makes one has the first strong reference.
template <AtomicsPolicy Atomics = real_atomics>
class basic_ref_pair {
 public:
  static constexpr std::uint32_t max = basic_refcount<Atomics>::max;
  static constexpr std::uint32_t saturated = basic_refcount<Atomics>::saturated;

  explicit basic_ref_pair(std::uint32_t strong = 1, std::uint32_t weak = 1) noexcept
      : word_(word_of(strong, weak)) {}

  // Values that may be old by the time they are looked at. relaxed: they order nothing.
  std::uint32_t strong() const noexcept {
    return strong_of(word_.load(std::memory_order_relaxed));  // relaxed: see above
  }
  std::uint32_t weak() const noexcept {
    return weak_of(word_.load(std::memory_order_relaxed));  // relaxed: see above
  }

  // One more strong reference for who has one. relaxed: the caller's own orders what it reads.
  void get_strong() noexcept {
    check_get(strong_of(word_.fetch_add(one_strong, std::memory_order_relaxed)));
  }

  // One more weak reference for who has a strong or a weak one. relaxed: as get_strong().
  void get_weak() noexcept {
    check_get(weak_of(word_.fetch_add(one_weak, std::memory_order_relaxed)));
  }

  // A strong reference for who has a weak one; false if the object has gone.
  [[nodiscard]] bool get_strong_unless_zero() noexcept {
    std::uint64_t old = word_.load(std::memory_order_relaxed);  // relaxed: the exchange decides
    do {
      const std::uint32_t strong = strong_of(old);
      if (strong == 0) return false;
      if (strong >= max) [[unlikely]] {
        saturate(refcount_misuse::add_not_zero_overflow, strong);
        return true;
      }
      // relaxed: the caller's weak reference orders what it reads, as a strong one does for
      // get_strong(); whether another holder has left it cannot tell, and put_strong() acquires.
    } while (!word_.compare_exchange_weak(old, old + one_strong, std::memory_order_relaxed,
                                          std::memory_order_relaxed));  // relaxed: retried
    return true;
  }

  // True exactly once: the caller then destroys the object, and after that does put_weak().
  [[nodiscard]] bool put_strong() noexcept {
    // acquire: pairs with the releases of all the others, whose puts are one chain of
    // read-modify-writes.
    if (word_.load(std::memory_order_acquire) == word_of(1, 1)) {
      // relaxed: nobody else may look any more; for what the destructor does with the object.
      word_.store(word_of(0, 1), std::memory_order_relaxed);
      return true;
    }
    // release: what this holder wrote is seen by who destroys the object.
    const std::uint32_t old = strong_of(word_.fetch_sub(one_strong, std::memory_order_release));
    return was_last(old);
  }

  // True exactly once: the caller then frees the memory.
  [[nodiscard]] bool put_weak() noexcept {
    // acquire: as in put_strong().
    if (word_.load(std::memory_order_acquire) == word_of(0, 1)) {
      word_.store(0, std::memory_order_relaxed);  // relaxed: nobody else may look any more
      return true;
    }
    // release: the destructor and all uses of the counts come before the memory is freed.
    const std::uint32_t old = weak_of(word_.fetch_sub(one_weak, std::memory_order_release));
    return was_last(old);
  }

 private:
  static constexpr std::uint64_t one_strong = 1;
  static constexpr std::uint64_t one_weak = std::uint64_t{1} << 32;

  static constexpr std::uint64_t word_of(std::uint32_t strong, std::uint32_t weak) noexcept {
    return (std::uint64_t{weak} << 32) | strong;
  }
  static constexpr std::uint32_t strong_of(std::uint64_t word) noexcept {
    return static_cast<std::uint32_t>(word);
  }
  static constexpr std::uint32_t weak_of(std::uint64_t word) noexcept {
    return static_cast<std::uint32_t>(word >> 32);
  }

  void check_get(std::uint32_t old) noexcept {
    if (old - 1 >= max - 1) [[unlikely]]
      saturate(old == 0 ? refcount_misuse::add_use_after_free : refcount_misuse::add_overflow, old);
  }

  bool was_last(std::uint32_t old) noexcept {
    if (old == 1) {
      // acquire: pairs with the releases of all the others, as in refcount.
      static_cast<void>(word_.load(std::memory_order_acquire));
      return true;
    }
    if (old - 1 >= max) [[unlikely]]
      saturate(refcount_misuse::sub_use_after_free, old);
    return false;
  }

  [[gnu::cold, gnu::noinline]] void saturate(refcount_misuse kind, std::uint32_t old) noexcept {
    word_.store(word_of(saturated, saturated),
                std::memory_order_relaxed);  // relaxed: the value itself is all that matters
    if (old <= max) detail::refcount_misused(kind, this, old);
  }

  typename Atomics::template atomic<std::uint64_t> word_;
};

// Takes the memory of a counted block back: called once, with what was given to make_ref_in() and
// the block's size and alignment in bytes. It lies in the block, so one without state costs
// nothing.
template <typename D>
concept BlockDeleter =
    std::is_nothrow_move_constructible_v<D> && std::is_nothrow_destructible_v<D> &&
    requires(D deleter, void* memory, std::size_t n) {
      { deleter(memory, n, n) } noexcept;
    };

namespace detail {

// Memory from the heap; null without.
inline void* heap_memory(std::size_t bytes, std::size_t alignment) noexcept {
  // The aligned operator is slower: it goes a way of its own through the allocator.
  if (alignment <= __STDCPP_DEFAULT_NEW_ALIGNMENT__) return ::operator new(bytes, std::nothrow);
  return ::operator new(bytes, std::align_val_t{alignment}, std::nothrow);
}

}  // namespace detail

struct heap_deleter {
  void operator()(void* memory, std::size_t bytes, std::size_t alignment) const noexcept {
    if (alignment <= __STDCPP_DEFAULT_NEW_ALIGNMENT__)
      ::operator delete(memory, bytes);
    else
      ::operator delete(memory, bytes, std::align_val_t{alignment});
  }
};

// What lies in memory: counts, deleter, object. Its size and alignment are those that memory for
// make_ref_in() needs, for example as object_bytes and alignment of a slab.
template <typename T, BlockDeleter Deleter = heap_deleter, AtomicsPolicy Atomics = real_atomics>
class counted_block {
 public:
  static_assert(std::is_nothrow_destructible_v<T>);

  template <typename... Args>
  explicit counted_block(Deleter deleter, Args&&... args) noexcept
      : header_{basic_ref_pair<Atomics>(), std::move(deleter)} {
    ::new (static_cast<void*>(storage_)) T(std::forward<Args>(args)...);
  }

  T& object() noexcept { return *std::launder(reinterpret_cast<T*>(storage_)); }
  basic_ref_pair<Atomics>& counts() noexcept { return header_.counts; }

  // The block that `object`, made in one, lies in.
  static counted_block& of(T& object) noexcept {
    auto* const at = reinterpret_cast<std::byte*>(std::addressof(object));
    return *reinterpret_cast<counted_block*>(at - storage_offset);
  }

  void put_strong() noexcept {
    if (!header_.counts.put_strong()) return;
    object().~T();
    put_weak();
  }

  void put_weak() noexcept {
    if (!header_.counts.put_weak()) return;
    Deleter deleter = std::move(header_.deleter);
    this->~counted_block();
    deleter(this, sizeof(counted_block), alignof(counted_block));
  }

 private:
  struct header {
    basic_ref_pair<Atomics> counts;
    [[no_unique_address]] Deleter deleter;
  };
  static constexpr std::size_t storage_offset =
      (sizeof(header) + alignof(T) - 1) / alignof(T) * alignof(T);

  ~counted_block() = default;  // not the object's: that has ended with the last strong reference

  header header_;
  alignas(T) std::byte storage_[sizeof(T)];
};

template <typename T, BlockDeleter Deleter, AtomicsPolicy Atomics>
class weak_ref;

// A strong reference, or none.
template <typename T, BlockDeleter Deleter = heap_deleter, AtomicsPolicy Atomics = real_atomics>
class ref_ptr {
 public:
  using block = counted_block<T, Deleter, Atomics>;

  ref_ptr() noexcept = default;
  // Takes over a strong reference that the caller holds.
  [[nodiscard]] static ref_ptr adopt(block* b) noexcept { return ref_ptr(b); }

  ref_ptr(ref_ptr&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  ref_ptr& operator=(ref_ptr&& other) noexcept {
    ref_ptr old(std::move(other));
    std::swap(block_, old.block_);
    return *this;
  }
  ~ref_ptr() { reset(); }

  // Another strong reference to the same object; none if this is none.
  [[nodiscard]] ref_ptr share() const noexcept {
    if (block_ != nullptr) block_->counts().get_strong();
    return ref_ptr(block_);
  }

  [[nodiscard]] weak_ref<T, Deleter, Atomics> weak() const noexcept {
    if (block_ != nullptr) block_->counts().get_weak();
    return weak_ref<T, Deleter, Atomics>::adopt(block_);
  }

  void reset() noexcept {
    if (block_ != nullptr) std::exchange(block_, nullptr)->put_strong();
  }

  T* get() const noexcept { return block_ == nullptr ? nullptr : &block_->object(); }
  T& operator*() const noexcept { return block_->object(); }
  T* operator->() const noexcept { return &block_->object(); }
  explicit operator bool() const noexcept { return block_ != nullptr; }

 private:
  explicit ref_ptr(block* b) noexcept : block_(b) {}
  block* block_ = nullptr;
};

// A weak reference, or none.
template <typename T, BlockDeleter Deleter = heap_deleter, AtomicsPolicy Atomics = real_atomics>
class weak_ref {
 public:
  using block = counted_block<T, Deleter, Atomics>;

  weak_ref() noexcept = default;
  // Takes over a weak reference that the caller holds.
  [[nodiscard]] static weak_ref adopt(block* b) noexcept { return weak_ref(b); }

  // A weak reference to an object that was made by make_ref() or make_ref_in() with this Deleter,
  // for who holds a strong one and for the object itself, which has no ref_ptr at hand. Taken in
  // the object's constructor or destructor it is allowed too; in the latter lock() gives none.
  [[nodiscard]] static weak_ref of(T& object) noexcept {
    block& b = block::of(object);
    b.counts().get_weak();
    return weak_ref(&b);
  }

  weak_ref(weak_ref&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  weak_ref& operator=(weak_ref&& other) noexcept {
    weak_ref old(std::move(other));
    std::swap(block_, old.block_);
    return *this;
  }
  ~weak_ref() { reset(); }

  // The object, if it is still there.
  [[nodiscard]] ref_ptr<T, Deleter, Atomics> lock() const noexcept {
    if (block_ == nullptr || !block_->counts().get_strong_unless_zero()) return {};
    return ref_ptr<T, Deleter, Atomics>::adopt(block_);
  }

  // Whether lock() will give none from now on.
  bool expired() const noexcept { return block_ == nullptr || block_->counts().strong() == 0; }

  // Another weak reference to the same object.
  [[nodiscard]] weak_ref share() const noexcept {
    if (block_ != nullptr) block_->counts().get_weak();
    return weak_ref(block_);
  }

  void reset() noexcept {
    if (block_ != nullptr) std::exchange(block_, nullptr)->put_weak();
  }

  // Whether there is an object to ask for, gone or not.
  explicit operator bool() const noexcept { return block_ != nullptr; }

 private:
  explicit weak_ref(block* b) noexcept : block_(b) {}
  block* block_ = nullptr;
};

// Makes a T in `memory`, which has the size and alignment of counted_block<T, Deleter> and goes
// back through `deleter`. None, and nothing happens, if `memory` is null.
template <typename T, AtomicsPolicy Atomics = real_atomics, BlockDeleter Deleter, typename... Args>
[[nodiscard]] ref_ptr<T, Deleter, Atomics> make_ref_in(void* memory, Deleter deleter,
                                                       Args&&... args) noexcept {
  if (memory == nullptr) return {};
  using block = counted_block<T, Deleter, Atomics>;
  return ref_ptr<T, Deleter, Atomics>::adopt(
      ::new (memory) block(std::move(deleter), std::forward<Args>(args)...));
}

// Makes a T on the heap; none without memory.
template <typename T, AtomicsPolicy Atomics = real_atomics, typename... Args>
[[nodiscard]] ref_ptr<T, heap_deleter, Atomics> make_ref(Args&&... args) noexcept {
  using block = counted_block<T, heap_deleter, Atomics>;
  void* const memory = detail::heap_memory(sizeof(block), alignof(block));
  return make_ref_in<T, Atomics>(memory, heap_deleter{}, std::forward<Args>(args)...);
}

}  // namespace forebay
