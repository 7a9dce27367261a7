#include "forebay/block/fault_device.h"

#include <algorithm>
#include <memory>

#include "forebay/base/cache_line.h"
#include "forebay/os/clock.h"
#include "forebay/ring/executor.h"

namespace forebay {

// The end of a bio that is to arrive late.
struct fault_device::delayed_end : completion {
  bio* late = nullptr;
  std::int32_t error = 0;
  timer when;
};

// A bio that has not reached the device below yet.
struct fault_device::kept_bio : completion {
  fault_device* self = nullptr;
  bio* late = nullptr;
  executor* home = nullptr;
  timer when;
};

void fault_device::inject(const fault& f) {
  const scoped_lock hold(lock_);
  faults_.push_back(f);
}

void fault_device::set_pace(const device_pace& pace) {
  const scoped_lock hold(lock_);
  pace_ = pace;
}

void fault_device::hang() {
  const scoped_lock hold(lock_);
  hung_ = true;
}

void fault_device::heal() {
  std::vector<kept_bio*> going;
  {
    const scoped_lock hold(lock_);
    faults_.clear();
    pace_ = {};
    hung_ = false;
    going.swap(hanging_);
  }
  for (kept_bio* k : going) k->home->post(*k);
}

std::uint64_t fault_device::injected() const {
  const scoped_lock hold(lock_);
  return injected_;
}

std::optional<fault> fault_device::match(const bio& b) {
  const scoped_lock hold(lock_);
  for (fault& f : faults_) {
    if (f.op != b.op || f.count == 0) continue;
    const bool everywhere = b.op == bio_op::flush;
    if (!everywhere && (b.end_bytes() <= f.start_bytes || b.offset_bytes >= f.end_bytes)) continue;
    if (f.skip > 0) {
      --f.skip;
      continue;
    }
    if (f.count != UINT64_MAX) --f.count;
    ++injected_;
    return f;
  }
  return std::nullopt;
}

// A write of which only the front is stored; the caller's bio fails when that has ended, so its
// memory stays valid.
struct fault_device::partial_write : bio {
  bio* original = nullptr;
  std::int32_t error = 0;
};

void fault_device::store_front(bio& b, std::uint64_t bytes, std::int32_t error) noexcept {
  auto front = std::make_unique<partial_write>();
  front->op = bio_op::write;
  front->offset_bytes = b.offset_bytes;
  front->original = &b;
  front->error = error;
  bytes = round_down(bytes, std::uint64_t{limits().logical_block_bytes});  // a device's least unit
  for (const iovec& s : b.used_segments()) {
    const std::uint64_t n = std::min<std::uint64_t>(s.iov_len, bytes - front->length_bytes);
    if (n == 0) break;
    front->add(static_cast<std::byte*>(s.iov_base), n);
  }
  if (front->length_bytes == 0) return complete(b, -error);
  front->run = [](completion& c) noexcept {
    const std::unique_ptr<partial_write> self(static_cast<partial_write*>(&c));
    complete(*self->original, -self->error);
  };
  below_.submit(*front.release());
}

// Whether the bio has to wait; it is passed on later then.
bool fault_device::keep(bio& b) {
  const scoped_lock hold(lock_);
  if (!hung_ && pace_.bytes_per_second == 0 && pace_.latency_ns == 0) return false;
  auto kept = std::make_unique<kept_bio>();
  kept->self = this;
  kept->late = &b;
  kept->home = executor::current();
  kept->run = [](completion& c) noexcept {
    const std::unique_ptr<kept_bio> k(static_cast<kept_bio*>(&c));
    k->self->below_.submit(*k->late);
  };
  if (hung_) {
    hanging_.push_back(kept.release());
    return true;
  }
  std::uint64_t length_ns = pace_.latency_ns;
  if (pace_.bytes_per_second != 0 && b.is_transfer()) {
    length_ns += b.length_bytes * 1'000'000'000 / pace_.bytes_per_second;
  }
  busy_until_ns_ = std::max(busy_until_ns_, monotonic_clock::now_ns()) + length_ns;
  kept->when.deadline_ns = busy_until_ns_;
  kept->when.done = kept.get();
  kept->home->start(kept.release()->when);
  return true;
}

void fault_device::submit(bio& b) noexcept {
  const std::optional<fault> f = match(b);
  if (!f) {
    if (!keep(b)) below_.submit(b);
    return;
  }
  if (f->partial_bytes && b.op == bio_op::write) {
    return store_front(b, *f->partial_bytes, f->error);
  }
  if (f->delay_ns == 0) return complete(b, -f->error);
  auto end = std::make_unique<delayed_end>();
  end->late = &b;
  end->error = f->error;
  end->when.deadline_ns = monotonic_clock::now_ns() + f->delay_ns;
  end->when.done = end.get();
  end->run = [](completion& c) noexcept {
    const std::unique_ptr<delayed_end> self(static_cast<delayed_end*>(&c));
    complete(*self->late, -self->error);
  };
  executor::current()->start(end.release()->when);
}

}  // namespace forebay
