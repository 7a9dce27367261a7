#include "forebay/serve/inflight_log.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "forebay/base/cache_line.h"

namespace forebay {
namespace {

constexpr std::uint16_t log_version = 1;

// The steps stay in their order: who looks at them when this process has gone sees all stores up to
// some moment.
template <typename T>
void set(T& word, std::type_identity_t<T> value) noexcept {
  // release: after every store before it.
  std::atomic_ref<T>(word).store(value, std::memory_order_release);
}
template <typename T>
T get(T& word) noexcept {
  // relaxed: read while nobody works with the log, and checked.
  return std::atomic_ref<T>(word).load(std::memory_order_relaxed);
}

}  // namespace

struct inflight_log::split_entry {
  std::uint8_t inflight;
  std::uint8_t unused[5];
  std::uint16_t next;
  std::uint64_t counter;
};

struct inflight_log::split_header {
  std::uint64_t features;
  std::uint16_t version;
  std::uint16_t desc_num;
  std::uint16_t last_batch_head;
  std::uint16_t used_idx;
};

struct inflight_log::packed_entry {
  std::uint8_t inflight;
  std::uint8_t unused;
  std::uint16_t next;
  std::uint16_t last;
  std::uint16_t num;
  std::uint64_t counter;
  std::uint16_t id;
  std::uint16_t flags;
  std::uint32_t len;
  std::uint64_t addr;
};

struct inflight_log::packed_header {
  std::uint64_t features;
  std::uint16_t version;
  std::uint16_t desc_num;
  std::uint16_t free_head;
  std::uint16_t old_free_head;
  std::uint16_t used_idx;
  std::uint16_t old_used_idx;
  std::uint8_t used_wrap_counter;
  std::uint8_t old_used_wrap_counter;
  std::uint8_t unused[10];
};

std::size_t inflight_log::bytes_for(std::uint16_t queue_size) noexcept {
  static_assert(sizeof(split_entry) == 16 && sizeof(split_header) == 16 &&
                sizeof(packed_entry) == 32 && sizeof(packed_header) == 32);
  return round_up(sizeof(packed_header) + queue_size * sizeof(packed_entry), 64);
}

inflight_log::split_entry& inflight_log::split_at(std::uint16_t i) const noexcept {
  return reinterpret_cast<split_entry*>(memory_.data() + sizeof(split_header))[i];
}

inflight_log::packed_entry& inflight_log::packed_at(std::uint16_t i) const noexcept {
  return reinterpret_cast<packed_entry*>(memory_.data() + sizeof(packed_header))[i];
}

result<inflight_log> inflight_log::open(std::span<std::byte> memory, virtqueue& q) {
  inflight_log log;
  log.size_ = q.size();
  log.is_packed_ = q.is_packed();
  if (memory.size() < bytes_for(log.size_)) return fail(EINVAL);
  log.memory_ = memory;
  log.links_.reset(new (std::nothrow) std::uint16_t[std::max(log.size_, batch_max)]());
  log.again_.reset(new (std::nothrow) pending[log.size_]());
  if (log.links_ == nullptr || log.again_ == nullptr) return fail(ENOMEM);
  auto opened = log.is_packed_ ? log.open_packed(q) : log.open_split(q);
  if (!opened) return fail(opened.error());
  std::sort(log.again_.get(), log.again_.get() + log.again_count_,
            [](const pending& a, const pending& b) { return a.counter < b.counter; });
  if (log.again_count_ != 0) log.counter_ = log.again_[log.again_count_ - 1].counter + 1;
  return log;
}

result<> inflight_log::open_split(virtqueue& q) {
  split_header& h = split();
  const std::uint16_t used = q.published_used();
  if (get(h.version) == 0) {
    set(h.desc_num, size_);
    set(h.used_idx, q.split().used());
    set(h.version, log_version);
    return {};
  }
  if (get(h.version) != log_version || get(h.desc_num) != size_) return fail(EINVAL);
  is_continued_ = true;
  // The last batch, if its publication was seen and what comes after was not done.
  auto batch = static_cast<std::uint16_t>(used - get(h.used_idx));
  if (batch > size_) return fail(EINVAL);
  for (std::uint16_t i = get(h.last_batch_head); batch != 0; --batch) {
    if (i >= size_) return fail(EINVAL);
    set(split_at(i).inflight, 0);
    i = get(split_at(i).next);
  }
  set(h.used_idx, used);
  for (std::uint16_t i = 0; i < size_; ++i) {
    if (get(split_at(i).inflight) == 0) continue;
    again_[again_count_++] = {.counter = get(split_at(i).counter), .number = i};
  }
  q.restart_split(static_cast<std::uint16_t>(used + again_count_), used);
  return {};
}

void inflight_log::format_packed(const virtqueue& q) noexcept {
  packed_header& h = packed();
  for (std::uint16_t i = 0; i < size_; ++i) {
    links_[i] = static_cast<std::uint16_t>(i + 1);
    set(packed_at(i).next, links_[i]);
  }
  used_ = q.packed().used();
  set(h.used_idx, used_.slot);
  set(h.old_used_idx, used_.slot);
  set(h.used_wrap_counter, used_.wrap ? 1 : 0);
  set(h.old_used_wrap_counter, used_.wrap ? 1 : 0);
  set(h.desc_num, size_);
  set(h.version, log_version);
}

result<> inflight_log::open_packed(virtqueue& q) {
  packed_header& h = packed();
  if (get(h.version) == 0) {
    format_packed(q);
    return {};
  }
  if (get(h.version) != log_version || get(h.desc_num) != size_) return fail(EINVAL);
  is_continued_ = true;
  const packed_position old{get(h.old_used_idx), get(h.old_used_wrap_counter) != 0};
  const packed_position now{get(h.used_idx), get(h.used_wrap_counter) != 0};
  std::uint16_t head = get(h.old_free_head);
  if (old.slot >= size_ || now.slot >= size_) return fail(EINVAL);
  used_ = old;
  if (now != old && q.packed().is_used(old)) {
    // It was put; only what comes after is missing.
    used_ = now;
    head = get(h.free_head);
  }
  for (std::uint16_t i = 0; i < size_; ++i) links_[i] = get(packed_at(i).next);
  // The free list says which are not under way, whatever else is written there. Every entry is on
  // it or in one chain, and once: nothing that follows the links leaves the table then.
  free_head_ = head;
  std::array<bool, virtqueue_size_max> seen{};
  std::uint32_t entries = 0;
  const auto visit = [&](std::uint16_t i) {
    ++entries;
    return i < size_ && !std::exchange(seen[i], true);
  };
  for (std::uint16_t i = head; i < size_; i = links_[i]) {
    if (!visit(i)) return fail(EINVAL);
    set(packed_at(i).inflight, 0);
  }
  std::uint32_t slots = 0;
  for (std::uint16_t i = 0; i < size_; ++i) {
    if (get(packed_at(i).inflight) == 0) continue;
    const std::uint16_t n = get(packed_at(i).num);
    if (n == 0 || n > virtqueue::chain_descriptors_max) return fail(EINVAL);
    std::uint16_t at = i;
    for (std::uint16_t k = 0; k < n; ++k) {
      if (!visit(at)) return fail(EINVAL);
      at = links_[at];
    }
    slots += n;
    again_[again_count_++] = {.counter = get(packed_at(i).counter), .number = i, .slots = n};
  }
  if (entries != size_) return fail(EINVAL);
  set(h.free_head, head);
  set(h.old_free_head, head);
  set(h.used_idx, used_.slot);
  set(h.used_wrap_counter, used_.wrap ? 1 : 0);
  set(h.old_used_idx, used_.slot);
  set(h.old_used_wrap_counter, used_.wrap ? 1 : 0);
  packed_position taken = used_;
  taken.advance(static_cast<std::uint16_t>(slots), size_);
  q.restart_packed(taken, used_);
  return {};
}

// The descriptors of the chain of `count` that begins with entry `first`, as packed_ring::take()
// gives them.
void inflight_log::slots_from(std::uint16_t first, std::uint16_t count,
                              std::span<descriptor> out) const noexcept {
  std::uint16_t at = first;
  for (std::uint16_t i = 0; i < count; ++i, at = links_[at]) {
    packed_entry& e = packed_at(at);
    out[i] = {
        .address = get(e.addr), .length = get(e.len), .flags = get(e.flags), .next = get(e.id)};
  }
}

bool inflight_log::next_again(const virtqueue& q, virtqueue::element& e,
                              virtqueue::piece_storage& storage, std::uint16_t& number) noexcept {
  if (again_next_ == again_count_) return false;
  e = {};
  const pending& next = again_[again_next_++];
  number = next.number;
  if (!is_packed_) {
    q.take_again(number, e, storage);
    return true;
  }
  std::array<descriptor, virtqueue::chain_descriptors_max> chain;
  slots_from(number, next.slots, chain);
  q.take_again(std::span(chain).first(next.slots), e, storage);
  e.descriptors = {};
  return true;
}

std::uint16_t inflight_log::taken(const virtqueue::element& e) noexcept {
  if (!is_packed_) {
    split_entry& entry = split_at(e.id);
    set(entry.counter, counter_++);
    set(entry.inflight, 1);
    return e.id;
  }
  // The ring has no more slots than there are entries, so the list has enough.
  const std::uint16_t first = free_head_;
  std::uint16_t at = first;
  std::uint16_t last = first;
  for (const descriptor& d : e.descriptors) {
    packed_entry& entry = packed_at(at);
    set(entry.addr, d.address);
    set(entry.len, d.length);
    set(entry.flags, d.flags);
    set(entry.id, d.next);
    last = at;
    at = links_[at];
  }
  packed_entry& head = packed_at(first);
  set(head.num, static_cast<std::uint16_t>(e.descriptors.size()));
  set(head.last, last);
  set(head.counter, counter_++);
  set(head.inflight, 1);
  // Only now they are off the list; both heads, as nothing is being put.
  free_head_ = at;
  set(packed().free_head, at);
  set(packed().old_free_head, at);
  return first;
}

void inflight_log::before_put(const virtqueue& q, std::uint16_t number,
                              std::uint16_t slots) noexcept {
  if (!is_packed_) {
    set(split_at(number).next, batch_head_);
    set(split().last_batch_head, number);
    batch_head_ = number;
    links_[put_++] = number;
    return;
  }
  std::uint16_t last = number;
  for (std::uint16_t i = 1; i < slots; ++i) last = links_[last];
  links_[last] = free_head_;
  set(packed_at(last).next, free_head_);
  free_head_ = number;
  used_ = q.packed().used_after(slots);
  set(packed().free_head, number);
  set(packed().used_idx, used_.slot);
  set(packed().used_wrap_counter, used_.wrap ? 1 : 0);
  putting_ = number;
  is_putting_ = true;
}

void inflight_log::after_publish(std::uint16_t used) noexcept {
  if (!is_packed_) {
    for (std::uint16_t i = 0; i < put_; ++i) set(split_at(links_[i]).inflight, 0);
    put_ = 0;
    set(split().used_idx, used);
    return;
  }
  if (!std::exchange(is_putting_, false)) return;
  set(packed_at(putting_).inflight, 0);
  set(packed().old_free_head, free_head_);
  set(packed().old_used_idx, used_.slot);
  set(packed().old_used_wrap_counter, used_.wrap ? 1 : 0);
}

}  // namespace forebay
