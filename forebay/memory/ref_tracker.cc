#include "forebay/memory/ref_tracker.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <unordered_map>

#include "forebay/base/assert.h"
#include "forebay/base/debug_names.h"

namespace forebay {
namespace {

constexpr std::uint64_t double_releases_printed = 16;
constexpr std::size_t objects_shown = 4;

constexpr std::uint32_t limit_max = 1u << 20;

// The ticket of a holder for whom there was no record.
constexpr ref_ticket untracked_ticket{.record = UINT32_MAX, .generation = 0};

}  // namespace

struct ref_tracker::record {
  const void* object = nullptr;
  std::uint32_t generation = 0;
  std::uint32_t acquired = none;  // stacks, as keep_stack() numbers them
  std::uint32_t released = none;
  std::uint32_t next = none;  // in the queue of released records
  bool live = false;
};

struct ref_tracker::stored_stack {
  stack_trace trace;  // depth 0: free
};

// The holders that took their references at one place.
struct ref_tracker::group {
  std::uint32_t stack = none;
  std::uint64_t holders = 0;
  std::array<const void*, objects_shown> objects{};  // of the first holders
  stack_trace trace;
};

ref_tracker::ref_tracker(std::string name, options opts)
    : name_(std::move(name)),
      options_{.records_max = std::min(opts.records_max, limit_max),
               .stacks_max = std::min(opts.stacks_max, limit_max),
               .quarantine = std::min(opts.quarantine, limit_max)},
      enabled_(named_in_environment("FOREBAY_REF_DEBUG", name_)) {}

ref_tracker::~ref_tracker() {
  const std::string text = report();
  if (!text.empty()) std::fputs(text.c_str(), stderr);
}

ref_tracker::record& ref_tracker::record_at(std::uint32_t number) const noexcept {
  return chunks_[number / chunk_records][number % chunk_records];
}

bool ref_tracker::add_chunk() noexcept {
  const std::uint32_t chunks_max = (options_.records_max + chunk_records - 1) / chunk_records;
  if (chunks_ == nullptr) {
    chunks_.reset(new (std::nothrow) std::unique_ptr<record[]>[chunks_max]);
    if (chunks_ == nullptr) return false;
    statistics_.bytes += chunks_max * sizeof(chunks_[0]);
  }
  if (chunk_count_ == chunks_max) return false;
  chunks_[chunk_count_].reset(new (std::nothrow) record[chunk_records]);
  if (chunks_[chunk_count_] == nullptr) return false;
  statistics_.bytes += chunk_records * sizeof(record);
  ++chunk_count_;
  return true;
}

// A new record while that is possible and few released ones are in quarantine, the one that was
// released first otherwise; `none` if there is neither.
std::uint32_t ref_tracker::take_record() noexcept {
  if (released_count_ <= options_.quarantine && used_ < options_.records_max &&
      (used_ < chunk_count_ * chunk_records || add_chunk())) {
    return used_++;
  }
  if (oldest_released_ == none) return none;
  const std::uint32_t number = oldest_released_;
  oldest_released_ = record_at(number).next;
  if (oldest_released_ == none) newest_released_ = none;
  --released_count_;
  return number;
}

// The number under which a stack is kept, which is the same for the same stack; `none` if it is
// empty or there is no room.
std::uint32_t ref_tracker::keep_stack(const stack_trace& trace) noexcept {
  if (trace.depth == 0 || options_.stacks_max == 0) return none;
  if (stacks_ == nullptr) {
    stacks_.reset(new (std::nothrow) stored_stack[options_.stacks_max]);
    if (stacks_ == nullptr) return none;
    statistics_.bytes += options_.stacks_max * sizeof(stored_stack);
  }
  constexpr std::uint32_t probes_max = 64;
  const auto start = static_cast<std::uint32_t>(trace.hash() % options_.stacks_max);
  for (std::uint32_t i = 0; i < std::min(probes_max, options_.stacks_max); ++i) {
    const std::uint32_t number = (start + i) % options_.stacks_max;
    stack_trace& kept = stacks_[number].trace;
    if (kept.depth == 0) {
      kept = trace;
      ++statistics_.stacks;
    }
    if (kept == trace) return number;
  }
  return none;
}

stack_trace ref_tracker::stack_of(std::uint32_t stack) const noexcept {
  return stack == none ? stack_trace{} : stacks_[stack].trace;
}

ref_ticket ref_tracker::record_acquire(const void* object) noexcept {
  const stack_trace here = stack_trace::capture(1);
  const scoped_lock held(lock_);
  const std::uint32_t number = take_record();
  if (number == none) {
    ++statistics_.untracked;
    return untracked_ticket;
  }
  record& r = record_at(number);
  r = {
      .object = object, .generation = r.generation + 1, .acquired = keep_stack(here), .live = true};
  ++statistics_.live;
  return {.record = number + 1, .generation = r.generation};
}

bool ref_tracker::record_release(ref_ticket ticket) noexcept {
  const stack_trace here = stack_trace::capture(1);
  stack_trace acquired;
  stack_trace released;
  {
    const scoped_lock held(lock_);
    if (ticket == untracked_ticket) {
      --statistics_.untracked;
      return true;
    }
    const std::uint32_t number = ticket.record - 1;
    FOREBAY_ASSERT(number < used_ && "a ticket of another tracker");
    record& r = record_at(number);
    if (r.live && r.generation == ticket.generation) {
      r.live = false;
      r.released = keep_stack(here);
      r.next = none;
      if (newest_released_ == none)
        oldest_released_ = number;
      else
        record_at(newest_released_).next = number;
      newest_released_ = number;
      ++released_count_;
      --statistics_.live;
      return true;
    }
    if (++statistics_.double_releases > double_releases_printed) return false;
    // A record that has had another holder since no longer knows of this one.
    if (r.generation == ticket.generation) {
      acquired = stack_of(r.acquired);
      released = stack_of(r.released);
    }
  }
  report_double_release(ticket, acquired, released, here);
  return false;
}

void ref_tracker::report_double_release(ref_ticket ticket, const stack_trace& acquired,
                                        const stack_trace& released,
                                        const stack_trace& again) const noexcept {
  symbolizer symbols;
  const auto described = [&](const stack_trace& trace) {
    return trace.depth == 0 ? std::string("    (no longer known)\n") : symbols.describe(trace);
  };
  const std::string text = fmt::format(
      "forebay: references of \"{}\": holder {}.{} gives its reference back a second time\n"
      "  acquired at\n{}  released at\n{}  released again at\n{}",
      name_, ticket.record, ticket.generation, described(acquired), described(released),
      described(again));
  std::fputs(text.c_str(), stderr);
}

// The groups of the live holders, largest first.
std::vector<ref_tracker::group> ref_tracker::groups_of(const void* object) const {
  std::vector<group> groups;
  std::unordered_map<std::uint32_t, std::size_t> group_of_stack;
  for (std::uint32_t number = 0; number < used_; ++number) {
    const record& r = record_at(number);
    if (!r.live || (object != nullptr && r.object != object)) continue;
    const auto [at, is_new] = group_of_stack.try_emplace(r.acquired, groups.size());
    if (is_new) groups.push_back({.stack = r.acquired, .trace = stack_of(r.acquired)});
    group& g = groups[at->second];
    if (g.holders < objects_shown) g.objects[g.holders] = r.object;
    ++g.holders;
  }
  std::ranges::sort(groups, [](const group& a, const group& b) {
    return a.holders != b.holders ? a.holders > b.holders : a.stack < b.stack;
  });
  return groups;
}

std::string ref_tracker::report(const void* object, std::size_t groups_max) const {
  std::vector<group> groups;
  std::uint64_t untracked = 0;
  {
    const scoped_lock held(lock_);
    groups = groups_of(object);
    if (object == nullptr) untracked = statistics_.untracked;
  }
  std::uint64_t total = untracked;
  for (const group& g : groups) total += g.holders;
  if (total == 0) return {};

  symbolizer symbols;
  std::string text = fmt::format("forebay: references of \"{}\": {} still held\n", name_, total);
  std::uint64_t not_shown = total - untracked;
  for (const group& g : groups) {
    if (groups_max-- == 0) break;
    not_shown -= g.holders;
    text += fmt::format("  {} of {} acquired at (", g.holders, total);
    for (std::size_t i = 0; i < std::min<std::uint64_t>(g.holders, objects_shown); ++i) {
      text += fmt::format("{}{}", i == 0 ? "object " : ", ", g.objects[i]);
    }
    text += g.holders > objects_shown ? ", ...)\n" : ")\n";
    text += g.trace.depth == 0 ? "    (stack not kept)\n" : symbols.describe(g.trace);
  }
  if (not_shown != 0) text += fmt::format("  {} of {} at other places\n", not_shown, total);
  if (untracked != 0) text += fmt::format("  {} of {} not recorded\n", untracked, total);
  return text;
}

ref_tracker_statistics ref_tracker::statistics() const noexcept {
  const scoped_lock held(lock_);
  return statistics_;
}

}  // namespace forebay
