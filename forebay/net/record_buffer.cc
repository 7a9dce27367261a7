#include "forebay/net/record_buffer.h"

#include <algorithm>
#include <bit>

#include "forebay/base/stats.h"
#include "forebay/os/clock.h"

namespace forebay {
namespace {

// While room is waited for without a signal for it.
constexpr std::chrono::milliseconds look_again(1);

}  // namespace

result<std::unique_ptr<record_buffer>> record_buffer::create(const options& opts) {
  const bool expands = opts.when_full == exhaustion_policy::expand;
  const std::size_t limit_bytes = expands ? opts.limit_bytes : opts.bytes;
  if (opts.bytes < bytes_min(opts.packet_bytes_max) || limit_bytes < opts.bytes) {
    return fail(errc::too_small);
  }
  // The queue has room for a power of two: as many chunks as keep them below their largest size,
  // unless they would be too small for a packet.
  const std::size_t packet_block = pcapng::packet_block_bytes(opts.packet_bytes_max);
  std::size_t count = std::bit_ceil((opts.bytes + opts.chunk_bytes_max - 1) / opts.chunk_bytes_max);
  count = std::max(count, queue_chunks_min);
  while (count > queue_chunks_min && opts.bytes / count < packet_block) count /= 2;
  const std::size_t chunk_bytes = opts.bytes / count / 4 * 4;
  const std::size_t limit = std::bit_floor(limit_bytes / chunk_bytes);

  // Memory that is not used yet costs address space only.
  const std::size_t chunk_count = std::max(limit, count) + 2;
  auto memory = memory_source::system().map(
      {.bytes = chunk_count * chunk_bytes, .largest = page_backing::huge_transparent});
  if (!memory) return fail(memory.error());
  std::vector<record_chunk> chunks(chunk_count);
  for (std::size_t i = 0; i < chunk_count; ++i) chunks[i].data = memory->data() + i * chunk_bytes;

  std::unique_ptr<record_buffer> made(
      new record_buffer(opts, chunk_bytes, std::move(*memory), std::move(chunks)));
  auto queue = policy_ring<record_chunk*>::create({.capacity = count,
                                                   .when_full = opts.when_full,
                                                   .limit = expands ? std::max(limit, count) : 0,
                                                   .observer = made.get()});
  if (!queue) return fail(queue.error());
  auto empty = spsc_ring<record_chunk*>::create({.capacity = std::bit_ceil(chunk_count)});
  if (!empty) return fail(empty.error());
  made->queue_ = std::move(*queue);
  made->empty_ = std::move(*empty);
  return made;
}

record_buffer::record_buffer(const options& opts, std::size_t chunk_bytes, memory_mapping memory,
                             std::vector<record_chunk> chunks) noexcept
    : options_(opts),
      chunk_bytes_(chunk_bytes),
      memory_(std::move(memory)),
      chunks_(std::move(chunks)),
      filling_(chunks_.data()),
      fresh_(1),
      published_ns_(std::bit_ceil(chunks_.size())) {
  spare_.reserve(chunks_.size());
}

// One to fill: the one that was used last and is likely still in the CPU's cache, or one that was
// never used.
record_chunk* record_buffer::empty_chunk() noexcept {
  record_chunk* c = nullptr;
  if (!spare_.empty()) {
    c = spare_.back();
    spare_.pop_back();
  } else if (!empty_->try_pop(c)) {
    if (fresh_ != chunks_.size()) return &chunks_[fresh_++];
    // All are with the queue, which has room for two fewer, and with who takes out, who has one: it
    // is on its way.
    back_off pause;
    while (!empty_->try_pop(c)) pause.wait();
  }
  c->used = 0;
  c->packets = 0;
  return c;
}

// head_drop: the oldest chunk has been given up.
void record_buffer::dropped(record_chunk* const& oldest) noexcept {
  note(head_drops_, oldest->packets);
  gone_.fetch_add(1, std::memory_order_relaxed);  // relaxed: for an age
  spare_.push_back(oldest);
}

bool record_buffer::too_old(std::uint64_t now_ns) const noexcept {
  if (options_.age_limit_ns == UINT64_MAX) return false;
  const std::uint64_t gone = gone_.load(std::memory_order_relaxed);  // relaxed: for an age
  if (gone == published_) return false;
  const std::uint64_t oldest = published_ns_[gone & (published_ns_.size() - 1)];
  return now_ns > oldest && now_ns - oldest > options_.age_limit_ns;
}

bool record_buffer::under_pressure(std::uint64_t now_ns) const noexcept {
  return options_.when_full == exhaustion_policy::back_pressure && !patient_ &&
         (queue_->pressure() || too_old(now_ns));
}

void record_buffer::drop_newcomer() noexcept {
  note(options_.when_full == exhaustion_policy::back_pressure ? refusals_ : tail_drops_, 1);
}

// Makes the chunk that is being filled one that has room for so many bytes of the period. If the
// one there is cannot be published, the packet they are for is dropped.
bool record_buffer::begin_chunk(std::size_t need, std::uint64_t period,
                                std::uint64_t now_ns) noexcept {
  FOREBAY_DCHECK(need <= chunk_bytes_);
  if (filling_->packets != 0 && !publish(now_ns)) {
    drop_newcomer();
    return false;
  }
  if (need > chunk_bytes_) {
    drop_newcomer();
    return false;
  }
  filling_->period = period;
  return true;
}

// Hands the chunk over and takes an empty one; false if the policy has no room for it, and it
// stays.
bool record_buffer::publish(std::uint64_t now_ns) noexcept {
  if (patient_) return publish_patiently();
  switch (options_.when_full) {
    case exhaustion_policy::head_drop:
      for (record_chunk* oldest = nullptr; too_old(now_ns) && queue_->try_pop(oldest);) {
        dropped(oldest);
      }
      break;
    case exhaustion_policy::block:
      while (too_old(monotonic_clock::now_ns())) std::this_thread::sleep_for(look_again);
      break;
    case exhaustion_policy::tail_drop:
    case exhaustion_policy::back_pressure:
      // Asked for first, so that the queue does not count each time it is tried. Nobody else puts
      // in, so there will be room.
      if (queue_->size() >= queue_->capacity()) return false;
      [[fallthrough]];
    case exhaustion_policy::expand:
      if (too_old(now_ns)) return false;
      break;
  }
  // Before it can be taken: who takes it counts it as gone.
  published_ns_[published_ & (published_ns_.size() - 1)] = now_ns;
  if (!queue_->push(filling_)) return false;
  ++published_;
  filling_ = empty_chunk();
  arrivals_.wake_all();
  return true;
}

// Whatever the policy, room is waited for.
bool record_buffer::publish_patiently() noexcept {
  const std::size_t most = options_.when_full == exhaustion_policy::expand
                               ? std::bit_floor(chunks_.size() - 2)
                               : queue_->capacity();
  while (queue_->size() >= most) std::this_thread::sleep_for(look_again);
  published_ns_[published_ & (published_ns_.size() - 1)] = monotonic_clock::now_ns();
  while (!queue_->push(filling_)) std::this_thread::sleep_for(look_again);
  ++published_;
  filling_ = empty_chunk();
  arrivals_.wake_all();
  return true;
}

void record_buffer::tick(std::uint64_t now_ns) noexcept {
  if (filling_->packets == 0 || now_ns - filling_->started_ns < options_.patience_ns) return;
  // Nobody waits for it while there are others to take; and a queue of small chunks would be full
  // long before its memory is.
  if (queue_->size() != 0) return;
  static_cast<void>(publish(now_ns));
}

void record_buffer::close() noexcept {
  if (filling_->packets != 0) publish_patiently();
  closed_.store(true, std::memory_order_release);  // release: what was published comes before it
  arrivals_.wake_all();
}

record_chunk* record_buffer::try_take() noexcept {
  record_chunk* c = nullptr;
  if (!queue_->try_pop(c)) return nullptr;
  gone_.fetch_add(1, std::memory_order_relaxed);  // relaxed: for an age
  return c;
}

void record_buffer::give_back(record_chunk& c) noexcept {
  // There is room for all the chunks that there are.
  const bool given = empty_->try_push(&c);
  FOREBAY_ASSERT(given);
}

bool record_buffer::worth_a_look() const noexcept {
  return queue_->size() != 0 || closed_.load(std::memory_order_acquire);  // acquire: see close()
}

bool record_buffer::drained() const noexcept {
  return closed_.load(std::memory_order_acquire) && queue_->size() == 0;  // acquire: see close()
}

record_buffer_statistics record_buffer::statistics() const noexcept {
  record_buffer_statistics s;
  s.policy = queue_->statistics();
  s.policy.tail_drops = value_of(tail_drops_);
  s.policy.head_drops = value_of(head_drops_);
  s.policy.refusals = value_of(refusals_);
  s.appended = value_of(appended_);
  s.appended_bytes = value_of(appended_bytes_);
  s.waiting_chunks = queue_->size();
  s.capacity_chunks = queue_->capacity();
  s.chunk_bytes = chunk_bytes_;
  return s;
}

}  // namespace forebay
