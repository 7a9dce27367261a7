#include "forebay/block/recorder_device.h"

#include <algorithm>
#include <memory>

namespace forebay {

// The copy that goes below in the place of the caller's bio, so that its end can be logged.
struct recorder_device::forwarded : bio {
  recorder_device* recorder = nullptr;
  bio* original = nullptr;
  std::size_t entry = 0;
};

void recorder_device::submit(bio& b) noexcept {
  if (b.op == bio_op::read) return below_.submit(b);
  auto copy = std::make_unique<forwarded>();
  copy->op = b.op;
  copy->flags = b.flags;
  copy->offset_bytes = b.offset_bytes;
  copy->length_bytes = b.length_bytes;
  copy->segments = b.segments;
  copy->segment_count = b.segment_count;
  copy->recorder = this;
  copy->original = &b;
  recorded_operation r;
  r.op = b.op;
  r.fua = (b.flags & bio_fua) != 0;
  r.offset_bytes = b.offset_bytes;
  r.length_bytes = b.length_bytes;
  for (const iovec& s : b.used_segments()) {
    const auto* data = static_cast<const std::byte*>(s.iov_base);
    r.data.insert(r.data.end(), data, data + s.iov_len);
  }
  copy->run = [](completion& c) noexcept {
    const std::unique_ptr<forwarded> f(static_cast<forwarded*>(&c));
    recorder_device& self = *f->recorder;
    {
      const scoped_lock hold(self.lock_);
      self.log_[f->entry].completed = ++self.clock_;
      self.log_[f->entry].status = f->status;
    }
    complete(*f->original, f->status);
  };
  {
    const scoped_lock hold(lock_);
    copy->entry = log_.size();
    r.submitted = ++clock_;
    log_.push_back(std::move(r));
  }
  below_.submit(*copy.release());
}

std::vector<recorded_operation> recorder_device::log() const {
  const scoped_lock hold(lock_);
  return log_;
}

}  // namespace forebay
