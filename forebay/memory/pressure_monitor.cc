#include "forebay/memory/pressure_monitor.h"

#include <algorithm>

#include "forebay/base/stats.h"
#include "forebay/os/clock.h"

namespace forebay {
namespace {

// Frames that are kept free, of those that the arena may have.
constexpr std::uint64_t low_share = 256;
constexpr std::uint64_t low_frames_min = 32;
constexpr std::uint64_t low_frames_max = 4096;

}  // namespace

result<std::unique_ptr<pressure_monitor>> pressure_monitor::create(arena& memory,
                                                                   shrinker_registry& shrinkers,
                                                                   options opts) {
  auto sources = pressure_sources::create();
  if (!sources) return fail(sources.error());
  std::unique_ptr<pressure_monitor> m(
      new pressure_monitor(memory, shrinkers, std::move(opts), std::move(*sources)));
  m->open_sources();
  m->apply(m->look(memory_pressure::none));
  return m;
}

pressure_monitor::pressure_monitor(arena& memory, shrinker_registry& shrinkers, options opts,
                                   pressure_sources sources)
    : memory_(memory),
      shrinkers_(shrinkers),
      options_(std::move(opts)),
      ceiling_(options_.ceiling_bytes),
      statm_(options_.root + "/proc/self/statm"),
      charged_(memory.backing() == page_backing::huge_transparent ||
               memory.backing() == page_backing::ordinary),
      sources_(std::move(sources)),
      governor_({.capacity_bytes = memory.memory().size(),
                 .floor_bytes = options_.floor_bytes,
                 .unit_bytes = arena::chunk_bytes,
                 .calm_ns = options_.calm_ns}) {
  const scoped_lock hold(lock_);
  statistics_.capacity_bytes = memory_.memory().size();
  statistics_.ceiling_bytes = statistics_.capacity_bytes;
  statistics_.limit_bytes = statistics_.capacity_bytes;
}

pressure_monitor::~pressure_monitor() { stop(); }

void pressure_monitor::add(result<pressure_source> source, const std::string& what) {
  if (!source) {
    remarks_.push_back(what + ": not to be had: " + source.error().message());
    return;
  }
  std::string name = std::string(to_string(source->kind())) + ": " + source->path();
  if (source->widened()) {
    remarks_.push_back(what + ": the window is 2 s, a shorter one needs CAP_SYS_RESOURCE");
  }
  if (std::find(source_names_.begin(), source_names_.end(), name) == source_names_.end()) {
    source_names_.push_back(std::move(name));
  }
  sources_.add(std::move(*source));
}

void pressure_monitor::open_sources() {
  if (!charged_) {
    remarks_.emplace_back(
        "reserved huge pages are no part of what a control group's limit counts, and "
        "are of use to nobody else: they are kept");
    return;
  }
  const std::string psi = options_.root + "/proc/pressure/memory";
  add(pressure_source::psi(psi, options_.some, memory_pressure::moderate), psi + " (some)");
  add(pressure_source::psi(psi, options_.full, memory_pressure::critical), psi + " (full)");
  auto group = memory_cgroup::find(options_.root);
  if (!group) {
    remarks_.emplace_back("no memory control group is known, so no limits but the machine's");
    return;
  }
  group_ = std::move(*group);
  if (group_->version() == cgroup_version::v2) {
    const std::string own = group_->directories().front() + "/memory.pressure";
    add(pressure_source::psi(own, options_.some, memory_pressure::moderate), own + " (some)");
  }
  for (const std::string& directory : group_->directories()) {
    if (group_->version() == cgroup_version::v2) {
      add(pressure_source::cgroup_v2(directory), directory);
      continue;
    }
    for (const memory_pressure level : {memory_pressure::moderate, memory_pressure::critical}) {
      add(pressure_source::cgroup_v1(directory, level), directory + " (" + to_string(level) + ")");
    }
  }
}

pressure_governor::look pressure_monitor::look(memory_pressure event) const {
  pressure_governor::look l;
  l.now_ns = monotonic_clock::now_ns();
  l.committed_bytes = memory_.committed_bytes();
  // What of the arena has been touched is not known, but it is no more than all that the process
  // has.
  l.resident_bytes = std::min(l.committed_bytes, anonymous_bytes(statm_.c_str()));
  if (group_ && charged_) l.room = group_->tightest();
  l.event = event;
  return l;
}

// Sets the limit that the governor decides on.
void pressure_monitor::apply(const pressure_governor::look& l) {
  const std::uint64_t before = governor_.limit_bytes();
  const std::uint64_t wish = ceiling_.load(std::memory_order_relaxed);  // relaxed: a level
  governor_.set_ceiling(wish, l);
  const std::uint64_t limit = governor_.decide(l);
  if (limit != before) {
    memory_.set_limit_bytes(governor_.is_limited() ? limit : UINT64_MAX);
    if (options_.limit_changed) options_.limit_changed(limit);
  }
  const scoped_lock hold(lock_);
  statistics_.ceiling_bytes = governor_.ceiling_bytes();
  statistics_.limit_bytes = limit;
  if (limit < before) ++statistics_.limit_lowered;
  if (limit > before) ++statistics_.limit_raised;
  statistics_.has_group_limit = l.room.has_value();
  statistics_.group_limit_bytes = l.room ? l.room->limit_bytes : 0;
  statistics_.group_usage_bytes = l.room ? l.room->usage_bytes : 0;
}

// True once the arena has no more than its limit.
bool pressure_monitor::bring_under_limit(const std::stop_token& stop) {
  for (unsigned round = 0; round < shrink_rounds_max && !stop.stop_requested(); ++round) {
    // What shrinkers freed in the arena may have made chunks wholly free.
    memory_.trim();
    const std::uint64_t excess = memory_.excess_bytes();
    if (excess == 0) return true;
    if (shrinkers_.shrink(excess, shrink_goal::give_back, stop) == 0) break;
  }
  memory_.trim();
  return memory_.excess_bytes() == 0;
}

void pressure_monitor::keep_watermarks(const std::stop_token& stop) {
  const std::uint64_t committed = memory_.committed_bytes();
  const std::uint64_t limit = governor_.limit_bytes();
  const std::uint64_t low =
      std::clamp((limit >> page_shift) / low_share, low_frames_min, low_frames_max);
  const std::uint64_t free =
      memory_.free_pages() + ((limit - std::min(limit, committed)) >> page_shift);
  if (free >= low) return;
  shrinkers_.shrink((2 * low - free) << page_shift, shrink_goal::frames, stop);
  const scoped_lock hold(lock_);
  ++statistics_.watermark_events;
}

std::uint64_t pressure_monitor::next_wait_ns() const noexcept {
  return over_limit_ || governor_.is_tense(monotonic_clock::now_ns()) ? tense_ns : idle_ns;
}

void pressure_monitor::run_once(std::uint64_t timeout_ns, const std::stop_token& stop) {
  const pressure_sources::findings found = sources_.wait(timeout_ns);
  if (stop.stop_requested()) return;
  {
    const scoped_lock hold(lock_);
    if (found.psi != memory_pressure::none) ++statistics_.psi_events;
    if (found.cgroup != memory_pressure::none) ++statistics_.cgroup_events;
  }
  apply(look(found.worst()));
  over_limit_ = !bring_under_limit(stop);
  if (over_limit_) {
    const scoped_lock hold(lock_);
    ++statistics_.failed_shrinks;
  }
  keep_watermarks(stop);
}

void pressure_monitor::start() {
  thread_ = std::jthread([this](const std::stop_token& stop) {
    const std::stop_callback wake(stop, [this] { sources_.wake(); });
    prepare_thread_to_count();
    while (!stop.stop_requested()) run_once(next_wait_ns(), stop);
  });
}

void pressure_monitor::stop() {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
}

void pressure_monitor::set_ceiling(std::uint64_t bytes) noexcept {
  ceiling_.store(bytes, std::memory_order_relaxed);  // relaxed: a level
  sources_.wake();
}

pressure_statistics pressure_monitor::statistics() const {
  const arena_statistics a = memory_.statistics();
  const scoped_lock hold(lock_);
  pressure_statistics s = statistics_;
  s.committed_bytes = a.committed_bytes;
  s.given_back_bytes = a.given_back * arena::chunk_bytes;
  return s;
}

}  // namespace forebay
