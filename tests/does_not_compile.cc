// What must not compile, and with which words: tests/does_not_compile.sh. The lines without an
// expected error must compile.

#include <cstring>
#include <span>
#include <utility>

#include "forebay/dma/coherent_buffer.h"
#include "forebay/dma/identity_domain.h"
#include "forebay/dma/ownership.h"

namespace forebay {

using memory = std::span<std::byte>;
using enum dma_direction;

void start_device(dma_address at);

// What a device has is not looked at, not copied, and taken back by who gives it up.
void what_the_device_has(identity_domain& domain, memory m) {
  auto its = own(m).map(domain, from_device);
  if (!its) return;
  start_device(its->address());
  // expected-error@+1 {{no member named 'data' in 'forebay::device_owned}}
  its->data();
  // expected-error@+1 {{no member named 'bytes' in 'forebay::device_owned}}
  its->bytes();
  // expected-error@+1 {{does not provide a subscript operator}}
  (*its)[0];
  // expected-error@+1 {{implicitly-deleted copy constructor}}
  auto copy = *its;
  // expected-error@+1 {{'this' argument to member function 'unmap' is an lvalue}}
  auto mine = its->unmap();
  // expected-error@+1 {{ignoring return value}}
  std::move(*its).unmap();
  auto really = std::move(*its).unmap();
  std::memset(really.data(), 0, really.size());
}

// What the CPU has goes to the device by a move, and whether it went is looked at.
void what_the_cpu_has(identity_domain& domain, memory m) {
  auto mine = own(m);
  // expected-error@+1 {{call to deleted constructor}}
  auto copy = mine;
  // expected-error@+1 {{'this' argument to member function 'map' is an lvalue}}
  auto its = mine.map(domain, to_device);
  // expected-error@+1 {{ignoring return value of function declared with 'nodiscard'}}
  std::move(mine).map(domain, to_device);
  // expected-error@+1 {{ignoring return value of function declared with 'nodiscard'}}
  domain.map(m, to_device);
}

// A loan has one holder, who keeps it as long as he looks.
void what_is_lent(identity_domain& domain, memory m) {
  auto its = own(m).map(domain, from_device);
  // expected-error@+1 {{ignoring return value of function declared with 'nodiscard'}}
  its->sync_for_cpu(0, 1);
  auto view = its->sync_for_cpu(0, 1);
  // expected-error@+1 {{implicitly-deleted copy constructor}}
  auto copy = *view;
  auto moved = std::move(*view);
  // expected-error@+1 {{overload resolution selected deleted operator '='}}
  moved = std::move(*view);
}

// The device's address and the CPU's are of different kinds.
void addresses(std::byte* p) {
  // expected-error@+1 {{no matching function for call to 'start_device'}}
  start_device(p);
  // expected-error@+1 {{no matching function}}
  start_device(std::uint64_t{4096});
  // expected-error@+1 {{cannot initialize a variable of type 'std::byte *'}}
  std::byte* q = dma_address{4096};
  // expected-error@+1 {{cannot initialize}}
  const std::uint64_t n = dma_address{4096};
  // expected-error@+1 {{cannot initialize}}
  const dma_segment s{p, 1, 0};
}

void shared_memory(arena& a, identity_domain& domain) {
  // expected-error@+1 {{ignoring}}
  coherent_buffer::create(a, domain, 4096);
  auto b = coherent_buffer::create(a, domain, 4096);
  std::memset(b->data(), 0, b->size());
  start_device(b->address());
  // expected-error@+1 {{implicitly-deleted copy constructor}}
  auto copy = *b;
}

}  // namespace forebay
