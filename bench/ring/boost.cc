// ring_boost: boost::lockfree::spsc_queue and boost::lockfree::queue.
//
// Their calls for many items take as many as fit, or there are none for many; the adapters go on
// until all have been taken.
#include <boost/lockfree/queue.hpp>
#include <boost/lockfree/spsc_queue.hpp>
#include <boost/version.hpp>

#include "bench/ring/program.h"

namespace forebay::bench {
namespace {

class spsc {
 public:
  bool push(std::span<void* const> items) noexcept {
    if (items.size() == 1) return queue_.push(items[0]);
    std::size_t n = queue_.push(items.data(), items.size());
    if (n == 0) return false;
    for (; n < items.size(); n += queue_.push(items.data() + n, items.size() - n)) cpu_relax();
    return true;
  }
  bool pop(std::span<void*> items) noexcept {
    if (items.size() == 1) return queue_.pop(items[0]);
    std::size_t n = queue_.pop(items.data(), items.size());
    if (n == 0) return false;
    for (; n < items.size(); n += queue_.pop(items.data() + n, items.size() - n)) cpu_relax();
    return true;
  }

 private:
  boost::lockfree::spsc_queue<void*, boost::lockfree::capacity<tool::pipe_capacity>> queue_;
};

class mpmc {
 public:
  bool push(std::span<void* const> items) noexcept {
    if (!queue_.bounded_push(items[0])) return false;
    for (void* const item : items.subspan(1)) {
      while (!queue_.bounded_push(item)) cpu_relax();
    }
    return true;
  }
  bool pop(std::span<void*> items) noexcept {
    if (!queue_.pop(items[0])) return false;
    for (void*& item : items.subspan(1)) {
      while (!queue_.pop(item)) cpu_relax();
    }
    return true;
  }

 private:
  boost::lockfree::queue<void*, boost::lockfree::capacity<tool::pipe_capacity>> queue_;
};

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  using namespace forebay::bench;
  return run_program(argc, argv, "Boost " BOOST_LIB_VERSION,
                     {subject<spsc>("spsc"), subject<mpmc>("queue")});
}
