// A waiter on a list, which sleeps on a futex until it is woken.
#pragma once

#include "forebay/ring/wait_list.h"
#include "sim/explorer/model_atomics.h"

namespace forebay::explorer {

struct waiter {
  list_node link;
  model_atomics::atomic<std::uint32_t> woken{0};  // futex word

  void wake() {
    // release, acquire: as a posted completion orders its poster before its runner.
    woken.store(1, std::memory_order_release);
    model_futex::wake(woken);
  }
  bool is_woken() {
    return woken.load(std::memory_order_acquire) != 0;  // acquire: see wake()
  }
  void sleep() {
    while (!is_woken()) model_futex::wait(woken, 0);
  }
};

using wait_list =
    basic_wait_list<waiter, &waiter::link, model_atomics, model_mutex, model_scoped_lock>;

}  // namespace forebay::explorer
