// The slabs behind a cache's magazines. What the debug mode does with objects is in
// slab_checked.cc.
#include "forebay/memory/slab.h"

#include <algorithm>

#include "forebay/base/cache_line.h"
#include "forebay/os/cpu.h"
#include "forebay/os/memory_checker.h"

namespace forebay {
namespace {

constexpr std::uint32_t magazine_items_max = 120;  // 504 bytes with its head: 8 lines
constexpr std::size_t magazine_bytes_max = std::size_t{256} << 10;
constexpr std::size_t cached_share = 16;  // of the arena
constexpr std::size_t chunk_items = 64;   // that a bulk call moves at once
constexpr unsigned slabs_visited_max = 64;

// At most 1/16 of a slab may be left over, as in SLUB, if one of an order up to this can do it, and
// if it is no more than 1/64 of the arena.
constexpr std::size_t waste_share = 16;
constexpr unsigned wished_order_max = 8;
constexpr std::uint32_t arena_share = 64;

// Objects to a slab below which the arena would be asked too often.
constexpr std::size_t wished_objects(std::size_t stride) { return stride <= page_bytes ? 8 : 4; }

constexpr std::size_t effective_alignment(std::size_t alignment) {
  return std::max<std::size_t>(alignment, 64);
}

bool keeps_contents(const slab_cache::options& o) noexcept {
  return o.type_stable || o.construct != nullptr;
}

slab_debug debug_layout(const slab_cache::options& o) noexcept {
  return {o.object_bytes, effective_alignment(o.alignment), !keeps_contents(o)};
}

// relaxed, for all of these: lock_ orders what it guards.
void set(std::atomic<void*>& field, void* value) noexcept {
  field.store(value, std::memory_order_relaxed);  // relaxed: see above
}
std::uint64_t map_of(const page& frame) noexcept {
  return frame.index.load(std::memory_order_relaxed);  // relaxed: see above
}
void set_map(page& frame, std::uint64_t map) noexcept {
  frame.index.store(map, std::memory_order_relaxed);  // relaxed: see above
}

// The order, from the smallest that holds an object on, at which what is left over is small.
unsigned choose_order(std::size_t stride, unsigned smallest, unsigned largest) noexcept {
  unsigned best = smallest;
  std::size_t best_waste = SIZE_MAX;  // in slabs of the largest order
  for (unsigned order = smallest; order <= largest; ++order) {
    const std::size_t room = page_bytes << order;
    const std::size_t waste = room % stride;
    if (room / stride >= wished_objects(stride) && waste * waste_share <= room) return order;
    if (const std::size_t scaled = waste << (largest - order); scaled < best_waste) {
      best = order;
      best_waste = scaled;
    }
  }
  return best;
}

}  // namespace

result<slab_cache::geometry> slab_cache::plan(const arena& memory, const options& opts) {
  if (opts.object_bytes == 0 || opts.name.empty()) return fail(EINVAL);
  if (!std::has_single_bit(opts.alignment) || opts.alignment > page_bytes) return fail(EINVAL);
  if (opts.object_bytes > max_object_bytes) return fail(errc::too_large);
  geometry g;
  g.debug = opts.debug || slab_debug::asked_for(opts.name);
  const std::size_t alignment = effective_alignment(opts.alignment);
  if (g.debug) {
    const slab_debug layout = debug_layout(opts);
    g.stride = layout.stride_bytes();
    g.first = static_cast<std::uint32_t>(layout.left_bytes() >> handle_shift);
  } else {
    g.stride = round_up(opts.object_bytes, alignment);
  }
  const std::size_t frames = (g.stride - 1) / page_bytes + 1;
  const auto smallest = static_cast<unsigned>(std::bit_width(frames - 1));
  if (smallest > arena::max_order || (1u << smallest) > memory.page_count()) {
    return fail(errc::too_large);
  }
  const auto affordable =
      static_cast<unsigned>(std::bit_width(memory.page_count() / arena_share | 1)) - 1;
  const unsigned largest = std::max(smallest, std::min(affordable, wished_order_max));
  g.small_order = static_cast<std::uint8_t>(smallest);
  g.order = static_cast<std::uint8_t>(choose_order(g.stride, smallest, largest));
  return g;
}

result<slab_cache*> slab_cache::make_at(void* storage, arena& memory, options opts) {
  const auto g = plan(memory, opts);
  if (!g) return fail(g.error());
  memory_registry& registry =
      opts.registry != nullptr ? *opts.registry : memory_registry::process();
  const if_taken taken = opts.number_if_name_is_taken ? if_taken::number : if_taken::refuse;
  auto* const made = new (storage) slab_cache(memory, std::move(opts), *g);
  if (const auto r = made->enroll(registry, taken); !r) {
    made->~slab_cache();
    return fail(r.error());
  }
  return made;
}

result<std::unique_ptr<slab_cache>> slab_cache::create(arena& memory, options opts) {
  constexpr std::align_val_t alignment{alignof(slab_cache)};
  void* const storage = ::operator new(sizeof(slab_cache), alignment, std::nothrow);
  if (storage == nullptr) return fail(ENOMEM);
  const auto made = make_at(storage, memory, std::move(opts));
  if (made) return std::unique_ptr<slab_cache>(*made);
  ::operator delete(storage, alignment);
  return fail(made.error());
}

slab_cache::slab_cache(arena& memory, options opts)
    : slab_cache(memory, opts, [&] {
        const auto g = plan(memory, opts);
        FOREBAY_ASSERT(g.has_value() && "size, alignment or name of a slab cache");
        return *g;
      }()) {
  memory_registry& registry =
      opts.registry != nullptr ? *opts.registry : memory_registry::process();
  FOREBAY_ASSERT(enroll(registry, if_taken::number).has_value());
}

// How many objects may lie in magazines: each CPU may have two, and the depot as many as there are
// CPUs. No magazines where not even one object to each would do.
cpu_cache::options slab_cache::cache_options(const arena& memory, const options& opts,
                                             std::size_t stride) noexcept {
  const std::size_t bytes =
      opts.cpu_cache_bytes != 0 ? opts.cpu_cache_bytes : memory.memory().size() / cached_share;
  const std::size_t magazines = std::size_t{3} * cpu_limit();
  const std::size_t items = std::min(bytes / (magazines * stride), magazine_bytes_max / stride);
  cpu_cache::options out;
  out.magazine_items =
      static_cast<std::uint32_t>(std::clamp<std::size_t>(items, 1, magazine_items_max));
  out.depot_magazines = cpu_limit();
  return out;
}

slab_cache::slab_cache(arena& memory, options opts, const geometry& g) noexcept
    : registered_memory(opts.name),
      arena_(memory),
      options_(std::move(opts)),
      layout_(debug_layout(options_)),
      stride_(g.stride),
      stride_units_(static_cast<std::uint32_t>(g.stride >> handle_shift)),
      first_(g.first),
      order_(g.order),
      small_order_(g.small_order),
      shapes_{shape_of(g.order), shape_of(g.small_order)},
      debug_(g.debug),
      // Type-stable objects are touched after their free, so there is nothing to forbid.
      checked_(g.debug || (memory_checker_active() && !options_.type_stable)),
      base_(memory.memory().data()),
      unit_limit_(checked_ ? 0 : memory.memory().size() >> handle_shift),
      cpu_(*this, cache_options(memory, options_, stride_)) {
  const std::uint32_t magazine = cache_options(memory, options_, stride_).magazine_items;
  empty_limit_ = std::max(1u, magazine / shapes_[0].count);
  const std::size_t allowed = options_.cpu_cache_bytes != 0 ? options_.cpu_cache_bytes
                                                            : memory.memory().size() / cached_share;
  if (checked_ || !options_.cpu_caches || allowed < std::size_t{2} * cpu_limit() * stride_) {
    cpu_.close();  // for good: every item passes by take() and give()
  }
}

slab_cache::~slab_cache() {
  withdraw();
  cpu_.close();
  if (objects_out() != 0) report_leaks();
  slab_list all;
  {
    const scoped_lock hold(lock_);
    for (slab_list& list : lists_) {
      while (!list.empty()) remove_slab(list.front(), all);
    }
  }
  release_slabs(all);
}

result<> slab_cache::destroy(std::unique_ptr<slab_cache>& cache) noexcept {
  cache->cpu_.close();
  if (cache->objects_out() != 0) {
    cache->cpu_.open();
    return fail(EBUSY);
  }
  cache.reset();
  return {};
}

// Objects that are not in slabs: all that are in use, if the CPU caches are closed.
std::uint64_t slab_cache::objects_out() const noexcept {
  const scoped_lock hold(lock_);
  return total_objects_ - free_objects_;
}

// --- shape of a slab ---

slab_cache::shape slab_cache::shape_of(unsigned order) const noexcept {
  const std::size_t room = page_bytes << order;
  shape s;
  s.count = static_cast<std::uint32_t>(room / stride_);
  // Larger objects begin at frames of their own; each_map() counts on it.
  if (!options_.colour || stride_units_ >= frame_units || first_ != 0) return s;
  const std::size_t alignment = effective_alignment(options_.alignment);
  const std::size_t colours = room % stride_ / alignment + 1;
  s.colour_mask = static_cast<std::uint32_t>(std::bit_floor(colours)) - 1;
  return s;
}

// Where object 0 begins, in units. Neighbouring slabs differ.
std::uint32_t slab_cache::start_of(const page& head) const noexcept {
  const std::uint32_t mask = shape_of(head).colour_mask;
  if (mask == 0) return first_;
  const auto alignment =
      static_cast<std::uint32_t>(effective_alignment(options_.alignment) >> handle_shift);
  return ((arena_.frame_of(head) >> head.order) & mask) * alignment;
}

page& slab_cache::head_of(page& frame) const noexcept {
  // relaxed: set before the first object of the slab was handed out.
  void* const head = frame.owner.load(std::memory_order_relaxed);
  return head == nullptr ? frame : *static_cast<page*>(head);
}

bool slab_cache::is_object(const page& head, std::uint32_t handle) const noexcept {
  const std::uint32_t offset = handle - arena_.frame_of(head) * frame_units - start_of(head);
  return offset % stride_units_ == 0 && offset / stride_units_ < shape_of(head).count;
}

// Calls f for the frames in which objects begin, and maybe others, whose maps are empty.
template <typename F>
void slab_cache::each_map(page& head, F f) const noexcept {
  const std::uint32_t units = frame_units << head.order;
  const std::uint32_t step = std::max(stride_units_, frame_units);
  for (std::uint32_t u = step == frame_units ? 0 : first_; u < units; u += step) {
    f((&head)[u / frame_units]);
  }
}

std::uint32_t slab_cache::free_in(page& head) const noexcept {
  std::uint32_t n = 0;
  each_map(head, [&](const page& frame) {
    n += static_cast<std::uint32_t>(std::popcount(map_of(frame)));
  });
  return n;
}

slab_cache::fullness slab_cache::fullness_of(std::uint32_t free_objects,
                                             std::uint32_t count) noexcept {
  if (free_objects == 0) return full;
  if (free_objects == count) return empty;
  return static_cast<fullness>(free_objects * 3 / count);
}

// --- slabs come and go ---

// Without lock_: constructors and the arena may take their time.
page* slab_cache::new_slab() noexcept {
  page* head = arena_.allocate(order_, placement::fixed);
  if (head == nullptr && small_order_ < order_) {
    head = arena_.allocate(small_order_, placement::fixed);
  }
  if (head == nullptr) return nullptr;
  for (std::uint32_t i = 0; i < 1u << head->order; ++i) {
    page& frame = head[i];
    set(frame.private_data, this);
    set(frame.owner, i == 0 ? nullptr : head);
    set_map(frame, 0);
  }
  const std::uint32_t start = start_of(*head);
  for (std::uint32_t i = 0; i < shape_of(*head).count; ++i) {
    const std::uint32_t unit = start + i * stride_units_;
    page& frame = head[unit / frame_units];
    set_map(frame, map_of(frame) | 1ull << unit % frame_units);
    auto* const object = head->data() + (std::size_t{unit} << handle_shift);
    if (options_.construct != nullptr) options_.construct(object);
    if (debug_) layout_.make(object);
  }
  if (checked_ && !debug_) forbid_access(head->data(), page_bytes << head->order);
  return head;
}

void slab_cache::add_slab(page& head) noexcept {
  const std::uint32_t count = shape_of(head).count;
  lists_[empty].push_front(head);
  ++slabs_[empty];
  total_objects_ += count;
  free_objects_ += count;
  total_frames_ += 1u << head.order;
}

// The slab is empty.
void slab_cache::remove_slab(page& head, slab_list& to_release) noexcept {
  const std::uint32_t count = shape_of(head).count;
  slab_list::erase(head);
  to_release.push_back(head);
  --slabs_[empty];
  total_objects_ -= count;
  free_objects_ -= count;
  total_frames_ -= 1u << head.order;
}

void slab_cache::release_slabs(slab_list& slabs) noexcept {
  while (page* head = slabs.pop_front()) {
    if (debug_) each_object(*head, [this](std::byte* object) { check_object(object, false); });
    if (checked_) permit_access(head->data(), page_bytes << head->order, true);
    for (std::uint32_t i = 0; i < 1u << head->order; ++i) {
      set(head[i].private_data, nullptr);
      set(head[i].owner, nullptr);
      set_map(head[i], 0);
    }
    put_page(*head);
  }
}

// --- objects leave and come back ---

void slab_cache::move(page& head, fullness from, fullness to) noexcept {
  if (from == to) return;
  slab_list::erase(head);
  lists_[to].push_front(head);
  --slabs_[from];
  ++slabs_[to];
}

std::size_t slab_cache::take_free(page& head, std::span<std::uint32_t> handles) noexcept {
  const std::uint32_t before = free_in(head);
  std::uint32_t n = 0;
  each_map(head, [&](page& frame) {
    std::uint64_t map = map_of(frame);
    if (map == 0) return;
    const std::uint32_t first = arena_.frame_of(frame) * frame_units;
    for (; map != 0 && n < handles.size(); map &= map - 1) {
      handles[n++] = first + static_cast<std::uint32_t>(std::countr_zero(map));
    }
    set_map(frame, map);
  });
  const std::uint32_t count = shape_of(head).count;
  move(head, fullness_of(before, count), fullness_of(before - n, count));
  free_objects_ -= n;
  return n;
}

std::size_t slab_cache::take_available(std::span<std::uint32_t> handles) noexcept {
  std::size_t n = 0;
  unsigned visited = 0;
  for (const fullness f : {fullest, fuller, emptier, empty}) {
    while (!lists_[f].empty() && n < handles.size() && visited++ < slabs_visited_max) {
      n += take_free(lists_[f].front(), handles.subspan(n));
    }
  }
  watermark_ = std::max(watermark_, total_objects_ - free_objects_);
  return n;
}

std::size_t slab_cache::take_from_slabs(std::span<std::uint32_t> handles) noexcept {
  {
    const scoped_lock hold(lock_);
    if (const std::size_t n = take_available(handles); n != 0) return n;
  }
  page* const head = new_slab();
  const scoped_lock hold(lock_);
  if (head != nullptr) add_slab(*head);
  return take_available(handles);  // also what came back meanwhile
}

std::size_t slab_cache::take(std::span<std::uint32_t> handles) noexcept {
  return checked_ ? 0 : take_from_slabs(handles);  // see allocate_slow()
}

void slab_cache::give_one(std::uint32_t handle, slab_list& to_release) noexcept {
  page& frame = arena_.frame(handle / frame_units);
  // relaxed: it does not change while an object of the slab is out.
  if (frame.private_data.load(std::memory_order_relaxed) != this) {
    misused("free of an object of another cache or of none", from_handle(handle));
  }
  page& head = head_of(frame);
  if (!is_object(head, handle)) misused("free of what is inside an object", from_handle(handle));
  const std::uint64_t map = map_of(frame);
  const std::uint64_t bit = 1ull << handle % frame_units;
  if ((map & bit) != 0) misused("double free", from_handle(handle));
  const std::uint32_t before = free_in(head);
  const std::uint32_t count = shape_of(head).count;
  set_map(frame, map | bit);
  ++free_objects_;
  move(head, fullness_of(before, count), fullness_of(before + 1, count));
  if (before + 1 != count) return;
  if (!options_.type_stable && slabs_[empty] > empty_limit_) remove_slab(head, to_release);
}

void slab_cache::give(std::span<const std::uint32_t> handles) noexcept {
  slab_list to_release;
  {
    const scoped_lock hold(lock_);
    for (const std::uint32_t handle : handles) give_one(handle, to_release);
  }
  release_slabs(to_release);
}

std::size_t slab_cache::shrink() noexcept {
  const auto frames = [this] {
    const scoped_lock hold(lock_);
    return total_frames_;
  };
  const std::uint64_t before = frames();
  cpu_.reclaim();
  if (!options_.type_stable) {
    slab_list to_release;
    {
      const scoped_lock hold(lock_);
      while (!lists_[empty].empty()) remove_slab(lists_[empty].front(), to_release);
    }
    release_slabs(to_release);
  }
  const std::uint64_t after = frames();
  return after < before ? (before - after) << page_shift : 0;
}

// --- calls that are not one sequence ---

std::size_t slab_cache::allocate(std::span<void*> objects) noexcept {
  std::size_t n = 0;
  if (checked_) {
    while (n < objects.size() && (objects[n] = allocate_checked()) != nullptr) ++n;
    return n;
  }
  std::array<std::uint32_t, chunk_items> handles;
  while (n < objects.size()) {
    const std::size_t wanted = std::min(objects.size() - n, chunk_items);
    const std::size_t got = cpu_.pop(std::span(handles).first(wanted));
    for (std::size_t i = 0; i < got; ++i) objects[n + i] = from_handle(handles[i]);
    n += got;
    if (got < wanted) {
      failures_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
      break;
    }
  }
  return n;
}

void slab_cache::free(std::span<void* const> objects) noexcept {
  std::array<std::uint32_t, chunk_items> handles;
  while (!objects.empty()) {
    const std::size_t count = std::min(objects.size(), chunk_items);
    std::size_t n = 0;
    for (void* const object : objects.first(count)) {
      const std::size_t unit = unit_of(object);
      if (unit >= unit_limit_) [[unlikely]] {
        free_slow(object);
      } else {
        handles[n++] = static_cast<std::uint32_t>(unit);
      }
    }
    cpu_.push(std::span<const std::uint32_t>(handles).first(n));
    objects = objects.subspan(count);
  }
}

void* slab_cache::allocate_slow() noexcept {
  if (checked_) return allocate_checked();
  failures_.fetch_add(1, std::memory_order_relaxed);  // relaxed: a statistic
  return nullptr;
}

void slab_cache::free_slow(void* object) noexcept {
  if (checked_) return free_checked(object);
  misused(in_arena(object) ? "free of what is no multiple of 64 bytes"
                           : "free of what is not in the arena",
          object);
}

// --- statistics ---

slab_statistics slab_cache::statistics() const noexcept {
  const cpu_cache_statistics cpu = cpu_.statistics();
  slab_statistics s;
  s.failures = failures_.load(std::memory_order_relaxed);  // relaxed: a statistic
  s.objects_cached = cpu.cached;
  s.slab_bytes = page_bytes << order_;
  s.per_cpu = cpu.per_cpu && !checked_;
  s.debug = debug_;
  const scoped_lock hold(lock_);
  const std::uint64_t out = total_objects_ - free_objects_;
  s.objects_in_use = out > cpu.cached ? out - cpu.cached : 0;
  s.objects_total = total_objects_;
  s.empty_slabs = slabs_[empty];
  s.partial_slabs = slabs_[fullest] + slabs_[fuller] + slabs_[emptier];
  s.slabs = s.empty_slabs + s.partial_slabs + slabs_[full];
  s.total_bytes = total_frames_ << page_shift;
  s.allocations = checked_ ? checked_allocations_ : cpu.pops;
  s.frees = s.allocations > s.objects_in_use ? s.allocations - s.objects_in_use : 0;
  s.cpu_hits = cpu.pops > cpu.slow_pops ? cpu.pops - cpu.slow_pops : 0;
  s.high_watermark = watermark_;
  return s;
}

memory_statistics slab_cache::report() const {
  const slab_statistics s = statistics();
  memory_statistics out;
  out.name = name();
  out.kind = memory_kind::slab;
  out.object_bytes = options_.object_bytes;
  out.stride_bytes = stride_;
  out.objects_per_slab = objects_per_slab();
  out.slab_bytes = s.slab_bytes;
  out.active = s.objects_in_use;
  out.total = s.objects_total;
  out.cached = s.objects_cached;
  out.slabs = s.slabs;
  out.partial_slabs = s.partial_slabs;
  out.bytes = s.total_bytes;
  out.allocations = s.allocations;
  out.frees = s.frees;
  out.cpu_hits = s.cpu_hits;
  out.failures = s.failures;
  out.high_watermark = s.high_watermark;
  out.per_cpu = s.per_cpu;
  out.debug = s.debug;
  return out;
}

}  // namespace forebay
