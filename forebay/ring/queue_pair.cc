#include "forebay/ring/queue_pair.h"

#include <algorithm>

#include "forebay/os/file.h"

namespace forebay {
namespace {

// The largest buffer the kernel registers.
constexpr std::size_t piece_bytes = std::size_t{1} << 30;

}  // namespace

result<uring_queue_pair> uring_queue_pair::create(unsigned entries) {
  auto ring = uring::create(entries);
  if (!ring) return fail(ring.error());
  return uring_queue_pair(std::move(*ring));
}

result<> uring_queue_pair::register_arena(const arena& memory) {
  const std::span<std::byte> all = memory.memory();
  std::vector<iovec> pieces;
  for (std::size_t at = 0; at < all.size(); at += piece_bytes) {
    pieces.push_back({all.data() + at, std::min(piece_bytes, all.size() - at)});
  }
  if (auto r = ring_.register_memory(pieces); !r) return r;
  memory_start_ = reinterpret_cast<std::uintptr_t>(all.data());
  memory_bytes_ = all.size();
  return {};
}

result<> uring_queue_pair::register_files(std::span<const int> fds) {
  if (auto r = ring_.register_files(fds); !r) return r;
  files_.assign(fds.begin(), fds.end());
  return {};
}

void uring_queue_pair::use_registered(uring_submission& s) const noexcept {
  // Operations without a descriptor carry -1, and so do empty places in the table.
  const auto file = s.fd < 0 ? files_.end() : std::find(files_.begin(), files_.end(), s.fd);
  if (file != files_.end()) {
    s.fd = static_cast<int>(file - files_.begin());
    s.registered_file = true;
  }
  if (s.opcode != uring_opcode::read && s.opcode != uring_opcode::write) return;
  const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(s.address) - memory_start_;
  if (start >= memory_bytes_ || s.length > memory_bytes_ - start) return;
  const std::size_t piece = start / piece_bytes;
  if ((start + s.length - 1) / piece_bytes != piece) return;
  s.buffer_index = static_cast<std::uint16_t>(piece);
  s.opcode = s.opcode == uring_opcode::read ? uring_opcode::read_fixed : uring_opcode::write_fixed;
}

result<> uring_queue_pair::submit(uring_submission s, completion& done) {
  use_registered(s);
  s.user_data = reinterpret_cast<std::uint64_t>(&done);
  if (auto r = ring_.push(s); !r) return r;
  ++in_flight_;
  return {};
}

result<> uring_queue_pair::ring_doorbell(std::uint64_t timeout_ns) {
  return ring_.submit_and_wait(timeout_ns == 0 ? 0 : 1, timeout_ns);
}

completion* uring_queue_pair::reap() noexcept {
  if (reaped_next_ == reaped_count_) {
    reaped_next_ = 0;
    reaped_count_ = ring_.pop(reaped_);
    if (reaped_count_ == 0) return nullptr;
  }
  const uring_completion& entry = reaped_[reaped_next_++];
  --in_flight_;
  auto* done = reinterpret_cast<completion*>(entry.user_data);
  done->status = entry.result;
  return done;
}

}  // namespace forebay
