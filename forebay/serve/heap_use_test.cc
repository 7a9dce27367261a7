// While requests run, the server takes no memory from the heap: neither tasks nor bios nor buffers.

#include <execinfo.h>

#include <array>
#include <atomic>
#include <cstdlib>

#include "forebay/base/cache_line.h"
#include "forebay/base/sanitizer.h"
#include "forebay/serve/test_server.h"

// The sanitizers bring an allocator of their own.
#define FOREBAY_CAN_COUNT_ALLOCATIONS (!FOREBAY_ASAN && !FOREBAY_TSAN)

namespace {

std::atomic<bool> counting{false};
std::atomic<std::uint64_t> allocations{0};
thread_local bool is_client = false;  // the test's own thread
std::array<void*, 24> first_stack;    // of the first allocation that was counted
int first_depth = 0;

[[maybe_unused]] void count_allocation() noexcept {
  // relaxed: read when everything has ended.
  if (!counting.load(std::memory_order_relaxed) || is_client) return;
  // relaxed: as above.
  if (allocations.fetch_add(1, std::memory_order_relaxed) == 0) {
    is_client = true;  // what this takes does not count
    first_depth = ::backtrace(first_stack.data(), static_cast<int>(first_stack.size()));
    is_client = false;
  }
}

}  // namespace

#if FOREBAY_CAN_COUNT_ALLOCATIONS

extern "C" {

void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

// operator new is made of these.
void* malloc(std::size_t bytes) noexcept {
  count_allocation();
  return __libc_malloc(bytes);
}
void* calloc(std::size_t n, std::size_t bytes) noexcept {
  count_allocation();
  return __libc_calloc(n, bytes);
}
void* realloc(void* memory, std::size_t bytes) noexcept {
  count_allocation();
  return __libc_realloc(memory, bytes);
}
// Magazines of CPU caches (memory/cpu_cache.h) are made by this when there are more free objects
// than ever before, a bounded number in all, and belong to no request: they alone have such an
// alignment.
void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  if (alignment < forebay::no_sharing_bytes) count_allocation();
  return __libc_memalign(alignment, bytes);
}
}

#endif

namespace forebay {
namespace {

constexpr std::uint64_t image_bytes = 64u << 20;

// One request of a mix, and its reply.
void do_one(raw_client& c, std::mt19937_64& rng, const bytes& data) {
  const std::uint64_t page = rng() % (image_bytes / page_bytes - 256);
  const std::uint64_t at = page * page_bytes;
  const auto length = static_cast<std::uint32_t>((1 + rng() % 8) * page_bytes);
  const bytes part(data.begin(), data.begin() + length);
  switch (rng() % 16) {
    case 0:
      EXPECT_EQ(c.write(at + 512, part), 0u) << "not of whole pages";
      break;
    case 1:
      EXPECT_EQ(c.write(at, part, nbd::flag_fua), 0u);
      break;
    case 2:
      EXPECT_EQ(c.write(at, data), 0u) << "a long one";
      break;
    case 3:
      EXPECT_EQ(c.call(nbd::command::read, at, static_cast<std::uint32_t>(data.size())), 0u);
      break;
    case 4:
      EXPECT_EQ(c.call(nbd::command::write_zeroes, at, length), 0u);
      break;
    case 5:
      EXPECT_EQ(c.call(nbd::command::block_status, at, length), 0u);
      break;
    case 6:
      if (rng() % 16 == 0) {
        EXPECT_EQ(c.flush(), 0u);
      }
      break;
    case 7:
    case 8:
    case 9:
    case 10:
      EXPECT_EQ(c.write(at, part), 0u);
      break;
    default:
      EXPECT_EQ(c.call(nbd::command::read, at, length), 0u);
      break;
  }
}

// Hits and misses, writes that fit and writes that wait, at a cache a quarter of the image.
TEST(HeapUse, RequestsTakeNothingFromTheHeap) {
  if (!FOREBAY_CAN_COUNT_ALLOCATIONS) GTEST_SKIP() << "allocations cannot be counted here";
  is_client = true;
  test_server s;
  s.add(named("disk"), image_bytes);
  s.start();
  std::mt19937_64 rng(11);
  const bytes data = random_bytes(rng, 512u << 10);
  {
    raw_client c(s);
    ASSERT_TRUE(c.go("disk", raw_client::headers::structured, {nbd::base_allocation}));
    for (int i = 0; i < 2'000; ++i) do_one(c, rng, data);
    counting = true;
    for (int i = 0; i < 10'000; ++i) do_one(c, rng, data);
    counting = false;
  }
  const std::uint64_t counted = allocations.exchange(0);
  EXPECT_EQ(counted, 0u);
  if (counted != 0) ::backtrace_symbols_fd(first_stack.data(), first_depth, STDERR_FILENO);
  // What is counted is seen: a thread that is not the client.
  counting = true;
  std::thread([] { static_cast<void>(std::make_unique<bytes>(100)); }).join();
  counting = false;
  EXPECT_GE(allocations.load(), 1u);
  is_client = false;
}

}  // namespace
}  // namespace forebay
