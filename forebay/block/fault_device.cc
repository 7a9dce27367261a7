#include "forebay/block/fault_device.h"

#include <algorithm>
#include <memory>

#include "forebay/base/cache_line.h"

namespace forebay {

// The end of a bio that is to arrive late.
struct fault_device::delayed_end : completion {
  bio* late = nullptr;
  std::int32_t error = 0;
  timer when;
};

void fault_device::inject(const fault& f) {
  const scoped_lock hold(lock_);
  faults_.push_back(f);
}

void fault_device::heal() {
  const scoped_lock hold(lock_);
  faults_.clear();
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

void fault_device::submit(bio& b) noexcept {
  const std::optional<fault> f = match(b);
  if (!f) return below_.submit(b);
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
