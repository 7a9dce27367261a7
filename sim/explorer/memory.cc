// The engine's memory: which store a load may read, where a store may go, and who learns what.
#include <algorithm>

#include "sim/explorer/engine.h"
#include "sim/explorer/orders.h"

namespace forebay::explorer {

// --- one step of a thread ---

void engine::step_of(unsigned thread, std::uint64_t what) noexcept {
  thread_state& t = threads_[thread];
  hash_ -= last_mix(t.chain);
  t.chain = mix(t.chain, what);
  hash_ += last_mix(t.chain);
}

void engine::check_alive(const word& w, std::source_location where) {
  if (w.gone) {
    fail_with("%s:%u: an atomic is used after its end", where.file_name(), where.line());
  }
  if (w.execution != execution_) {
    fail_with("%s:%u: an atomic is used that was not made in this execution", where.file_name(),
              where.line());
  }
}

// The location of a word, which is entered at its first use.
engine::location& engine::touch(word& w, std::source_location where) {
  check_alive(w, where);
  thread_state& t = me();
  if (t.now.clock_of(w.maker) < w.made_at) {
    fail_with(
        "%s:%u: data race: an atomic is used that another thread has made, and its making "
        "does not happen before",
        where.file_name(), where.line());
  }
  if (w.lane == no_index) {
    if (locations_used_ == locations_max) fail("more atomics than an execution can have");
    w.lane = static_cast<std::uint16_t>(locations_used_++);
    location& fresh = locations_[w.lane];
    const std::uint16_t first = new_store(w.initial);
    stores_[first] = {.value = w.initial,
                      .name = w.name,
                      .time = time_step,
                      .before = no_index,
                      .after = no_index,
                      .message = no_index,
                      .read_by_modify = false};
    fresh = {.name = w.name,
             .order_hash = mix(w.name, 1),
             .common_name = 0,
             .first = first,
             .last = first,
             .used_at = {}};
    hash_ += last_mix(fresh.order_hash);
  }
  location& l = locations_[w.lane];
  l.used_at[self_] = t.now.clock_of(self_);
  return l;
}

std::uint16_t engine::new_store(std::uint64_t value) {
  if (stores_used_ == stores_max) fail("more stores than an execution can have");
  stores_[stores_used_].value = value;
  return stores_used_++;
}

std::uint16_t engine::new_message(const view& v) {
  if (messages_used_ == messages_.size()) messages_.emplace_back();
  messages_[messages_used_].copy(v);
  return messages_used_++;
}

// --- modification order ---

bool engine::has_room_behind(const store_record& s) const noexcept {
  return s.after == no_index || (!s.read_by_modify && stores_[s.after].time - s.time >= 2);
}

void engine::place_behind(std::uint16_t lane, std::uint16_t before, std::uint16_t fresh) {
  location& l = locations_[lane];
  store_record& earlier = stores_[before];
  store_record& s = stores_[fresh];
  s.before = before;
  s.after = earlier.after;
  s.read_by_modify = false;
  earlier.after = fresh;
  hash_ -= last_mix(l.order_hash);
  if (s.after == no_index) {
    if (earlier.time > INT16_MAX - time_step) fail("more stores to one location than there can be");
    s.time = static_cast<std::int16_t>(earlier.time + time_step);
    l.last = fresh;
    l.order_hash = mix(l.order_hash, s.name);
  } else {
    s.time = static_cast<std::int16_t>((earlier.time + stores_[s.after].time) / 2);
    stores_[s.after].before = fresh;
    l.order_hash = mix(l.name, 1);
    for (std::uint16_t i = stores_[l.first].after; i != no_index; i = stores_[i].after) {
      l.order_hash = mix(l.order_hash, stores_[i].name);
    }
  }
  hash_ += last_mix(l.order_hash);
}

// The time that an access by the running thread may not go behind; the first store has time_step.
std::int16_t engine::bound(std::uint16_t lane, std::memory_order order) noexcept {
  const std::int16_t own = std::max(me().now.time_in(lane), time_step);
  return sequential(order) ? std::max(own, common_.time_in(lane)) : own;
}

// --- the common view of sequentially consistent operations ---

void engine::raise_common(std::uint16_t lane, std::uint16_t store) noexcept {
  const store_record& s = stores_[store];
  if (s.time <= common_.time_in(lane)) return;
  common_.raise(lane, s.time);
  location& l = locations_[lane];
  if (l.common_name != 0) hash_ -= last_mix(l.common_name);
  l.common_name = mix(l.name, s.name);
  hash_ += last_mix(l.common_name);
}

void engine::join_common() {
  thread_state& t = me();
  t.now.join_times(common_);
  for (unsigned lane = 0; lane < locations_used_; ++lane) {
    const std::int16_t time = t.now.time_in(lane);
    if (time <= common_.time_in(lane)) continue;
    std::uint16_t s = locations_[lane].last;
    while (stores_[s].time != time) s = stores_[s].before;
    raise_common(static_cast<std::uint16_t>(lane), s);
  }
}

// --- loops that wait ---

bool engine::too_often(std::uint16_t lane, std::uint16_t store) noexcept {
  if (!concurrent_) return false;
  const thread_state& t = me();
  for (unsigned i = 0; i < t.spin_count; ++i) {
    if (t.spins[i].lane == lane && t.spins[i].store == store) {
      return t.spins[i].times >= options_.spin_reads;
    }
  }
  return false;
}

void engine::count_spin(std::uint16_t lane, std::uint16_t store) noexcept {
  thread_state& t = me();
  for (unsigned i = 0; i < t.spin_count; ++i) {
    if (t.spins[i].lane != lane) continue;
    if (t.spins[i].store == store) {
      ++t.spins[i].times;
    } else {
      t.spins[i] = {lane, store, 1};
    }
    return;
  }
  if (t.spin_count == spin_reads_kept) t.spin_count = 0;
  t.spins[t.spin_count++] = {lane, store, 1};
}

// A store to the location: its writer has got on, and so may who waits for a change of it.
void engine::changed(std::uint16_t lane) noexcept {
  me().spin_count = 0;
  for (unsigned i = 1; i <= program_->threads; ++i) {
    thread_state& t = threads_[i];
    if (t.waiting != waits_for::change) continue;
    for (unsigned j = 0; j < t.spin_count; ++j) {
      if (t.spins[j].lane == lane) {
        unblock(i);
        break;
      }
    }
  }
}

// --- loads ---

std::uint16_t engine::choose_store_to_read(word& w, std::memory_order order) {
  for (;;) {
    const std::int16_t from = bound(w.lane, order);
    std::array<std::uint16_t, 64> candidates;
    unsigned n = 0;
    std::uint16_t s = locations_[w.lane].last;
    for (; s != no_index && stores_[s].time >= from && n < candidates.size();
         s = stores_[s].before) {
      if (!too_often(w.lane, s)) candidates[n++] = s;
    }
    if (n != 0) return candidates[pick(n, true)];
    wait_for_change();
  }
}

// The running thread has read `store`: it and what its message tells are known from here on.
void engine::note_read(std::uint16_t lane, std::uint16_t store, std::memory_order order) {
  thread_state& t = me();
  const store_record& s = stores_[store];
  t.now.raise(lane, s.time);
  if (s.message != no_index) {
    if (acquires(order)) {
      t.now.join(messages_[s.message]);
    } else {
      t.to_acquire.join(messages_[s.message]);
      t.has_to_acquire = true;
    }
  }
  if (sequential(order)) raise_common(lane, store);
  step(mix(locations_[lane].name, s.name));
}

std::uint64_t engine::load(word& w, std::memory_order order, std::source_location where) {
  order = order_at(order, where, site_part::load);
  point();
  const location& l = touch(w, where);
  const std::uint16_t s = choose_store_to_read(w, order);
  note_read(w.lane, s, order);
  count_spin(w.lane, s);
  if (trace_.on()) {
    trace_.add({.what = "load",
                .order = to_string(order),
                .thread = self_,
                .location = w.lane,
                .value = stores_[s].value,
                .from = stores_[s].name,
                .old = s != l.last,
                .file = where.file_name(),
                .line = where.line()});
  }
  return stores_[s].value;
}

// --- stores ---

// Leaves with the store what an acquiring reader of it learns.
void engine::publish(std::uint16_t lane, std::uint16_t store, std::memory_order order,
                     std::uint16_t inherited) {
  thread_state& t = me();
  store_record& s = stores_[store];
  t.now.raise(lane, s.time);
  if (releases(order)) {
    s.message = new_message(t.now);
    tick();
  } else if (t.has_released) {
    s.message = new_message(t.released);
  } else {
    s.message = inherited;  // a read-modify-write goes on with the release sequence
    inherited = no_index;
  }
  if (inherited != no_index) messages_[s.message].join(messages_[inherited]);
  if (sequential(order)) raise_common(lane, store);
}

// Behind which store of the location a new one of this order comes: the last one, or an earlier one
// that it may still be placed behind.
std::uint16_t engine::choose_store_to_follow(const word& w, std::memory_order order) {
  const std::int16_t from = bound(w.lane, order);
  std::array<std::uint16_t, 64> candidates{locations_[w.lane].last};
  unsigned n = 1;
  if (options_.store_reordering) {
    std::uint16_t i = locations_[w.lane].last;
    while (stores_[i].time > from && n < candidates.size()) {
      i = stores_[i].before;
      if (stores_[i].time >= from && has_room_behind(stores_[i])) candidates[n++] = i;
    }
  }
  return candidates[pick(n, true)];
}

void engine::store(word& w, std::uint64_t value, std::memory_order order,
                   std::source_location where) {
  order = order_at(order, where, site_part::store);
  point();
  const location& l = touch(w, where);
  const std::uint16_t before = choose_store_to_follow(w, order);
  const std::uint16_t s = new_store(value);
  stores_[s].name = event_name();
  place_behind(w.lane, before, s);
  publish(w.lane, s, order, no_index);
  step(mix(l.name, 2));
  changed(w.lane);
  if (trace_.on()) {
    trace_.add({.what = "store",
                .order = to_string(order),
                .thread = self_,
                .location = w.lane,
                .value = value,
                .named = stores_[s].name,
                .old = stores_[s].after != no_index,
                .file = where.file_name(),
                .line = where.line()});
  }
}

// --- read-modify-writes ---

std::uint64_t engine::read_modify_write(word& w, modify f, std::uint64_t operand,
                                        std::memory_order order, std::source_location where) {
  order = order_at(order, where, site_part::modify);
  point();
  touch(w, where);
  const std::uint16_t read = choose_store_to_follow(w, order);
  const std::uint64_t old = stores_[read].value;
  modify_store(w.lane, read, f(old, operand), order);
  if (trace_.on()) trace_modify("modify", w, read, order, where);
  return old;
}

// A store right behind `read`, which it has read.
void engine::modify_store(std::uint16_t lane, std::uint16_t read, std::uint64_t value,
                          std::memory_order order) {
  note_read(lane, read, order);
  const std::uint16_t s = new_store(value);
  stores_[s].name = event_name();
  place_behind(lane, read, s);
  stores_[read].read_by_modify = true;
  publish(lane, s, order, stores_[read].message);
  step(mix(locations_[lane].name, 3));
  changed(lane);
}

void engine::trace_modify(const char* what, const word& w, std::uint16_t read,
                          std::memory_order order, std::source_location where) {
  const store_record& s = stores_[stores_used_ - 1];
  trace_.add({.what = what,
              .order = to_string(order),
              .thread = self_,
              .location = w.lane,
              .value = stores_[read].value,
              .other = s.value,
              .from = stores_[read].name,
              .named = s.name,
              .old = s.after != no_index,
              .file = where.file_name(),
              .line = where.line()});
}

bool engine::compare_exchange(word& w, std::uint64_t& expected, std::uint64_t desired, bool weak,
                              std::memory_order success, std::memory_order failure,
                              std::source_location where) {
  success = order_at(success, where, site_part::modify);
  failure = order_at(failure, where, site_part::failure);
  point();
  const location& l = touch(w, where);
  for (;;) {
    const std::int16_t from_success = bound(w.lane, success);
    const std::int16_t from_failure = bound(w.lane, failure);
    std::array<std::uint16_t, 64> candidates;
    std::array<bool, 64> exchanges;
    unsigned n = 0;
    for (std::uint16_t i = l.last; i != no_index && n + 1 < candidates.size();
         i = stores_[i].before) {
      const store_record& s = stores_[i];
      if (s.time < from_success && s.time < from_failure) break;
      const bool equal = s.value == expected;
      if (equal && s.time >= from_success && has_room_behind(s) &&
          (i == l.last || options_.store_reordering)) {
        candidates[n] = i;
        exchanges[n++] = true;
      }
      if (s.time >= from_failure && !too_often(w.lane, i) &&
          (!equal || (weak && spurious_left_ != 0))) {
        candidates[n] = i;
        exchanges[n++] = false;
      }
    }
    if (n == 0) {
      wait_for_change();
      continue;
    }
    const unsigned chosen = pick(n, true);
    const std::uint16_t read = candidates[chosen];
    if (exchanges[chosen]) {
      modify_store(w.lane, read, desired, success);
      if (trace_.on()) trace_modify("exchange", w, read, success, where);
      return true;
    }
    if (stores_[read].value == expected) --spurious_left_;
    note_read(w.lane, read, failure);
    step(4);
    count_spin(w.lane, read);
    if (trace_.on()) {
      trace_.add({.what = "no exchange",
                  .order = to_string(failure),
                  .thread = self_,
                  .location = w.lane,
                  .value = stores_[read].value,
                  .from = stores_[read].name,
                  .old = read != l.last,
                  .file = where.file_name(),
                  .line = where.line()});
    }
    expected = stores_[read].value;
    return false;
  }
}

// --- fences ---

void engine::fence(std::memory_order order, std::source_location where) {
  order = order_at(order, where, site_part::fence);
  // A fence that orders only its own thread's operations need not be a point of its own: the next
  // operation is one.
  if (sequential(order)) point();
  thread_state& t = me();
  if (acquires(order) && t.has_to_acquire) t.now.join(t.to_acquire);
  if (sequential(order)) {
    step(mix(hash_of_common(), 5));
    join_common();
  }
  if (releases(order)) {
    t.released.copy(t.now);
    t.has_released = true;
    tick();
  }
  if (trace_.on()) {
    trace_.add({.what = "fence",
                .order = to_string(order),
                .thread = self_,
                .file = where.file_name(),
                .line = where.line()});
  }
}

std::uint64_t engine::hash_of_common() const noexcept {
  std::uint64_t h = 0;
  for (unsigned lane = 0; lane < locations_used_; ++lane) {
    if (locations_[lane].common_name != 0) h += last_mix(locations_[lane].common_name);
  }
  return h;
}

// --- making and destroying ---

void engine::make(word& w, std::uint64_t value) noexcept {
  thread_state& t = me();
  w.initial = value;
  w.execution = execution_;
  w.maker = static_cast<std::uint8_t>(self_);
  w.made_at = t.now.clock_of(self_);
  w.name = mix(mix(self_, 7), ++t.made);
  w.gone = false;
  w.lane = no_index;
}

void engine::destroy(word& w) noexcept {
  if (w.execution != execution_) return;
  if (w.gone) fail("an atomic is destroyed twice");
  w.gone = true;
  const thread_state& t = me();
  bool ordered = t.now.clock_of(w.maker) >= w.made_at;
  for (unsigned i = 0; ordered && w.lane != no_index && i <= program_->threads; ++i) {
    ordered = locations_[w.lane].used_at[i] <= t.now.clock_of(i);
  }
  if (!ordered) {
    fail(
        "data race: an atomic is destroyed, and a use of it by another thread does not happen "
        "before");
  }
}

void engine::make(plain_word& w) noexcept {
  w = {};
  w.execution = execution_;
  w.writer = static_cast<std::uint8_t>(self_);
  w.written_at = me().now.clock_of(self_);
}

void engine::destroy(plain_word& w) noexcept {
  if (w.execution != execution_) return;
  write(w);
  w.gone = true;
}

void engine::read(plain_word& w) {
  if (w.gone || w.execution != execution_) fail("plain data is read after its end");
  const view& now = me().now;
  if (now.clock_of(w.writer) < w.written_at) {
    fail_with(
        "data race: thread %u reads plain data that thread %u has written, and the write "
        "does not happen before",
        self_, w.writer);
  }
  w.read_at[self_] = now.clock_of(self_);
}

void engine::write(plain_word& w) {
  if (w.gone || w.execution != execution_) fail("plain data is written after its end");
  const view& now = me().now;
  if (now.clock_of(w.writer) < w.written_at) {
    fail_with(
        "data race: thread %u writes plain data that thread %u has written, and that write "
        "does not happen before",
        self_, w.writer);
  }
  for (unsigned i = 0; i <= program_->threads; ++i) {
    if (now.clock_of(i) < w.read_at[i]) {
      fail_with(
          "data race: thread %u writes plain data that thread %u has read, and the read "
          "does not happen before",
          self_, i);
    }
  }
  w.writer = static_cast<std::uint8_t>(self_);
  w.written_at = now.clock_of(self_);
}

}  // namespace forebay::explorer
