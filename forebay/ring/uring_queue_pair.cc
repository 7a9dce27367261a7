#include "forebay/ring/uring_queue_pair.h"

#include <algorithm>
#include <bit>
#include <new>

#include "forebay/os/file.h"

namespace forebay {
namespace {

void* pointer_to(dma_address a) noexcept {
  return std::bit_cast<void*>(static_cast<std::uintptr_t>(to_number(a)));
}

}  // namespace

result<std::unique_ptr<uring_queue_pair>> uring_queue_pair::create(unsigned entries) {
  auto ring = uring::create(entries);
  if (!ring) return fail(ring.error());
  std::unique_ptr<uring_queue_pair> made(new (std::nothrow) uring_queue_pair(std::move(*ring)));
  if (made == nullptr) return fail(ENOMEM);
  return made;
}

result<> uring_queue_pair::register_files(std::span<const int> fds) {
  if (auto r = ring_.register_files(fds); !r) return r;
  files_.assign(fds.begin(), fds.end());
  return {};
}

void uring_queue_pair::use_registered_file(uring_submission& s) const noexcept {
  // Operations without a descriptor carry -1, and so do empty places in the table.
  const auto file = s.fd < 0 ? files_.end() : std::find(files_.begin(), files_.end(), s.fd);
  if (file == files_.end()) return;
  s.fd = static_cast<int>(file - files_.begin());
  s.registered_file = true;
}

// What the request names has to be the device's now.
void uring_queue_pair::check_memory(const uring_request& r) const noexcept {
  if (r.message_ != nullptr) return r.message_->check_access();
  const dma_domain& domain =
      r.opcode_ == uring_opcode::recv ? static_cast<const dma_domain&>(plain_) : registered_;
  const dma_direction d =
      r.opcode_ == uring_opcode::write ? dma_direction::to_device : dma_direction::from_device;
  for (const dma_segment& s : r.segments_) domain.check_access(s, 0, s.length, d);
}

// A transfer of several segments: the kernel wants a vector of them, until it has taken the
// submission.
result<> uring_queue_pair::set_vector(uring_submission& s, const uring_request& r) noexcept {
  const std::span<const dma_segment> segments = r.segments_;
  if (segments.size() > max_segments) return fail(EINVAL);
  if (ring_.queued() == 0) vectors_used_ = 0;
  if (segments.size() > max_segments - vectors_used_) {
    if (auto handed = ring_.submit_and_wait(0); !handed) return handed;
    if (ring_.queued() != 0) return fail(EAGAIN);
    vectors_used_ = 0;
  }
  const std::span<iovec> vector(vectors_.data() + vectors_used_, segments.size());
  for (std::size_t i = 0; i < segments.size(); ++i) {
    vector[i] = {pointer_to(segments[i].address), segments[i].length};
  }
  vector[0].iov_base = static_cast<std::byte*>(vector[0].iov_base) + r.skip_bytes_;
  vector[0].iov_len -= r.skip_bytes_;
  vectors_used_ += segments.size();
  s.opcode = r.opcode_ == uring_opcode::read ? uring_opcode::readv : uring_opcode::writev;
  s.address = vector.data();
  s.length = static_cast<std::uint32_t>(vector.size());
  return {};
}

// The memory of a request, as the kernel wants it.
result<> uring_queue_pair::set_memory(uring_submission& s, const uring_request& r) noexcept {
  if (r.message_ != nullptr) {
    s.address = r.message_->header().get();
    return {};
  }
  const bool transfer = r.opcode_ == uring_opcode::read || r.opcode_ == uring_opcode::write;
  if (!transfer && r.opcode_ != uring_opcode::recv) return {};
  if (r.segments_.empty() || r.skip_bytes_ >= r.segments_[0].length) return fail(EINVAL);
  if (r.segments_.size() > 1) return set_vector(s, r);
  const dma_segment& only = r.segments_[0];
  s.address = pointer_to(only.address + r.skip_bytes_);
  s.length = only.length - r.skip_bytes_;
  if (transfer && registered_.is_registered(only)) {
    s.buffer_index = static_cast<std::uint16_t>(only.region);
    s.opcode =
        r.opcode_ == uring_opcode::read ? uring_opcode::read_fixed : uring_opcode::write_fixed;
  }
  return {};
}

result<> uring_queue_pair::push(uring_submission& s, const completion& done) noexcept {
  s.user_data = std::bit_cast<std::uintptr_t>(&done);
  if (auto r = ring_.push(s); !r) return r;
  ++in_flight_;
  return {};
}

result<> uring_queue_pair::submit(const uring_request& r, completion& done) noexcept {
  uring_submission s{.opcode = r.opcode_,
                     .fd = r.fd_,
                     .offset_bytes = r.offset_bytes_,
                     .extent_bytes = r.extent_bytes_,
                     .flags = r.flags_};
  if (auto set = set_memory(s, r); !set) return set;
  if (registered_.checked() || plain_.checked()) [[unlikely]]
    check_memory(r);
  use_registered_file(s);
  return push(s, done);
}

result<> uring_queue_pair::cancel(const completion& target, completion& done) noexcept {
  uring_submission s{.opcode = uring_opcode::cancel, .address = &target};
  return push(s, done);
}

result<> uring_queue_pair::ring_doorbell(std::uint64_t timeout_ns, unsigned completions) noexcept {
  registered_.answer();
  // What has been taken out of the ring and not been reaped has come.
  const std::size_t come = reaped_count_ - reaped_next_;
  const bool enough = timeout_ns == 0 || come >= completions;
  if (enough && ring_.queued() == 0 && !ring_.pending()) return {};  // the kernel has nothing to do
  return ring_.submit_and_wait(enough ? 0 : completions - static_cast<unsigned>(come), timeout_ns);
}

completion* uring_queue_pair::reap() noexcept {
  if (reaped_next_ == reaped_count_) {
    reaped_next_ = 0;
    reaped_count_ = ring_.pop(reaped_);
    if (reaped_count_ == 0) return nullptr;
  }
  const uring_completion& entry = reaped_[reaped_next_++];
  --in_flight_;
  auto* done = std::bit_cast<completion*>(static_cast<std::uintptr_t>(entry.user_data));
  done->status = entry.result;
  return done;
}

}  // namespace forebay
