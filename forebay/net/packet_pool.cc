#include "forebay/net/packet_pool.h"

#include <array>
#include <new>

namespace forebay {
namespace {

constexpr std::size_t burst_chunk = 64;

result<std::unique_ptr<slab_cache>> make_slab(arena& memory, const packet_pool::options& opts,
                                              const char* part, std::size_t bytes) {
  slab_cache::options o;
  o.name = opts.name + part;
  o.object_bytes = bytes;
  o.debug = opts.debug;
  o.registry = opts.registry;
  o.number_if_name_is_taken = true;
  return slab_cache::create(memory, std::move(o));
}

}  // namespace

result<std::unique_ptr<packet_pool>> packet_pool::create(arena& memory, const options& opts) {
  if (opts.headroom >= opts.buffer_bytes || opts.registry == nullptr) return fail(EINVAL);
  if (opts.buffer_bytes > buffer_bytes_max) return fail(errc::too_large);
  auto buffers = buffer_pool::create(memory, {.name = opts.name,
                                              .buffer_bytes = opts.buffer_bytes,
                                              .count = opts.count,
                                              .limit = opts.limit,
                                              .alignment = opts.alignment,
                                              .debug = opts.debug,
                                              .registry = opts.registry});
  if (!buffers) return fail(buffers.error());
  const std::size_t bytes = (*buffers)->index_limit() * sizeof(packet_buffer);
  auto descriptors = memory_source::system().map({.bytes = bytes});
  if (!descriptors) return fail(descriptors.error());
  auto bare = make_slab(memory, opts, ".bare", sizeof(packet_buffer));
  if (!bare) return fail(bare.error());
  auto arrays =
      make_slab(memory, opts, ".fragments", packet_buffer::fragments_max * sizeof(packet_fragment));
  if (!arrays) return fail(arrays.error());
  std::unique_ptr<packet_pool> pool(new (std::nothrow) packet_pool(
      opts, std::move(*buffers), std::move(*descriptors), std::move(*bare), std::move(*arrays)));
  if (pool == nullptr) return fail(ENOMEM);
  return pool;
}

packet_pool::packet_pool(const options& opts, std::unique_ptr<buffer_pool> buffers,
                         memory_mapping descriptors, std::unique_ptr<slab_cache> bare,
                         std::unique_ptr<slab_cache> fragment_arrays) noexcept
    : descriptors_(reinterpret_cast<packet_buffer*>(descriptors.data())),
      headroom_(static_cast<std::uint32_t>(opts.headroom)),
      buffer_bytes_(static_cast<std::uint32_t>(opts.buffer_bytes)),
      buffers_(std::move(buffers)),
      descriptor_memory_(std::move(descriptors)),
      bare_(std::move(bare)),
      fragment_arrays_(std::move(fragment_arrays)) {}

packet_pool::~packet_pool() = default;

void packet_pool::describe(packet_buffer& p, buffer& b) noexcept {
  new (&p) packet_buffer(*this, packet_block(b), b.data(), buffer_bytes_, b.index(), 0);
}

result<packet> packet_pool::allocate(std::chrono::nanoseconds timeout,
                                     const std::stop_token& stop) noexcept {
  auto b = buffers_->allocate(timeout, stop);
  if (!b) return fail(b.error());
  buffer& taken = *b->release();
  return start(taken, taken.index());
}

std::size_t packet_pool::allocate_burst(std::span<packet> packets) noexcept {
  std::array<buffer*, burst_chunk> taken;
  std::size_t done = 0;
  while (done < packets.size()) {
    const std::size_t n = std::min(packets.size() - done, taken.size());
    if (!buffers_->try_allocate_bulk_raw(std::span(taken).first(n))) break;
    for (std::size_t i = 0; i < n; ++i) packets[done++] = start(*taken[i], taken[i]->index());
  }
  // What is left is less than a chunk.
  for (; done < packets.size(); ++done) {
    packet p = try_allocate();
    if (!p) break;
    packets[done] = std::move(p);
  }
  return done;
}

void packet_pool::release_burst(std::span<packet> packets) noexcept {
  std::array<buffer*, burst_chunk> buffers;
  std::size_t n = 0;
  const auto flush = [&] {
    if (n != 0) static_cast<void>(buffers[0]->pool().free_bulk_raw(std::span(buffers).first(n)));
    n = 0;
  };
  for (packet& held : packets) {
    if (!held) continue;
    packet_buffer& p = *held;
    if (!p.is_plain() || !p.block_.has_one_holder()) {
      held.reset();
      continue;
    }
    buffer& b = p.block_.pool_buffer();
    static_cast<void>(held.release());
    if (n == buffers.size() || (n != 0 && &buffers[0]->pool() != &b.pool())) flush();
    buffers[n++] = &b;
  }
  flush();
}

result<packet> packet_pool::attach(external_block& block, std::span<std::byte> bytes,
                                   std::size_t headroom, std::size_t length) noexcept {
  if (headroom > bytes.size() || length > bytes.size() - headroom) return fail(EINVAL);
  if (bytes.size() >= packet_buffer::length_max) return fail(errc::too_large);
  void* const memory = new_bare();
  if (memory == nullptr) return fail(ENOMEM);
  auto* const p = new (memory)
      packet_buffer(*this, packet_block(block), bytes.data(),
                    static_cast<std::uint32_t>(bytes.size()), 0, packet_buffer::flag_bare);
  p->data_ = static_cast<std::uint32_t>(headroom);
  p->tail_ = static_cast<std::uint32_t>(headroom + length);
  return packet::adopt(*p);
}

packet_pool_statistics packet_pool::statistics() const noexcept {
  return {.buffers = buffers_->statistics(),
          .bare = bare_->statistics(),
          .fragment_arrays = fragment_arrays_->statistics()};
}

}  // namespace forebay
