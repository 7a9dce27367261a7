// The I/O of read-ahead: brings the windows that readahead decides on into the cache.

#include <array>

#include "forebay/cache/address_space.h"
#include "forebay/ring/loop.h"

namespace forebay {
namespace {

// Windows that one object reads at a time.
constexpr std::uint32_t tasks_max = 16;
// Pinned at a time while they are put into the index.
constexpr std::size_t pinned_max = 64;

// Those of this thread's loop. What they work on is waited for by read_ahead_over().
thread_local task_group tasks_of_thread;

}  // namespace

bool address_space::start_read_ahead(const readahead_window& window) noexcept {
  if (loop::current() == nullptr) return false;
  // relaxed: a limit; an excess of one is dropped.
  if (ahead_running_.fetch_add(1, std::memory_order_relaxed) >= tasks_max ||
      !read_ahead_alone(window).spawn(tasks_of_thread)) {
    end_ahead();
  }
  return true;
}

// One is no longer running. Who has waited for that may destroy the space at once, and the
// destructor waits for who is still in here, with the queue in his hands.
void address_space::end_ahead() noexcept {
  ahead_ending_.fetch_add(1, std::memory_order_relaxed);  // relaxed: the next line publishes it
  // release: pairs with read_ahead_over.
  if (ahead_running_.fetch_sub(1, std::memory_order_release) == 1) ahead_ended_.wake_all();
  ahead_ending_.fetch_sub(1, std::memory_order_release);  // release: pairs with the destructor
}

task<> address_space::read_ahead_alone(readahead_window window) {
  co_await read_ahead(window);
  end_ahead();
  co_return result<>{};
}

// Puts the pages of a window into the index and reads them; what somebody has put there is his.
// Ends early without memory, and where a discard is at work.
task<> address_space::read_ahead(readahead_window window) {
  bio_batch batch(*this, cache_.bios(), device_, bio_op::read, 0, bio_class::read_ahead, &end_read);
  std::array<page_ref, pinned_max> pins;
  bool go_on = true;
  for (std::uint32_t i = 0; i < window.count && go_on; ++i) {
    std::uint64_t at = window.piece(i) << page_shift;
    // relaxed: a hint; what is read beyond is zeros.
    const std::uint64_t most = std::min(size_bytes(), ahead_end_.load(std::memory_order_relaxed));
    const std::uint64_t end = std::min(at + (std::uint64_t{window.pages} << page_shift), most);
    while (at < end && go_on) {
      const result<std::size_t> added = co_await add_ahead(at, end - at, pins, batch);
      const std::size_t n = added ? *added : 0;
      go_on = n != 0;
      for (page_ref& p : std::span(pins).first(n)) {
        if (p->offset_bytes() <= window.marker << page_shift &&
            window.marker << page_shift < p->end_bytes()) {
          p->set(page_readahead);
        }
        at = p->end_bytes();
        p.reset();
      }
    }
  }
  co_await batch.drain();
  co_return result<>{};
}

}  // namespace forebay
