// Two threads, each pinned to a CPU of its own, that live as long as the program and run the
// samples; and the means by which a sample knows that somebody else had the CPU.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace forebay::bench {

inline constexpr unsigned crew_size = 2;

class crew {
 public:
  // Thread i is pinned to cpus[i]; `on_start` runs once on each before anything else and returns an
  // empty text or what went wrong. With fewer CPUs there are fewer threads.
  crew(const std::vector<unsigned>& cpus, std::function<std::string()> on_start);
  ~crew();
  crew(const crew&) = delete;
  crew& operator=(const crew&) = delete;

  unsigned size() const noexcept { return static_cast<unsigned>(threads_.size()); }
  const std::string& failure() const noexcept { return failure_; }

  // Runs task(0) to task(count - 1), each on its thread; returns when all have ended.
  void run(unsigned count, const std::function<void(unsigned)>& task);

 private:
  void work(unsigned index, unsigned cpu);

  std::function<std::string()> on_start_;
  const std::function<void(unsigned)>* task_ = nullptr;
  unsigned count_ = 0;
  bool stop_ = false;
  std::string failure_;
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<std::uint32_t> running_{0};
  std::vector<std::thread> threads_;
};

// Waits a moment inside a loop that waits for another CPU; gives the CPU away now and then, so that
// a thread that was preempted comes back.
class patience {
 public:
  void wait() noexcept;

 private:
  unsigned turns_ = 0;
};

// A meeting point of `count` threads, all awake: tens of nanoseconds, no system call if nobody is
// late.
class spin_barrier {
 public:
  explicit spin_barrier(unsigned count) noexcept : count_(count) {}
  void meet() noexcept;

 private:
  const unsigned count_;
  alignas(128) std::atomic<std::uint32_t> arrived_{0};
  alignas(128) std::atomic<std::uint32_t> phase_{0};
};

std::uint64_t now_ns() noexcept;
// How often the calling thread has lost its CPU to another thread without having gone to sleep.
std::uint64_t preemptions() noexcept;

}  // namespace forebay::bench
