// task<T>: a coroutine that ends in a result<T>.
//
// Lazy: it starts when it is awaited or spawned. The awaiting coroutine is resumed by symmetric
// transfer, so chains of tasks need no stack. A task belongs to one executor: it runs on the thread
// that started it. No exception leaves a task (one that would ends the process).
//
// Frames come from the executor's frame memory (see frame_memory.h). None may be had: has_frame()
// tells, awaiting such a task gives ENOMEM, spawning it fails.
//
//   task<std::size_t> read_some(device& d);
//   auto n = co_await read_some(d);          // result<std::size_t>
//   if (!n) co_return fail(n.error());
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

#include "forebay/base/assert.h"
#include "forebay/base/result.h"
#include "forebay/os/clock.h"
#include "forebay/ring/completion.h"
#include "forebay/ring/executor.h"
#include "forebay/ring/frame_memory.h"

namespace forebay {

// A completion that resumes a coroutine.
struct resume_completion : completion {
  resume_completion() noexcept
      : completion(
            [](completion& c) noexcept { static_cast<resume_completion&>(c).handle.resume(); }) {}
  std::coroutine_handle<> handle;
};

// Counts tasks that run on their own and lets one coroutine wait until none is left. One thread.
class task_group {
 public:
  task_group() noexcept = default;
  ~task_group() { FOREBAY_ASSERT(running_ == 0); }
  task_group(const task_group&) = delete;
  task_group& operator=(const task_group&) = delete;

  std::size_t running() const noexcept { return running_; }

  // co_await group.idle(): resumes once running() is 0. At most one coroutine waits at a time.
  auto idle() noexcept {
    struct awaiter {
      task_group& group;
      bool await_ready() const noexcept { return group.running_ == 0; }
      void await_suspend(std::coroutine_handle<> h) noexcept { group.waiter_ = h; }
      void await_resume() const noexcept {}
    };
    return awaiter{*this};
  }

  void started() noexcept { ++running_; }
  void finished() noexcept;

 private:
  std::size_t running_ = 0;
  std::coroutine_handle<> waiter_;
  resume_completion resume_;
};

inline void task_group::finished() noexcept {
  if (--running_ != 0 || !waiter_) return;
  resume_.handle = std::exchange(waiter_, {});
  executor::current()->ready(resume_);
}

namespace detail {

struct task_promise_base {
  static void* operator new(std::size_t bytes) noexcept { return allocate_frame(bytes); }
  static void operator delete(void* frame, std::size_t bytes) noexcept { free_frame(frame, bytes); }

  std::coroutine_handle<> continuation;
  task_group* group = nullptr;  // set for a spawned task: it destroys itself

  std::suspend_always initial_suspend() noexcept { return {}; }

  struct final_awaiter {
    bool await_ready() noexcept { return false; }
    template <typename Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> h) noexcept {
      task_promise_base& p = h.promise();
      if (p.continuation) return p.continuation;
      if (p.group != nullptr) {
        task_group* members = p.group;  // p goes with the frame
        h.destroy();
        members->finished();
      }
      return std::noop_coroutine();
    }
    void await_resume() noexcept {}
  };
  final_awaiter final_suspend() noexcept { return {}; }
  void unhandled_exception() noexcept { std::terminate(); }
};

}  // namespace detail

template <typename T = void>
class [[nodiscard]] task {
 public:
  struct promise_type : detail::task_promise_base {
    std::optional<result<T>> value;

    task get_return_object() noexcept {
      return task(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    static task get_return_object_on_allocation_failure() noexcept { return task(nullptr); }
    void return_value(result<T> r) noexcept { value.emplace(std::move(r)); }
  };

  task(task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  task& operator=(task&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~task() {
    if (handle_) handle_.destroy();
  }

  // Whether there was memory for it, until it is awaited or spawned.
  bool has_frame() const noexcept { return static_cast<bool>(handle_); }

  auto operator co_await() && noexcept {
    struct awaiter {
      std::coroutine_handle<promise_type> handle;
      bool await_ready() const noexcept { return !handle; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<> parent) noexcept {
        handle.promise().continuation = parent;
        return handle;
      }
      result<T> await_resume() noexcept {
        if (!handle) return fail(ENOMEM);
        return std::move(*handle.promise().value);
      }
    };
    return awaiter{handle_};
  }

  // Starts the task on its own, on the calling thread's executor, as a member of `group`; its
  // result is dropped. False, and nothing happens, if its frame could not be allocated.
  [[nodiscard]] bool spawn(task_group& group) && noexcept {
    if (!handle_) return false;
    const auto handle = std::exchange(handle_, {});
    handle.promise().group = &group;
    group.started();
    handle.resume();
    return true;
  }

 private:
  explicit task(std::coroutine_handle<promise_type> h) noexcept : handle_(h) {}
  std::coroutine_handle<promise_type> handle_;
};

// co_await on something that completes a completion: `start` is called with the record and must see
// to it that it is run on the awaiting thread's executor. The value is the completion's result.
template <typename Start>
class await_completion {
 public:
  explicit await_completion(Start start) noexcept : start_(std::move(start)) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) noexcept {
    record_.handle = h;
    start_(static_cast<completion&>(record_));
  }
  std::int32_t await_resume() const noexcept { return record_.status; }

 private:
  Start start_;
  resume_completion record_;
};

// Sleeps at least `ns` nanoseconds on the current executor.
class sleep_for {
 public:
  explicit sleep_for(std::uint64_t ns) noexcept : ns_(ns) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) noexcept {
    resume_.handle = h;
    timer_.deadline_ns = monotonic_clock::in_ns(ns_);
    timer_.done = &resume_;
    executor::current()->start(timer_);
  }
  void await_resume() const noexcept {}

 private:
  std::uint64_t ns_;
  resume_completion resume_;
  timer timer_;
};

namespace detail {

template <typename T>
struct sync_start : completion {
  task<T>* work = nullptr;
  std::optional<result<T>> value;
  bool finished = false;
  task_group group;
};

template <typename T>
task<> run_to_end(sync_start<T>* state) {
  state->value.emplace(co_await std::move(*state->work));
  state->finished = true;
  co_return result<>{};
}

}  // namespace detail

// Runs `work` to its end on the calling thread, which must not be inside an event loop, and returns
// its result.
template <typename T>
result<T> sync_wait(task<T> work) {
  blocking_executor here;
  detail::sync_start<T> state;
  state.work = &work;
  state.run = [](completion& c) noexcept {
    auto& s = static_cast<detail::sync_start<T>&>(c);
    if (!detail::run_to_end(&s).spawn(s.group)) {
      s.value.emplace(fail(ENOMEM));
      s.finished = true;
    }
  };
  here.ready(state);
  here.run_until(state.finished);
  return std::move(*state.value);
}

}  // namespace forebay
