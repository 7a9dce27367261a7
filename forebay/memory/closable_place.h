// A place for one thing that several threads put into and take from, and that can be closed: after
// that it is empty for good, whatever calls are under way.
//
//    put:    exchange it in, closed? then out again
//    close:  say so, take what is there
//
// Every change of the place is an exchange. So either the closer's comes later and finds the thing
// there, or it came before, and who has put something there has read what follows from it and finds
// the place closed. What is taken out belongs to who took it.
#pragma once

#include <atomic>

namespace forebay {

template <typename T>
struct displaced {
  T* before = nullptr;  // was there
  T* after = nullptr;   // was there when the place was found closed: usually what was put there
};

// `place` is an atomic pointer, `closed` an atomic flag that the closer sets, for many places,
// before it takes out of this one by an exchange with null that releases.
template <typename T, typename Place, typename Flag>
displaced<T> put_unless_closed(Place& place, const Flag& closed, T* thing) noexcept {
  displaced<T> out;
  // acq_rel: hands the thing on, and takes over what was there, or that the place is closed.
  out.before = place.exchange(thing, std::memory_order_acq_rel);
  // relaxed: ordered by the exchange. acquire: takes over what is there.
  if (closed.load(std::memory_order_relaxed)) {
    out.after = place.exchange(nullptr, std::memory_order_acquire);  // acquire: see above
  }
  return out;
}

}  // namespace forebay
