#include "bench/memory/crew.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

#include <cstring>
#include <ctime>
#include <utility>

#include "forebay/base/spin.h"

namespace forebay::bench {

namespace {

std::string pin(unsigned cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (cpu >= CPU_SETSIZE) return "no CPU " + std::to_string(cpu);
  CPU_SET(cpu, &set);
  const int error = pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
  if (error == 0) return {};
  return "CPU " + std::to_string(cpu) + ": " + std::strerror(error);
}

}  // namespace

std::uint64_t now_ns() noexcept {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(t.tv_nsec);
}

std::uint64_t preemptions() noexcept {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return static_cast<std::uint64_t>(usage.ru_nivcsw);
}

crew::crew(const std::vector<unsigned>& cpus, std::function<std::string()> on_start)
    : on_start_(std::move(on_start)) {
  running_ = static_cast<std::uint32_t>(cpus.size());
  for (unsigned i = 0; i < cpus.size(); ++i) {
    // One after the other: failure_ has one writer.
    threads_.emplace_back([this, i, cpu = cpus[i]] { work(i, cpu); });
    while (running_ > cpus.size() - 1 - i) std::this_thread::yield();
  }
}

crew::~crew() {
  stop_ = true;
  ++generation_;
  generation_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void crew::run(unsigned count, const std::function<void(unsigned)>& task) {
  task_ = &task;
  count_ = count;
  running_ = size();
  ++generation_;
  generation_.notify_all();
  for (std::uint32_t left = running_; left != 0; left = running_) running_.wait(left);
}

void crew::work(unsigned index, unsigned cpu) {
  std::string failure = pin(cpu);
  if (failure.empty() && on_start_) failure = on_start_();
  if (failure_.empty()) failure_ = std::move(failure);
  std::uint32_t seen = generation_;
  --running_;
  while (true) {
    generation_.wait(seen);
    seen = generation_;
    if (stop_) return;
    if (index < count_) (*task_)(index);
    --running_;
    running_.notify_all();
  }
}

void patience::wait() noexcept {
  constexpr unsigned turns_before_yield = 4096;
  if (++turns_ % turns_before_yield == 0) {
    sched_yield();
    return;
  }
  cpu_relax();
}

void spin_barrier::meet() noexcept {
  const std::uint32_t phase = phase_;
  if (++arrived_ == count_) {
    arrived_ = 0;
    ++phase_;
    return;
  }
  patience p;
  while (phase_ == phase) p.wait();
}

}  // namespace forebay::bench
