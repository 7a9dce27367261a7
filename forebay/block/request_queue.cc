#include "forebay/block/request_queue.h"

#include <new>
#include <utility>

#include "forebay/os/clock.h"
#include "forebay/ring/executor.h"

namespace forebay {
namespace {

constexpr std::size_t class_of(const bio& b) noexcept {
  return static_cast<std::size_t>(b.urgency);
}

// As a request of its own.
void stand_alone(bio& b) noexcept {
  b.queued.merged = nullptr;
  b.queued.last = &b;
  b.queued.own_bytes = b.length_bytes;
}

// Has `b` run on the executor that it waited on.
void run_at_home(bio& b, completion::function run) noexcept {
  b.run = run;
  b.queued.home->post(b);
}

void append(bio& front, bio& back) noexcept {
  for (const iovec& s : back.used_segments()) {
    const bool added = front.add(static_cast<std::byte*>(s.iov_base), s.iov_len);
    FOREBAY_ASSERT(added);
  }
  front.queued.last->queued.merged = &back;
  front.queued.last = back.queued.last;
  back.truncate(back.queued.own_bytes);
}

}  // namespace

// ---- A bio that is cut ----

struct request_queue::piece : bio {
  split_job* job = nullptr;
};

// Of the bio's home thread.
struct request_queue::split_job {
  request_queue* queue = nullptr;
  bio* whole = nullptr;
  bio_cursor rest{first};
  bio_chain chain;
  bool all_begun = false;
  bool first_busy = false;
  piece first;  // so that there is progress without memory

  void begin(request_queue& q, bio& b) noexcept {
    queue = &q;
    whole = &b;
    rest = bio_cursor(b);
    chain = bio_chain();
    all_begun = false;
    go_on();
  }

  // Submits pieces as long as there are any and may be more under way; ends the bio after the last.
  void go_on() noexcept {
    while (!all_begun && chain.status() == 0 && chain.under_way() < pieces_under_way_max) {
      piece* const p = make_piece();
      if (p == nullptr) return;  // one of them is under way
      if (!cut(*p)) {
        free_piece(*p);
        chain.fail(-EINVAL);
        break;
      }
      chain.started();
      queue->counters_.pieces.add();
      queue->dispatch(*p);
    }
    if (chain.under_way() != 0) return;
    bio& b = *whole;
    const std::int32_t status = chain.status();
    queue->give_back(*this);
    hand_back(b, status);
  }

  bool cut(piece& p) noexcept {
    if (rest.take(p, queue->limits()) == 0) return false;
    all_begun = rest.bytes_left() == 0;
    stand_alone(p);
    p.queued.queue = queue;
    p.queued.alone = true;
    p.queued.run = [](completion& c) noexcept {
      auto& ended_piece = static_cast<piece&>(c);
      split_job& job = *ended_piece.job;
      job.chain.ended(ended_piece.status);
      job.free_piece(ended_piece);
      job.go_on();
    };
    return true;
  }

  piece* make_piece() noexcept {
    piece* p = &first;
    if (first_busy) {
      p = new (std::nothrow) piece;
      if (p == nullptr) return nullptr;
    } else {
      p->segment_count = 0;
      p->length_bytes = 0;
    }
    first_busy = true;
    p->job = this;
    return p;
  }

  void free_piece(piece& p) noexcept {
    if (&p == &first) {
      first_busy = false;
    } else {
      delete &p;
    }
  }
};

void request_queue::split(bio& b) noexcept {
  if (const std::int32_t bad = check_range(b, limits()); bad != 0) return hand_back(b, bad);
  auto* job = new (std::nothrow) split_job;
  if (job == nullptr) {
    const scoped_lock hold(lock_);
    if (reserve_busy_) {
      b.queued.home = executor::current();
      starved_.push_back(b);
      return;
    }
    reserve_busy_ = true;
    job = reserve_.get();
  }
  counters_.splits.add();
  job->begin(*this, b);
}  // NOLINT(clang-analyzer-cplusplus.NewDeleteLeaks): the job gives itself back

void request_queue::give_back(split_job& job) noexcept {
  if (&job != reserve_.get()) {
    delete &job;
    return;
  }
  const scoped_lock hold(lock_);
  bio* const next = starved_.pop_front();
  reserve_busy_ = next != nullptr;  // it is the next one's
  if (next == nullptr) return;
  run_at_home(*next, [](completion& c) noexcept {
    auto& b = static_cast<bio&>(c);
    request_queue& queue = *b.queued.queue;
    queue.counters_.splits.add();
    queue.reserve_->begin(queue, b);
  });
}

// ---- The queue ----

request_queue::request_queue(device& lower, options opts)
    : lower_(lower),
      options_(opts),
      admission_({std::max<std::uint16_t>(opts.in_flight_max, 1),
                  std::max<std::uint16_t>(opts.in_flight_max / 4 * 3, 1),
                  std::max<std::uint16_t>(opts.in_flight_max / 2, 1)},
                 opts.passed_over_max),
      reserve_(std::make_unique<split_job>()) {}

request_queue::~request_queue() { FOREBAY_ASSERT(admission_.taken() == 0); }

void request_queue::submit(bio& b) noexcept {
  FOREBAY_ASSERT(b.queued.queue == nullptr);
  b.queued.queue = this;
  b.queued.run = b.run;
  b.queued.alone = false;
  stand_alone(b);
  if (b.is_transfer() && !fits_transfer(b, lower_.limits())) return split(b);
  if (plug::is_plugged()) return plug::gather(b);
  dispatch(b);
}

// Has a request go down, now or when there is a place.
void request_queue::dispatch(bio& b) noexcept {
  if (const unsigned in_flight = admission_.try_enter(class_of(b)); in_flight != 0) {
    return start(b, in_flight);
  }
  wait(b);
}

void request_queue::start(bio& b, unsigned in_flight) noexcept {
  b.run = [](completion& c) noexcept { ended(static_cast<bio&>(c)); };
  counters_.requests.add();
  // relaxed, both: a statistic; a peak that another one hides at the same moment is as good.
  if (in_flight > in_flight_most_.load(std::memory_order_relaxed)) {
    in_flight_most_.store(in_flight, std::memory_order_relaxed);  // relaxed: as above
  }
  lower_.submit(b);
}

void request_queue::wait(bio& b) noexcept {
  const auto c = static_cast<unsigned>(class_of(b));
  b.queued.home = executor::current();
  b.queued.since_ns = monotonic_clock::now_ns();
  unsigned in_flight = 0;
  {
    const scoped_lock hold(lock_);
    if (merge_with_waiting(b)) return;
    if (admission_.waiting(c) < options_.waiting_max) {
      in_flight = admission_.enter_or_wait(c);
      if (in_flight == 0) return waiting_[c].push_back(b);
    }
  }
  if (in_flight != 0) return start(b, in_flight);
  counters_.refused[c].add();
  b.truncate(b.queued.own_bytes);
  for (bio* refused = &b; refused != nullptr;) {
    bio* const next = refused->queued.merged;
    hand_back(*refused, b.urgency == bio_class::read_ahead ? -EAGAIN : -EBUSY);
    refused = next;
  }
}

bool request_queue::merge_with_waiting(bio& b) noexcept {
  bio_list& list = waiting_[class_of(b)];
  auto at = list.end();
  for (unsigned looks = 0; looks < merge_looks_max && at != list.begin(); ++looks) {
    bio& earlier = *--at;
    if (earlier.queued.home != b.queued.home) continue;
    bio* const request = try_merge(earlier, b);
    if (request == nullptr) continue;
    if (request == &b) {  // in the other one's place
      b.queued.since_ns = earlier.queued.since_ns;
      b.queue_link.insert_after(earlier.queue_link);
      bio_list::erase(earlier);
    }
    return true;
  }
  return false;
}

bio* request_queue::try_merge(bio& earlier, bio& b) noexcept {
  if (earlier.queued.alone || b.queued.alone) return nullptr;
  if (can_merge(earlier, b, lower_.limits())) {
    append(earlier, b);
    counters_.merged_back.add();
    return &earlier;
  }
  if (can_merge(b, earlier, lower_.limits())) {
    append(b, earlier);
    counters_.merged_front.add();
    return &b;
  }
  return nullptr;
}

// A request has ended while others wait: its place is theirs.
void request_queue::let_next_in() noexcept {
  bio* next = nullptr;
  {
    const scoped_lock hold(lock_);
    const std::optional<unsigned> c = admission_.leave();
    if (!c) return;
    next = waiting_[*c].pop_front();
  }
  counters_.wait_ns[class_of(*next)].record(monotonic_clock::now_ns() - next->queued.since_ns);
  if (next->queued.home == executor::current()) return start(*next, 0);
  run_at_home(*next, [](completion& c) noexcept {
    auto& b = static_cast<bio&>(c);
    b.queued.queue->start(b, 0);
  });
}

// Run by the executor when the lower device has ended a request.
void request_queue::ended(bio& b) noexcept {
  request_queue& self = *b.queued.queue;
  if (!self.admission_.try_leave()) self.let_next_in();
  if (b.queued.merged != nullptr) return self.end_merged(b);
  b.queued.queue = nullptr;
  b.run = b.queued.run;
  b.run(b);
}

// Each of the bios of a request gets its end. Which of them an error belongs to is not known: each
// is done by itself then.
void request_queue::end_merged(bio& first) noexcept {
  const std::int32_t status = first.status;
  if (status != 0) counters_.redone.add();
  first.truncate(first.queued.own_bytes);
  for (bio* b = &first; b != nullptr;) {
    bio* const next = b->queued.merged;
    stand_alone(*b);
    if (status == 0) {
      hand_back(*b, 0);
    } else {
      b->queued.alone = true;
      dispatch(*b);
    }
    b = next;
  }
}

// Ends a bio, which need not have gone down.
void request_queue::hand_back(bio& b, std::int32_t status) noexcept {
  b.queued.queue = nullptr;
  b.run = b.queued.run;
  complete(b, status);
}

request_queue_statistics request_queue::statistics() const noexcept {
  request_queue_statistics s;
  for (unsigned c = 0; c < bio_class_count; ++c) {
    s.classes[c].waited = counters_.wait_ns[c].count();
    s.classes[c].waiting = admission_.waiting(c);
    s.classes[c].refused = value_of(counters_.refused[c]);
    s.classes[c].wait_p50_ns = counters_.wait_ns[c].percentile(0.5);
    s.classes[c].wait_p99_ns = counters_.wait_ns[c].percentile(0.99);
  }
  s.requests = value_of(counters_.requests);
  s.merged_back = value_of(counters_.merged_back);
  s.merged_front = value_of(counters_.merged_front);
  s.redone = value_of(counters_.redone);
  s.splits = value_of(counters_.splits);
  s.pieces = value_of(counters_.pieces);
  s.in_flight = admission_.taken();
  s.in_flight_max = in_flight_most_.load(std::memory_order_relaxed);  // relaxed: a statistic
  s.in_flight_limit = admission_.limit(0);
  return s;
}

}  // namespace forebay
