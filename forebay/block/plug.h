// plug: holds back the bios that a thread submits to request queues, so that neighbours among them
// become one request (blk_start_plug, blk_finish_plug of Linux).
//
//   {
//     plug gather;
//     for (...) queue.submit(...);   // neighbours are merged, nothing goes down yet
//   }                                // what was gathered goes down
//
// They go down when the thread's last plug goes, when `gathered_max` requests have come together,
// and when the executor has nothing else ready: so a coroutine may be suspended while it holds a
// plug. Plugs may nest, and those of several coroutines of one thread may overlap.
//
// One thread, which has an executor.
#pragma once

#include "forebay/block/bio.h"

namespace forebay {

class plug {
 public:
  static constexpr unsigned gathered_max = 32;

  plug() noexcept;
  ~plug();
  plug(const plug&) = delete;
  plug& operator=(const plug&) = delete;

  // Has what this thread has gathered go down now.
  static void unplug() noexcept;

 private:
  friend class request_queue;
  struct gathering;

  static bool is_plugged() noexcept;
  static void run_deferred(completion& c) noexcept;

  static thread_local constinit gathering here;
  // Merges `b` into one of those gathered, or puts it beside them.
  static void gather(bio& b) noexcept;
};

}  // namespace forebay
