#include "forebay/block/plug.h"

#include <array>
#include <utility>

#include "forebay/block/request_queue.h"
#include "forebay/ring/executor.h"

namespace forebay {

// What a thread has gathered. Its members have no destructors, so the thread-local needs no guard.
struct plug::gathering {
  unsigned plugs = 0;
  unsigned count = 0;
  std::array<bio*, plug::gathered_max> requests{};
  executor* deferred_on = nullptr;  // where `waits` is queued; null: nowhere, and count is 0
  completion waits{&plug::run_deferred};
};

thread_local constinit plug::gathering plug::here;

plug::plug() noexcept { ++here.plugs; }

plug::~plug() {
  if (--here.plugs == 0) unplug();
}

bool plug::is_plugged() noexcept { return here.plugs != 0; }

void plug::run_deferred(completion&) noexcept {
  here.deferred_on = nullptr;
  unplug();
}

void plug::unplug() noexcept {
  // A lower device may submit bios of its own to another queue, which gathers them.
  const auto requests = here.requests;
  const unsigned count = std::exchange(here.count, 0);
  for (unsigned i = 0; i < count; ++i) requests[i]->queued.queue->dispatch(*requests[i]);
}

void plug::gather(bio& b) noexcept {
  gathering& g = here;
  executor* const now = executor::current();
  // Of an executor within an executor: the outer one does not run as long as this one waits.
  if (g.deferred_on != nullptr && g.deferred_on != now) return b.queued.queue->dispatch(b);
  b.queued.home = now;
  for (unsigned i = g.count; i-- != 0;) {
    if (g.requests[i]->queued.queue != b.queued.queue) continue;
    bio* const request = b.queued.queue->try_merge(*g.requests[i], b);
    if (request == nullptr) continue;
    g.requests[i] = request;
    return;
  }
  if (g.count == gathered_max) unplug();
  g.requests[g.count++] = &b;
  if (g.deferred_on == nullptr) {
    g.deferred_on = now;
    now->defer(g.waits);
  }
}

}  // namespace forebay
