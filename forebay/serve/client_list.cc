#include "forebay/serve/client_list.h"

#include <algorithm>

#include "forebay/os/clock.h"
#include "forebay/os/socket.h"

namespace forebay {

void client_reports::add(const client_report& r) noexcept {
  std::size_t at = count;
  while (at != 0 && first[at - 1].activity() < r.activity()) --at;
  client_report last = r;
  if (count < most) {
    ++count;
  } else {
    ++others;
    if (at < most) std::swap(last, first[most - 1]);
    sum.requests += last.requests;
    sum.read_bytes += last.read_bytes;
    sum.written_bytes += last.written_bytes;
    sum.in_flight += last.in_flight;
  }
  if (at == most) return;
  std::move_backward(first.begin() + static_cast<std::ptrdiff_t>(at),
                     first.begin() + static_cast<std::ptrdiff_t>(count) - 1,
                     first.begin() + static_cast<std::ptrdiff_t>(count));
  first[at] = r;
}

void client_entry::enter(client_list& in, client_door door, int socket) noexcept {
  static std::atomic<std::uint64_t> last_id{0};
  fixed_ = {};
  // relaxed: a number that nobody else has, and no more.
  fixed_.id = last_id.fetch_add(1, std::memory_order_relaxed) + 1;
  peer_identity(socket, fixed_.peer);
  fixed_.door = door;
  fixed_.since_ns = monotonic_clock::now_ns();
  for (std::atomic<std::uint64_t>* n : {&requests_, &read_bytes_, &written_bytes_, &in_flight_}) {
    n->store(0, std::memory_order_relaxed);  // relaxed: a statistic
  }
  list_ = &in;
  const scoped_lock hold(in.lock_);
  in.all_.push_back(*this);
}

void client_entry::leave() noexcept {
  if (list_ == nullptr) return;
  const scoped_lock hold(list_->lock_);
  link.unlink();
  list_ = nullptr;
}

void client_list::report(client_reports& into, const std::string& name) const noexcept {
  const scoped_lock hold(lock_);
  for (const client_entry& e : all_) {
    client_report r = e.fixed_;
    r.exported = &name;
    r.requests = value_of(e.requests_);
    r.read_bytes = value_of(e.read_bytes_);
    r.written_bytes = value_of(e.written_bytes_);
    r.in_flight = value_of(e.in_flight_);
    into.add(r);
  }
}

}  // namespace forebay
