#include "forebay/cache/readahead.h"

#include <algorithm>

namespace forebay {
namespace {

constexpr std::int64_t forward = 1;
constexpr std::int64_t backward = -1;
constexpr std::uint32_t weighed_windows = 4;  // so many of the largest between two looks at waste

std::int64_t distance(std::uint64_t from, std::uint64_t to) noexcept {
  return static_cast<std::int64_t>(to - from);
}

std::uint64_t plus(std::uint64_t page, std::int64_t delta) noexcept {
  return page + static_cast<std::uint64_t>(delta);
}

bool is_near(std::int64_t delta) noexcept {
  return delta != 0 && delta <= std::int64_t{readahead::stride_max_pages} &&
         delta >= -std::int64_t{readahead::stride_max_pages};
}

}  // namespace

readahead_window readahead::on_access(std::uint64_t first, std::uint32_t pages,
                                      bool missed) noexcept {
  const scoped_lock hold(lock_);
  ++accesses_;
  if (stream* const s = find_stream(first, pages); s != nullptr) {
    // Missing, though it was read ahead: it had to go before it was used.
    const bool inside = s->delta == backward  ? first + pages > s->edge
                        : s->delta == forward ? first < s->edge
                                              : first != s->edge && first != s->last;
    if (missed && inside) {
      s->window = std::max(s->window / 4, 1u);  // next_window() doubles it
      s->edge = s->delta == backward ? first : first + pages;
      if (s->delta != backward && s->delta != forward) s->edge = plus(first, s->delta);
    }
    s->last = first;
    s->pages = pages;
    return next_window(*s);
  }
  for (stream& c : candidates_) {
    if (c.pages == 0 || !confirm(c, first, pages)) continue;
    stream& s = establish(c);
    c.pages = 0;
    return next_window(s);
  }
  for (stream& c : candidates_) {
    const std::int64_t delta = distance(c.last, first);
    if (c.pages == 0 || !is_near(delta)) continue;
    c.delta = first + pages == c.last ? backward : delta;
    c.last = first;
    c.pages = pages;
    return {};
  }
  candidates_[next_candidate_] = {.last = first, .pages = pages};
  next_candidate_ = (next_candidate_ + 1) % candidates_max;
  return {};
}

// The stream whose next access this may be: not behind the last one, and not past what has been
// read ahead.
readahead::stream* readahead::find_stream(std::uint64_t first, std::uint32_t pages) noexcept {
  for (stream& s : streams_) {
    if (s.pages == 0) continue;
    bool fits = false;
    if (s.delta == forward) {
      fits = first >= s.last && first <= s.edge;
    } else if (s.delta == backward) {
      fits = first <= s.last && first + pages >= s.edge;
    } else {
      const std::int64_t way = distance(s.last, first);
      const std::int64_t most = distance(s.last, s.edge);
      fits = pages == s.pages && way % s.delta == 0 && way / s.delta >= 0 &&
             way / s.delta <= most / s.delta;
    }
    if (!fits) continue;
    s.used = accesses_;
    return &s;
  }
  return nullptr;
}

// Whether this access makes a stream of a candidate, which has its place and direction then.
bool readahead::confirm(stream& c, std::uint64_t first, std::uint32_t pages) noexcept {
  const std::int64_t delta = distance(c.last, first);
  if (first == c.last + c.pages) {
    c.delta = forward;
    c.edge = first + pages;
  } else if (first + pages == c.last && c.delta == backward) {
    c.edge = first;
  } else if (pages == c.pages && delta == c.delta && is_near(delta) && delta != forward) {
    c.edge = plus(first, delta);
  } else {
    return false;
  }
  c.last = first;
  c.pages = pages;
  return true;
}

readahead::stream& readahead::establish(const stream& candidate) noexcept {
  stream& oldest =
      *std::min_element(streams_.begin(), streams_.end(), [](const stream& a, const stream& b) {
        return (a.pages == 0 ? 0 : a.used) < (b.pages == 0 ? 0 : b.used);
      });
  oldest = candidate;
  oldest.window = 0;
  oldest.used = accesses_;
  return oldest;
}

// The window at the stream's edge, twice as large as the last one.
readahead_window readahead::next_window(stream& s) noexcept {
  // The pieces of a strided stream are as large as its accesses.
  if (s.delta != forward && s.delta != backward && s.pages > window_bound_) {
    s.edge = plus(s.last, s.delta);  // where the next one is known by
    return {};
  }
  const std::uint32_t least = std::min(window_min_pages, limit_);
  s.window = std::clamp(s.window == 0 ? 2 * s.pages : 2 * s.window, least, limit_);
  readahead_window w;
  w.pages = s.window;
  w.count = 1;
  if (s.delta == forward) {
    s.edge = std::max(s.edge, s.last + s.pages);
    if (s.edge >= object_pages_) return {};
    w.first = w.marker = s.edge;
    w.pages = static_cast<std::uint32_t>(std::min<std::uint64_t>(w.pages, object_pages_ - w.first));
    s.edge += w.pages;
  } else if (s.delta == backward) {
    s.edge = std::min(s.edge, s.last);
    if (s.edge == 0) return {};
    w.pages = static_cast<std::uint32_t>(std::min<std::uint64_t>(w.pages, s.edge));
    w.marker = s.edge - 1;
    w.first = s.edge -= w.pages;
  } else {
    const std::uint32_t wanted = std::max(s.window / s.pages, 1u);
    if (s.edge == s.last) s.edge = plus(s.last, s.delta);
    w.first = w.marker = s.edge;
    w.pages = s.pages;
    w.stride = s.delta;
    // A place before the object's start is a number past its end.
    for (w.count = 0; w.count < wanted && s.edge < object_pages_; ++w.count) {
      if (object_pages_ - s.edge < s.pages) break;
      s.edge = plus(s.edge, s.delta);
    }
    if (w.count == 0) return {};
  }
  weigh_waste(w.pages * w.count);
  return w;
}

void readahead::weigh_waste(std::uint32_t asked) noexcept {
  asked_ += asked;
  const std::uint32_t most = largest_window();
  if (asked_ < std::uint64_t{weighed_windows} * most) return;
  const std::uint64_t wasted = wasted_.exchange(0, std::memory_order_relaxed);  // relaxed: wasted()
  if (wasted * 4 > asked_) {
    limit_ = std::max(limit_ / 2, std::min(window_min_pages, most));
  } else if (wasted * 16 < asked_) {
    limit_ = std::min(limit_ * 2, most);
  }
  asked_ = 0;
}

}  // namespace forebay
