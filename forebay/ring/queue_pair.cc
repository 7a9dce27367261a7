#include "forebay/ring/queue_pair.h"

#include <algorithm>

#include "forebay/os/file.h"

namespace forebay {
namespace {

// Chunks registered by one call.
constexpr std::uint32_t batch = 64;

iovec piece_of(const arena& memory, std::uint32_t chunk) noexcept {
  const std::span<std::byte> part = memory.memory_of(chunk);
  return {part.data(), part.size()};
}

bool has_memory(const arena& memory, std::uint32_t chunk) noexcept {
  const chunk_state s = memory.info(chunk).state;
  return s == chunk_state::online || s == chunk_state::isolated;
}

}  // namespace

result<uring_queue_pair> uring_queue_pair::create(unsigned entries) {
  auto ring = uring::create(entries);
  if (!ring) return fail(ring.error());
  return uring_queue_pair(std::move(*ring));
}

result<std::size_t> uring_queue_pair::register_arena(const arena& memory) {
  if (memory_ != nullptr) return fail(EBUSY);
  const std::uint32_t count = std::min(memory.chunk_count(), max_registered_chunks);
  registered_.assign(count, false);
  if (auto r = ring_.register_memory_table(count); !r) return fail(r.error());
  std::size_t bytes = 0;
  std::error_code error;
  std::array<iovec, batch> pieces{};
  for (std::uint32_t at = 0; at < count && !error;) {
    // A run of chunks with memory.
    std::uint32_t n = 0;
    while (n < batch && at + n < count && has_memory(memory, at + n)) {
      pieces[n] = piece_of(memory, at + n);
      ++n;
    }
    if (n == 0) {
      ++at;
      continue;
    }
    const auto done = ring_.update_memory_table(at, {pieces.data(), n});
    // When some could be registered the next call tells what is wrong with the others.
    if (!done) error = done.error();
    const auto good = static_cast<std::uint32_t>(done.value_or(0));
    for (std::uint32_t i = 0; i < good; ++i) {
      registered_[at + i] = true;
      bytes += pieces[i].iov_len;
    }
    at += good;
  }
  if (error && bytes == 0) {
    static_cast<void>(ring_.unregister_memory());
    return fail(error);
  }
  memory_ = &memory;
  return bytes;
}

result<> uring_queue_pair::register_chunk(std::uint32_t chunk) {
  if (memory_ == nullptr || chunk >= registered_.size()) return fail(EINVAL);
  if (registered_[chunk]) return {};
  if (!has_memory(*memory_, chunk)) return fail(EAGAIN);
  const iovec piece = piece_of(*memory_, chunk);
  if (auto r = ring_.update_memory_table(chunk, {&piece, 1}); !r) return fail(r.error());
  registered_[chunk] = true;
  return {};
}

void uring_queue_pair::unregister_chunk(std::uint32_t chunk) noexcept {
  if (!has_registered_chunk(chunk)) return;
  // Whatever the kernel says: the entry is not used any more, and replaced by the next one.
  registered_[chunk] = false;
  const iovec nothing{};
  static_cast<void>(ring_.update_memory_table(chunk, {&nothing, 1}));
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
  if (memory_ == nullptr) return;
  const std::span<std::byte> all = memory_->memory();
  const std::uintptr_t start =
      reinterpret_cast<std::uintptr_t>(s.address) - reinterpret_cast<std::uintptr_t>(all.data());
  if (start >= all.size() || s.length > all.size() - start) return;
  const std::size_t chunk = start / arena::chunk_bytes;
  const std::size_t last = (start + std::max(s.length, 1u) - 1) / arena::chunk_bytes;
  if (last != chunk || !has_registered_chunk(static_cast<std::uint32_t>(chunk))) return;
  s.buffer_index = static_cast<std::uint16_t>(chunk);
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
