// For tests of what is kept for each CPU.
#pragma once

#include <gtest/gtest.h>
#include <sched.h>

#include "forebay/os/cpu.h"

namespace forebay {

// While it lives the thread stays on the CPU on which it is.
class stay_on_cpu {
 public:
  stay_on_cpu() {
    EXPECT_EQ(sched_getaffinity(0, sizeof before_, &before_), 0);
    EXPECT_TRUE(pin_to_cpu(current_cpu()));
  }
  ~stay_on_cpu() { static_cast<void>(sched_setaffinity(0, sizeof before_, &before_)); }
  stay_on_cpu(const stay_on_cpu&) = delete;
  stay_on_cpu& operator=(const stay_on_cpu&) = delete;

 private:
  cpu_set_t before_{};
};

}  // namespace forebay
