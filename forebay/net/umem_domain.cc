#include "forebay/net/umem_domain.h"

#include <bit>
#include <new>

namespace forebay {
namespace {

dma_limits limits_of(std::uint32_t frame_bytes) noexcept {
  dma_limits l;
  l.max_segment_bytes = frame_bytes;
  l.boundary_mask = frame_bytes - 1u;
  return l;
}

bool has_memory(const arena& memory, std::uint32_t chunk) noexcept {
  const chunk_state s = memory.info(chunk).state;
  return s == chunk_state::online || s == chunk_state::isolated;
}

}  // namespace

result<std::unique_ptr<umem_domain>> umem_domain::create(arena& memory, std::uint32_t frame_bytes,
                                                         const dma_check_options& checks) {
  if (!std::has_single_bit(frame_bytes) || frame_bytes < 2048 || frame_bytes > page_bytes) {
    return fail(EINVAL);
  }
  const std::size_t count = memory.chunk_count() / word_bits + 1;
  words lost(new (std::nothrow) std::atomic<std::uint64_t>[count]());
  if (lost == nullptr) return fail(ENOMEM);
  std::unique_ptr<umem_domain> made(new (std::nothrow)
                                        umem_domain(memory, frame_bytes, std::move(lost), checks));
  if (made == nullptr) return fail(ENOMEM);
  return made;
}

umem_domain::umem_domain(arena& memory, std::uint32_t frame_bytes, words lost,
                         const dma_check_options& checks) noexcept
    // The kernel has the memory mapped for itself, and reaches it whatever this process may do.
    : dma_domain("umem", limits_of(frame_bytes), dma_guardable::all, checks),
      arena_(memory),
      lost_(std::move(lost)),
      watcher_(*this) {
  arena_.add_device(watcher_);
  // After that, so that no chunk leaves unseen.
  std::size_t bytes = 0;
  for (std::uint32_t c = 0; c < memory.chunk_count(); ++c) {
    const std::span<std::byte> part = memory.memory_of(c);
    if (has_memory(memory, c)) {
      bytes = static_cast<std::size_t>(part.data() - memory.memory().data()) + part.size();
    } else {
      lose(c);
    }
  }
  area_ = memory.memory().first(bytes);
}

umem_domain::~umem_domain() { arena_.remove_device(watcher_); }

}  // namespace forebay
