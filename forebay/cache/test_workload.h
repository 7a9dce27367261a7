// Random work on one address space in every way there is, checked against a flat model: what the
// model test and the fault sweep (whole_cache_test.cc) have in common.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "forebay/block/memory_device.h"
#include "forebay/block/request_queue.h"
#include "forebay/cache/block_api.h"
#include "forebay/cache/shrink.h"
#include "forebay/cache/test_space.h"

namespace forebay {

// A sparse device whose bios end late and in any order, and of which some fail. One thread.
class restless_device final : public device {
 public:
  restless_device(memory_device& below, std::uint64_t seed)
      : below_(below), limits_(below.limits()), rng_(seed), written_(pages_of(below), false) {
    for (std::size_t i = 0; i < written_.size(); ++i) written_[i] = i / 16 % 3 != 0;
    limits_.may_have_holes = true;
    limits_.max_transfer_bytes = 256u << 10;
  }

  const device_limits& limits() const noexcept override { return limits_; }
  void submit(bio& b) noexcept override;
  result<file_extent> extent_at(std::uint64_t offset_bytes) const override;

  // Of all bios from now on, number `first`, and `count - 1` behind it.
  void fail(std::uint64_t first, std::uint64_t count) {
    fail_first_ = submitted_ + first;
    fail_count_ = count;
  }
  std::uint64_t submitted() const noexcept { return submitted_; }
  std::uint64_t failed() const noexcept { return failed_; }

 private:
  struct release : completion {
    restless_device* self = nullptr;
  };

  static std::size_t pages_of(const device& d) {
    return (d.limits().size_bytes + page_bytes - 1) / page_bytes;
  }
  void schedule() noexcept;
  void let_some_go() noexcept;

  memory_device& below_;
  device_limits limits_;
  std::mt19937_64 rng_;
  std::vector<bool> written_;  // of each page: not a hole
  std::vector<bio*> held_;
  release release_;
  bool scheduled_ = false;
  std::uint64_t submitted_ = 0;
  std::uint64_t failed_ = 0;
  std::uint64_t fail_first_ = UINT64_MAX;
  std::uint64_t fail_count_ = 0;
};

// What each byte must be; or may be, where operations fail: then whatever was tried, as a set of
// values modulo 16, which random data tells apart well enough.
class flat_model {
 public:
  flat_model(std::size_t bytes, bool exact);

  bool is_exact() const noexcept { return possible_.empty(); }
  void wrote(std::uint64_t at, std::span<const std::byte> data, bool succeeded);
  // Whether the data may be what there is; it is what there is from now on.
  bool found(std::uint64_t at, std::span<const std::byte> data);

 private:
  static std::uint16_t bit(std::byte b) {
    return static_cast<std::uint16_t>(1u << (std::to_integer<unsigned>(b) % 16));
  }

  std::vector<std::byte> flat_;
  std::vector<std::uint16_t> possible_;
};

class workload {
 public:
  struct options {
    std::uint64_t seed = 1;
    eviction_policy policy = eviction_policy::adaptive;
    unsigned page_order = 0;  // the largest
    std::size_t cache_bytes = page_cache::min_bytes;
    std::size_t device_bytes = 1u << 20;
    std::uint32_t frames_taken = 0;  // of the cache, by somebody else
    bool failing = false;            // operations may fail
  };

  explicit workload(const options& opts);
  ~workload();

  restless_device& dev() noexcept { return restless_; }
  // A step: up to four operations at a time. Failures are added to the test's.
  void step();
  std::uint64_t operations() const noexcept { return operations_; }
  // Nothing fails any more: all arrives on the device and nothing is left behind.
  void settle();

 private:
  struct range {
    std::uint64_t at;
    std::size_t bytes;
    std::uint64_t end() const noexcept { return at + bytes; }
  };

  void open();
  range any_range();
  bool is_free(const range& r) const;
  std::span<std::byte> random_data(std::vector<std::byte>& to, std::size_t bytes);
  void expect_found(std::uint64_t at, std::span<const std::byte> data, const char* by);
  bool expect_done(const std::error_code& e, const char* what);
  template <typename T>
  bool expect_done(const result<T>& r, const char* what) {
    return expect_done(r ? std::error_code{} : r.error(), what);
  }

  std::optional<task<>> one();
  task<> checked(task<> work, const char* what);
  task<> write(range r);
  task<> zero(range r, bool discards);
  task<> read(range r);
  task<> pin(range r);
  void view(range r);
  task<> change_block(std::uint64_t block, std::uint32_t size, unsigned way);
  task<> together(std::span<task<>> tasks);
  void between_steps();
  void resize();
  void let_go() noexcept;

  const options options_;
  std::mt19937_64 rng_;
  memory_device memory_;
  restless_device restless_;
  request_queue queue_;
  std::unique_ptr<page_cache> cache_;
  std::vector<page_ref> taken_;
  shrinker_registry registry_;
  page_cache_shrinker reclaim_;
  flat_model model_;
  std::optional<address_space> space_;
  std::optional<associated_buffers> associated_;
  std::vector<bh_ref> buffers_;  // held from step to step
  std::vector<page_ref> pins_;   // likewise
  std::vector<range> busy_;      // ranges of this step
  std::uint32_t block_bytes_ = 1024;
  std::uint64_t operations_ = 0;
};

}  // namespace forebay
