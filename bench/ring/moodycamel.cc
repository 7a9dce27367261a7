// ring_moodycamel: moodycamel::ConcurrentQueue, with a token for each thread, which is its fastest
// way, and with the memory for sixty-four times as many items as the others hold, so that it never
// allocates nor finds itself full. It does not keep the order between producers.
#include <concurrentqueue/concurrentqueue.h>

#include "bench/ring/program.h"

namespace forebay::bench {
namespace {

class mpmc {
 public:
  bool push(std::span<void* const> items) noexcept {
    const moodycamel::ProducerToken& token = mine().producer;
    if (items.size() == 1) return queue_.try_enqueue(token, items[0]);
    return queue_.try_enqueue_bulk(token, items.data(), items.size());
  }
  bool pop(std::span<void*> items) noexcept {
    moodycamel::ConsumerToken& token = mine().consumer;
    if (items.size() == 1) return queue_.try_dequeue(token, items[0]);
    std::size_t n = queue_.try_dequeue_bulk(token, items.data(), items.size());
    if (n == 0) return false;
    for (; n < items.size();
         n += queue_.try_dequeue_bulk(token, items.data() + n, items.size() - n)) {
      cpu_relax();
    }
    return true;
  }

 private:
  struct tokens {
    explicit tokens(moodycamel::ConcurrentQueue<void*>& queue) : producer(queue), consumer(queue) {}
    moodycamel::ProducerToken producer;
    moodycamel::ConsumerToken consumer;
  };
  // Threads come and go with the samples; a producer's blocks are used again by the next one.
  tokens& mine() noexcept {
    thread_local tokens here(queue_);
    return here;
  }

  moodycamel::ConcurrentQueue<void*> queue_{64 * tool::pipe_capacity};
};

}  // namespace
}  // namespace forebay::bench

int main(int argc, char** argv) {
  using namespace forebay::bench;
  return run_program(argc, argv, "moodycamel::ConcurrentQueue", {subject<mpmc>("queue")});
}
