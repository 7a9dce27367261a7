// A mutex that Clang's thread-safety analysis understands (-Wthread-safety), and the annotations
// that go with it.
//
// `FOREBAY_GUARDED_BY(m)` stands on a field, `FOREBAY_PT_GUARDED_BY(m)` on a pointer to what is
// guarded, `FOREBAY_REQUIRES(m)` on a function that is called with the lock held. Under GCC they
// are nothing.
#pragma once

#include <mutex>

#include "forebay/base/spin.h"

#ifdef __clang__
#define FOREBAY_TSA(x) __attribute__((x))
#else
#define FOREBAY_TSA(x)
#endif
#define FOREBAY_CAPABILITY(name) FOREBAY_TSA(capability(name))
#define FOREBAY_SCOPED_CAPABILITY FOREBAY_TSA(scoped_lockable)
#define FOREBAY_GUARDED_BY(m) FOREBAY_TSA(guarded_by(m))
#define FOREBAY_PT_GUARDED_BY(m) FOREBAY_TSA(pt_guarded_by(m))
#define FOREBAY_REQUIRES(m) FOREBAY_TSA(requires_capability(m))
#define FOREBAY_EXCLUDES(m) FOREBAY_TSA(locks_excluded(m))
#define FOREBAY_ACQUIRE(...) FOREBAY_TSA(acquire_capability(__VA_ARGS__))
#define FOREBAY_RELEASE(...) FOREBAY_TSA(release_capability(__VA_ARGS__))

namespace forebay {

// Held for short sections that never suspend and never do I/O: who meets one held tries for about a
// microsecond before it sleeps, which costs several.
class FOREBAY_CAPABILITY("mutex") mutex {
 public:
  void lock() FOREBAY_ACQUIRE() {
    for (int i = 0; i < tries; ++i) {
      if (m_.try_lock()) return;
      cpu_relax();
    }
    m_.lock();
  }
  void unlock() FOREBAY_RELEASE() { m_.unlock(); }

 private:
  static constexpr int tries = 30;

  std::mutex m_;
};

class FOREBAY_SCOPED_CAPABILITY scoped_lock {
 public:
  explicit scoped_lock(mutex& m) FOREBAY_ACQUIRE(m) : m_(m) { m_.lock(); }
  ~scoped_lock() FOREBAY_RELEASE() { m_.unlock(); }
  scoped_lock(const scoped_lock&) = delete;
  scoped_lock& operator=(const scoped_lock&) = delete;

 private:
  mutex& m_;
};

}  // namespace forebay
