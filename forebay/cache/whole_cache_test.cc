// All of the cache at once: every way to use it in random order, against a flat byte array; and the
// same where any allocation and any bio fails.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "forebay/base/sanitizer.h"
#include "forebay/block/plug.h"
#include "forebay/cache/test_allocations.h"
#include "forebay/cache/test_workload.h"

namespace forebay {

// ---- The device ----

void restless_device::submit(bio& b) noexcept {
  const std::uint64_t n = submitted_++;
  if (n >= fail_first_ && n - fail_first_ < fail_count_) {
    ++failed_;
    return complete(b, -EIO);
  }
  held_.push_back(&b);
  if (!scheduled_) schedule();
}

void restless_device::schedule() noexcept {
  scheduled_ = true;
  release_.self = this;
  release_.run = [](completion& c) noexcept { static_cast<release&>(c).self->let_some_go(); };
  executor::current()->defer(release_);
}

void restless_device::let_some_go() noexcept {
  scheduled_ = false;
  do {
    std::swap(held_[rng_() % held_.size()], held_.back());
    bio& b = *held_.back();
    held_.pop_back();
    if (b.op == bio_op::write || b.op == bio_op::discard || b.op == bio_op::write_zeroes) {
      const auto first = static_cast<std::ptrdiff_t>(b.offset_bytes / page_bytes);
      const auto end = static_cast<std::ptrdiff_t>((b.end_bytes() + page_bytes - 1) / page_bytes);
      std::fill(written_.begin() + first, written_.begin() + end,
                b.op == bio_op::write || (b.flags & bio_no_unmap) != 0);
    }
    below_.submit(b);
  } while (!held_.empty() && rng_() % 2 == 0);
  if (!held_.empty()) schedule();
}

result<file_extent> restless_device::extent_at(std::uint64_t offset_bytes) const {
  std::size_t at = offset_bytes / page_bytes;
  const bool data = written_[at];
  while (at < written_.size() && written_[at] == data) ++at;
  return file_extent{std::min<std::uint64_t>(at * page_bytes, limits_.size_bytes), !data};
}

// ---- The model ----

flat_model::flat_model(std::size_t bytes, bool exact)
    : flat_(exact ? bytes : 0), possible_(exact ? 0 : bytes, std::uint16_t{1}) {}

void flat_model::wrote(std::uint64_t at, std::span<const std::byte> data, bool succeeded) {
  if (is_exact()) {
    std::copy(data.begin(), data.end(), flat_.begin() + static_cast<std::ptrdiff_t>(at));
    return;
  }
  for (const std::byte b : data) {
    possible_[at] = static_cast<std::uint16_t>((succeeded ? 0 : possible_[at]) | bit(b));
    ++at;
  }
}

bool flat_model::found(std::uint64_t at, std::span<const std::byte> data) {
  if (is_exact()) return std::memcmp(&flat_[at], data.data(), data.size()) == 0;
  for (const std::byte b : data) {
    if ((possible_[at] & bit(b)) == 0) return false;
    possible_[at++] = bit(b);
  }
  return true;
}

// ---- The work ----

namespace {

std::unique_ptr<page_cache> cache_of(const workload::options& opts) {
  auto c =
      page_cache::create({.bytes = opts.cache_bytes, .huge_pages = false, .eviction = opts.policy});
  FOREBAY_ASSERT(c.has_value());
  return std::move(*c);
}

}  // namespace

workload::workload(const options& opts)
    : options_(opts),
      rng_(opts.seed),
      memory_(opts.device_bytes),
      restless_(memory_, opts.seed),
      queue_(restless_, {.in_flight_max = 12}),
      cache_(cache_of(opts)),
      reclaim_(*cache_),
      model_(opts.device_bytes, !opts.failing) {
  for (std::uint32_t i = 0; i < opts.frames_taken; ++i) {
    taken_.push_back(page_ref::adopt(*cache_->memory().allocate(0)));
  }
  if (opts.frames_taken != 0) cache_->follow_limit(cache_->memory().free_pages() * page_bytes);
  registry_.add(reclaim_);
  open();
}

workload::~workload() {
  let_go();
  associated_.reset();
  space_.reset();
  registry_.remove(reclaim_);
}

void workload::open() {
  static constexpr std::uint32_t sizes[] = {512, 1024, 4096};
  space_.emplace(*cache_, queue_,
                 address_space::options{.block_bytes = sizes[rng_() % 3],
                                        .readahead_bytes = rng_() % 2 == 0 ? 64u << 10 : 0u,
                                        .max_page_order = options_.page_order});
  associated_.emplace(*space_);
}

void workload::let_go() noexcept {
  buffers_.clear();
  pins_.clear();
}

workload::range workload::any_range() {
  // Mostly small; now and then what makes large pages.
  static constexpr std::size_t units[] = {1, 64, 512, 512, 4096, 4096, 65536, 1u << 20};
  const std::size_t unit = units[rng_() % (rng_() % 8 == 0 ? 8 : 6)];
  const std::uint64_t at = rng_() % options_.device_bytes / unit * unit;
  const std::size_t bytes = unit == 1u << 20 ? 2 * unit : unit * (1 + rng_() % 4);
  return {at, std::min<std::size_t>(bytes, options_.device_bytes - at)};
}

bool workload::is_free(const range& r) const {
  return std::none_of(busy_.begin(), busy_.end(),
                      [&](const range& b) { return r.at < b.end() && b.at < r.end(); });
}

std::span<std::byte> workload::random_data(std::vector<std::byte>& to, std::size_t bytes) {
  to.resize(bytes + sizeof(std::uint64_t));
  std::uint64_t word = rng_();
  for (std::size_t at = 0; at < bytes; at += sizeof word) {
    std::memcpy(&to[at], &word, sizeof word);
    word = word * 0x9e3779b97f4a7c15 + 1;
    word ^= word >> 29;
  }
  return std::span(to).first(bytes);
}

void workload::expect_found(std::uint64_t at, std::span<const std::byte> data, const char* by) {
  EXPECT_TRUE(model_.found(at, data))
      << by << ": " << data.size() << " bytes at " << at << ", operation " << operations_;
}

// True if it was done. A block may be in other hands with another size.
bool workload::expect_done(const std::error_code& e, const char* what) {
  EXPECT_TRUE(!e || options_.failing || e.value() == EBUSY)
      << what << ": " << e.message() << ", operation " << operations_;
  return !e;
}

task<> workload::write(range r) {
  std::vector<std::byte> memory;
  const auto data = random_data(memory, r.bytes);
  const std::size_t quick = rng_() % 4 == 0 ? space_->try_write(r.at, data) : 0;
  const auto done = co_await space_->write(r.at + quick, data.subspan(quick));
  model_.wrote(r.at, data, expect_done(done, "write"));
  if (done && rng_() % 16 == 0) {
    expect_done(co_await space_->sync_range(r.at, r.bytes), "sync_range");
  }
  co_return result<>{};
}

task<> workload::zero(range r, bool discards) {
  if (discards) {
    const std::uint64_t first = (r.at + page_bytes - 1) / page_bytes * page_bytes;
    const std::uint64_t end =
        r.end() == options_.device_bytes ? r.end() : r.end() / page_bytes * page_bytes;
    r = {first, end > first ? static_cast<std::size_t>(end - first) : 0};
  }
  const std::vector<std::byte> zeros(r.bytes);
  const bool keeps = rng_() % 2 == 0;
  auto work = discards ? space_->discard(r.at, r.bytes)
                       : space_->write_zeroes(r.at, r.bytes, {.keep_allocated = keeps});
  const auto done = co_await std::move(work);
  model_.wrote(r.at, zeros, expect_done(done, "zero"));
  co_return result<>{};
}

task<> workload::read(range r) {
  std::vector<std::byte> out(r.bytes);
  const auto done = co_await space_->read(r.at, out);
  if (expect_done(done, "read")) expect_found(r.at, out, "read");
  co_return result<>{};
}

task<> workload::pin(range r) {
  std::array<page_ref, 8> pins;
  const auto n = co_await space_->pin(r.at, r.bytes, pins);
  if (!expect_done(n, "pin")) co_return result<>{};
  for (page_ref& p : std::span(pins).first(*n)) {
    const std::uint64_t from = std::max(r.at, p->offset_bytes());
    const std::uint64_t to = std::min<std::uint64_t>(r.end(), p->end_bytes());
    expect_found(from, {p->data() + (from - p->offset_bytes()), to - from}, "pin");
    if (rng_() % 8 == 0 && pins_.size() < 4) pins_.push_back(std::move(p));
  }
  co_return result<>{};
}

void workload::view(range r) {
  std::vector<std::byte> out(page_bytes);
  const auto part = std::span(out).first(std::min(r.bytes, page_bytes - r.at % page_bytes));
  if (const auto v = space_->try_view(r.at / page_bytes)) {
    v.copy(r.at % page_bytes, part);
    EXPECT_TRUE(v.still_valid());
    expect_found(r.at, part, "view");
  }
  if (const std::size_t n = space_->try_read(r.at, part); n != 0) {
    expect_found(r.at, part.first(n), "try_read");
  }
}

task<> workload::change_block(std::uint64_t block, std::uint32_t size, unsigned way) {
  const std::uint64_t at = block * size;
  std::vector<std::byte> memory;
  const auto data = random_data(memory, size);
  const bool blind = way % 4 == 0;  // overwritten without having been read
  auto get = blind ? getblk_async(*space_, block, size) : bread_async(*space_, block, size);
  auto got = co_await std::move(get);
  if (!expect_done(got, "bread")) co_return result<>{};
  bh_ref b = std::move(*got);
  if (!blind) expect_found(at, b->bytes(), "bread");
  if (blind || way % 4 == 1) {
    const auto locked = co_await lock_buffer_async(*b);
    if (!expect_done(locked, "lock_buffer")) co_return result<>{};
    std::memcpy(b->data, data.data(), size);
    set_buffer_uptodate(*b);
    if (way % 8 < 4) {
      mark_buffer_dirty(*b);
    } else {
      mark_buffer_dirty_inode(*b, *associated_);
    }
    unlock_buffer(*b);
    model_.wrote(at, data, true);
  }
  if (way % 32 >= 28) {
    const bool synced = expect_done(co_await sync_dirty_buffer_async(*b), "sync_dirty_buffer");
    if (synced && way % 2 == 0) {
      expect_done(co_await bforget_async(std::move(b)), "bforget");
      co_return result<>{};
    }
  }
  if (way % 64 >= 56 && buffers_.size() < 4) buffers_.push_back(std::move(b));
  co_return result<>{};
}

task<> workload::together(std::span<task<>> tasks) {
  task_group all;
  // Without memory for it a task does not begin.
  for (task<>& t : tasks) static_cast<void>(std::move(t).spawn(all));
  co_await all.idle();
  co_return result<>{};
}

task<> workload::checked(task<> work, const char* what) {
  expect_done(co_await std::move(work), what);
  co_return result<>{};
}

// One random operation, on bytes that no other one of this step has; none if there is nothing to
// wait for.
std::optional<task<>> workload::one() {
  const auto what = static_cast<unsigned>(rng_() % 64);
  const auto way = static_cast<unsigned>(rng_() % 64);
  range r = any_range();
  if (what < 20) {
    r = {rng_() % (options_.device_bytes / block_bytes_) * block_bytes_, block_bytes_};
  }
  if (!is_free(r)) return std::nullopt;
  busy_.push_back(r);
  ++operations_;
  if (what < 20) return change_block(r.at / block_bytes_, block_bytes_, way);
  if (what < 32) return write(r);
  if (what < 44) return read(r);
  if (what < 48) return pin(r);
  if (what < 50) return zero(r, what == 49);
  if (what == 50) return checked(space_->prefetch(r.at, r.bytes), "prefetch");
  if (what == 51) return checked(space_->sync_range(r.at, r.bytes), "sync_range");
  if (what < 60) {
    view(r);
    return std::nullopt;
  }
  if (way >= 16) return std::nullopt;
  if (what == 60) return checked(space_->flush(), "flush");
  if (what == 61) return checked(sync_mapping_buffers_async(*associated_), "sync_mapping_buffers");
  if (what == 62) return checked(invalidate_bdev_async(*space_), "invalidate_bdev");
  const std::uint64_t count = std::max<std::uint64_t>(r.bytes / block_bytes_, 1);
  const std::uint64_t block = r.at / block_bytes_;
  return checked(
      breadahead_async(*space_, std::min(block, options_.device_bytes / block_bytes_ - count),
                       block_bytes_, count),
      "breadahead");
}

void workload::step() {
  if (rng_() % 8 == 0) between_steps();
  busy_.clear();
  std::vector<task<>> tasks;
  const std::size_t most = rng_() % 2 == 0 ? 1 : 4;
  for (std::size_t i = 0; i < most; ++i) {
    if (auto t = one()) tasks.push_back(std::move(*t));
  }
  if (tasks.empty()) return;
  std::optional<plug> gather;
  if (rng_() % 4 == 0) gather.emplace();
  static_cast<void>(sync_wait(together(tasks)));
}

void workload::between_steps() {
  const std::uint64_t what = rng_() % 64;
  if (what < 32) return let_go();
  if (what < 36 && !pins_.empty()) {
    cache_->split(*pins_.back());
    return let_go();
  }
  if (what == 40) {
    let_go();  // or who looks for a block would meet those that have it with the other size
    block_bytes_ = 512u << rng_() % 4;
  }
  if (what < 44 && options_.frames_taken == 0 && rng_() % 4 == 0) return resize();
  if (what != 63 || options_.failing) return;
  let_go();
  ASSERT_TRUE(sync_wait(space_->flush()));
  associated_.reset();
  open();
}

// Another limit to the cache's memory.
void workload::resize() {
  arena& memory = cache_->memory();
  const std::uint64_t bytes = options_.cache_bytes;
  const std::uint64_t limit = rng_() % 2 == 0 ? UINT64_MAX : bytes / 2 + rng_() % (bytes / 2);
  memory.set_limit_bytes(limit);
  cache_->follow_limit(limit);
  if (memory.excess_bytes() == 0) return;
  registry_.shrink(memory.excess_bytes(), shrink_goal::give_back);
  memory.trim();
}

void workload::settle() {
  let_go();
  ASSERT_TRUE(sync_wait(space_->flush()));
  std::vector<std::byte> out(options_.device_bytes);
  ASSERT_TRUE(sync_wait(space_->read(0, out)));
  EXPECT_TRUE(model_.found(0, out));
  EXPECT_EQ(std::memcmp(out.data(), memory_.contents().data(), out.size()), 0);
  ASSERT_TRUE(sync_wait(block_api::sync(*associated_)));
  EXPECT_TRUE(associated_->empty());
  associated_.reset();
  space_.reset();
  taken_.clear();
  cache_->memory().set_limit_bytes(UINT64_MAX);
  const page_cache_statistics s = cache_->statistics();
  EXPECT_EQ(s.resident_pages + s.dirty_pages + s.writeback_pages + s.error_pages, 0u);
  EXPECT_EQ(queue_.statistics().in_flight, 0u);
  EXPECT_EQ(cache_->nodes().statistics().objects_in_use, 0u);
  EXPECT_EQ(cache_->buffers().slabs().statistics().objects_in_use, 0u);
  EXPECT_EQ(cache_->bios().statistics().objects_in_use, cache_->bios().reserved());
  // A pin that was lost keeps its frame, unless the arena has given its chunk back.
  if (options_.frames_taken != 0) expect_all_given_back(*cache_);
}

namespace {

constexpr std::size_t mib = 1u << 20;

TEST(whole_cache, agrees_with_a_flat_array) {
  const bool stress = std::getenv("FOREBAY_STRESS") != nullptr;
  const char* const wish = std::getenv("FOREBAY_MODEL_OPERATIONS");
  const std::uint64_t usual = FOREBAY_TSAN ? 600 : FOREBAY_ASAN ? 8'000 : 40'000;
  const std::uint64_t wanted = wish != nullptr ? std::strtoull(wish, nullptr, 0)
                               : stress        ? 100'000'000
                                               : usual;
  const char* const first = std::getenv("FOREBAY_MODEL_SEED");
  std::uint64_t seed = first != nullptr ? std::strtoull(first, nullptr, 0) : 1;
  const std::uint64_t of_a_run =
      stress || wish != nullptr ? 200'000 : usual / (FOREBAY_TSAN ? 2 : 8);
  for (std::uint64_t done = 0; done < wanted && !testing::Test::HasFailure(); ++seed) {
    static constexpr unsigned orders[] = {4, 0, 9};
    const unsigned order = orders[seed % 3];
    const std::size_t cache_bytes = order == 9 ? 12 * mib : 4 * mib;
    workload w({.seed = seed,
                .policy = all_eviction_policies[seed % 4],
                .page_order = order,
                .cache_bytes = cache_bytes,
                .device_bytes = 2 * cache_bytes + 4096 * (seed % 5) + 512 * (seed % 8)});
    while (w.operations() < of_a_run && !testing::Test::HasFailure()) w.step();
    if (!testing::Test::HasFailure()) w.settle();
    done += w.operations();
    if (testing::Test::HasFailure() || stress) {
      std::printf(
          "seed %llu: %llu operations, %llu in all\n", static_cast<unsigned long long>(seed),
          static_cast<unsigned long long>(w.operations()), static_cast<unsigned long long>(done));
      std::fflush(stdout);
    }
  }
}

// What fails: one allocation or bio of a run, or all from it on.
struct sweep {
  workload::options opts;
  std::uint64_t allocations = 0;  // that a run without failures has
  std::uint64_t bios = 0;
  std::uint64_t runs = 0;
  std::uint64_t hit = 0;  // of these, how many failed somewhere

  static constexpr std::uint64_t none = UINT64_MAX;

  void run(std::uint64_t allocation, std::uint64_t bio, bool for_good) {
    SCOPED_TRACE(testing::Message()
                 << "policy " << to_string(opts.policy) << ", allocation "
                 << static_cast<std::int64_t>(allocation) << ", bio "
                 << static_cast<std::int64_t>(bio) << (for_good ? " and on" : ""));
    workload w(opts);
    const std::uint64_t failed_before = allocations_failed;
    const std::int64_t left =
        allocation == none ? INT64_MAX - 1 : static_cast<std::int64_t>(allocation);
    if (bio != none) w.dev().fail(bio, for_good ? UINT64_MAX : 1);
    allocations_left = left;
    for (int i = 0; i < steps && !testing::Test::HasFailure(); ++i) {
      w.step();
      if (!for_good && allocations_failed != failed_before) allocations_left = INT64_MAX;
    }
    if (allocation == none && bio == none) {
      allocations = static_cast<std::uint64_t>(left - allocations_left);
      bios = w.dev().submitted();
    }
    allocations_left = INT64_MAX;
    w.dev().fail(0, 0);
    ++runs;
    if (w.dev().failed() != 0 || allocations_failed != failed_before) ++hit;
    if (!testing::Test::HasFailure()) w.settle();
  }

  static constexpr int steps = 60;
};

// In a cache of a few frames, so that the policy has work to do.
TEST(whole_cache, ends_everything_when_anything_fails) {
  const bool stress = std::getenv("FOREBAY_STRESS") != nullptr;
  const std::uint64_t usual = FOREBAY_TSAN ? 2 : FOREBAY_ASAN ? 6 : 20;
  std::uint64_t runs = 0;
  std::uint64_t hit = 0;
  for (const eviction_policy policy : all_eviction_policies) {
    sweep s{{.seed = 11 + static_cast<std::uint64_t>(policy),
             .policy = policy,
             .page_order = 4,
             .device_bytes = (640u << 10) + 512,
             .frames_taken = 900,
             .failing = true}};
    s.run(sweep::none, sweep::none, false);
    EXPECT_GT(s.bios, 50u);
    EXPECT_TRUE(s.allocations > 100 || !can_refuse_memory);
    // All of them, or so many.
    const std::uint64_t bio_step = stress ? 1 : s.bios / usual + 1;
    const std::uint64_t allocation_step = stress ? 1 : s.allocations / usual + 1;
    for (const bool for_good : {false, true}) {
      for (std::uint64_t n = 0; n < s.bios; n += bio_step) {
        if (testing::Test::HasFailure()) return;
        s.run(sweep::none, n, for_good);
      }
      for (std::uint64_t n = 0; n < s.allocations; n += allocation_step) {
        if (testing::Test::HasFailure()) return;
        s.run(n, sweep::none, for_good);
      }
    }
    runs += s.runs;
    hit += s.hit;
  }
  EXPECT_GT(hit, runs * 3 / 4);
  if (stress) std::printf("%llu runs\n", static_cast<unsigned long long>(runs));
}

}  // namespace
}  // namespace forebay
