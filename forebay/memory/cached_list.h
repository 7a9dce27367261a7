// A free list with per-CPU caches: a cpu_cache (cpu_cache.h) before a locked_list.
//
// take() and give() of one item are a few instructions on memory of the CPU, without a lock or an
// atomic operation; batches move between caches and list. take() finds items in the caches of other
// CPUs when the list is empty: that costs a system call and waits for all CPUs.
#pragma once

#include "forebay/memory/cpu_cache.h"
#include "forebay/memory/locked_list.h"

namespace forebay {

class cached_list final : public sized_free_list {
 public:
  explicit cached_list(std::uint32_t capacity) noexcept : cached_list(capacity, {}) {}
  // Without memory for the items, has_memory() is false and nothing else may be called.
  cached_list(std::uint32_t capacity, const cpu_cache::options& opts) noexcept
      : sized_free_list(capacity), list_(capacity), cache_(list_, opts) {}
  bool has_memory() const noexcept { return list_.has_memory(); }

  std::size_t take(std::span<std::uint32_t> items) noexcept override;
  void give(std::span<const std::uint32_t> items) noexcept override;
  std::size_t free_count() const noexcept override { return cache_.cached() + list_.free_count(); }

  cpu_cache& cache() noexcept { return cache_; }

 private:
  locked_list list_;
  cpu_cache cache_;
};

}  // namespace forebay
