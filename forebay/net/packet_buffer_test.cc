#include "forebay/net/packet_buffer.h"

#include <array>
#include <thread>
#include <vector>

#include <rapidcheck/gtest.h>

#include "forebay/net/test_packets.h"

namespace forebay {
namespace {

using bytes = std::vector<std::byte>;

bytes contents(const packet& p) {
  bytes all(p->length());
  EXPECT_TRUE(p->copy_out(0, all));
  return all;
}

bytes numbered(std::size_t n, unsigned first) {
  bytes b(n);
  for (std::size_t i = 0; i < n; ++i) b[i] = static_cast<std::byte>(first + i);
  return b;
}

void put(packet& p, const bytes& what) {
  const auto at = p->put(what.size());
  ASSERT_TRUE(at);
  std::ranges::copy(what, *at);
}

TEST(packet_buffer, bounds_are_errors_and_change_nothing) {
  const test_packets t;
  packet p = t->try_allocate();
  EXPECT_EQ(p->headroom(), 128u);
  EXPECT_EQ(p->tailroom(), 1920u);
  EXPECT_EQ(p->reserve(1921).error(), std::errc::no_buffer_space);
  ASSERT_TRUE(p->reserve(20));
  EXPECT_EQ(p->headroom(), 148u);
  EXPECT_EQ(p->put(1901).error(), std::errc::no_buffer_space);
  EXPECT_EQ(p->put(SIZE_MAX).error(), std::errc::no_buffer_space);
  put(p, numbered(100, 0));
  EXPECT_EQ(p->reserve(1).error(), std::errc::invalid_argument);
  EXPECT_EQ(p->push(149).error(), std::errc::no_buffer_space);
  EXPECT_EQ(p->pull(101).error(), std::errc::no_message_available);
  EXPECT_EQ(p->set_network_header(101).error(), std::errc::no_message_available);
  std::array<std::byte, 100> to{};
  EXPECT_EQ(p->copy_out(1, to).error(), std::errc::no_message_available);
  EXPECT_EQ(p->split(101).error(), std::errc::no_message_available);
  EXPECT_EQ(p.make_linear(101).error(), std::errc::no_message_available);
  EXPECT_EQ(p.expand_head(2000).error(), errc::too_large);
  p->trim(200);
  EXPECT_EQ(contents(p), numbered(100, 0));
  EXPECT_EQ(p->headroom(), 148u);
}

TEST(packet_buffer, headers_go_down_and_up_again) {
  const test_packets t;
  packet p = t->try_allocate();
  put(p, numbered(10, 50));
  for (const unsigned header : {30u, 20u, 10u}) {  // transport, network, link
    const auto at = p->push(8);
    ASSERT_TRUE(at);
    std::ranges::copy(numbered(8, header), *at);
  }
  ASSERT_TRUE(p->set_link_header());
  ASSERT_TRUE(p->set_network_header(8));
  ASSERT_TRUE(p->set_transport_header(16));
  const auto expect_headers = [&] {
    EXPECT_EQ(*p->link_header(), std::byte{10});
    EXPECT_EQ(*p->network_header(), std::byte{20});
    EXPECT_EQ(*p->transport_header(), std::byte{30});
  };
  expect_headers();
  ASSERT_TRUE(p->pull(24));
  EXPECT_EQ(p->link_offset(), -24);
  EXPECT_EQ(*p->data(), std::byte{50});
  expect_headers();
  const std::byte* const before = p->link_header();
  ASSERT_TRUE(p.expand_head(1000));  // other memory, with the headers that have been pulled
  EXPECT_NE(p->link_header(), before);
  EXPECT_GE(p->headroom(), 1000u);
  EXPECT_EQ(p->transport_offset(), -8);
  expect_headers();
}

TEST(packet_buffer, a_clone_shares_and_unshare_copies_once) {
  const test_packets t;
  packet p = t->try_allocate();
  put(p, numbered(100, 0));
  p->set_timestamp_ns(77);
  p->set_port(3);
  packet c = std::move(*p->clone());
  EXPECT_EQ(c->data(), p->data());
  EXPECT_EQ(c->timestamp_ns(), 77u);
  EXPECT_EQ(c->port(), 3);
  EXPECT_EQ(t->statistics().buffers.in_use, 1u);
  for (packet* const one : {&p, &c}) {
    EXPECT_EQ((*one)->put(1).error(), std::errc::device_or_resource_busy);
    EXPECT_EQ((*one)->push(1).error(), std::errc::device_or_resource_busy);
    EXPECT_EQ((*one)->writable().error(), std::errc::device_or_resource_busy);
  }
  ASSERT_TRUE(c->pull(10));
  ASSERT_TRUE(c.unshare());
  EXPECT_NE(c->data(), p->data() + 10);
  EXPECT_FALSE(p->is_shared());  // its buffer is its own again
  (*c->writable())[0] = std::byte{200};
  (*p->writable())[0] = std::byte{100};
  EXPECT_EQ(contents(p)[10], std::byte{10});
  EXPECT_EQ(contents(c)[0], std::byte{200});
  const std::byte* const at = c->data();
  ASSERT_TRUE(c.unshare());
  EXPECT_EQ(c->data(), at);
}

TEST(packet_buffer, the_last_of_the_clones_frees_the_buffer_on_any_thread) {
  const test_packets t;
  for (int round = 0; round < 50; ++round) {
    packet p = t->try_allocate();
    put(p, numbered(64, 1));
    packet a = std::move(*p->clone());
    packet b = std::move(*a->clone());
    std::thread other([c = std::move(b)]() mutable {
      EXPECT_EQ(c->data()[63], std::byte{64});
      c.reset();
    });
    a.reset();
    // Whoever comes first, nobody writes what another one reads.
    if (const auto w = p->writable()) std::ranges::fill(*w, std::byte{9});
    p.reset();
    other.join();
  }
  EXPECT_EQ(t->statistics().buffers.in_use, 0u);
  EXPECT_EQ(t->statistics().bare.objects_in_use, 0u);
}

TEST(packet_buffer, external_memory_comes_back_with_the_last_packet) {
  const test_packets t;
  test_external block(256);
  block.start(2);
  packet p = std::move(*t->attach(block, block.part(0, 128), 16, 100));
  packet q = std::move(*t->attach(block, block.part(128, 128), 0, 128));
  EXPECT_EQ(p->headroom(), 16u);
  EXPECT_EQ(p->tailroom(), 12u);
  EXPECT_TRUE(p->push(16));  // its own, though the block has two holders
  EXPECT_EQ(t->attach(block, block.part(0, 128), 100, 29).error(), std::errc::invalid_argument);
  packet c = std::move(*p->clone());
  packet rest = std::move(*q->split(64));
  ASSERT_TRUE(c->append(std::move(rest)));
  EXPECT_FALSE(rest);
  EXPECT_EQ(c->segment_count(), 2u);
  p.reset();
  q.reset();
  EXPECT_EQ(block.returned, 0);
  c.reset();
  EXPECT_EQ(block.returned, 1);
}

TEST(packet_buffer, fragments_are_limited_and_refused_whole) {
  const test_packets t;
  test_external block(64);
  packet p = t->try_allocate();
  block.start(packet_buffer::fragments_max + 2);
  for (unsigned i = 0; i < packet_buffer::fragments_max; ++i) {
    ASSERT_TRUE(p->append(block, block.part(i, 1)));
  }
  EXPECT_EQ(p->append(block, block.part(0, 1)).error(), std::errc::no_buffer_space);
  packet more = std::move(*t->attach(block, block.part(0, 8), 0, 8));
  EXPECT_EQ(p->append(std::move(more)).error(), std::errc::no_buffer_space);
  EXPECT_TRUE(more);  // NOLINT(bugprone-use-after-move): an error leaves it
  block.put();        // what the first refusal left with the caller
  more.reset();
  EXPECT_EQ(p->put(1).error(), std::errc::no_buffer_space);
  ASSERT_TRUE(p.linearise());
  EXPECT_EQ(block.returned, 1);
  EXPECT_EQ(contents(p), bytes(block.memory.begin(), block.memory.begin() + 16));
  EXPECT_EQ(t->statistics().fragment_arrays.objects_in_use, 0u);
}

TEST(packet_pool, bursts_and_what_happens_when_it_has_run_out) {
  const test_packets t({.count = 100});
  std::array<packet, 101> burst;
  EXPECT_EQ(t->allocate_burst(burst), 100u);
  EXPECT_FALSE(t->try_allocate());
  EXPECT_EQ(t->allocate(std::chrono::milliseconds(1)).error(), std::errc::timed_out);
  burst[100] = std::move(*burst[7]->clone());
  ASSERT_TRUE(burst[8]->append(std::move(burst[7])));
  packet_pool::release_burst(burst);
  EXPECT_EQ(t->statistics().buffers.in_use, 0u);
  EXPECT_EQ(t->statistics().buffers.misuses, 0u);
  for (const packet& p : burst) EXPECT_FALSE(p);
  packet p = std::move(*t->allocate(std::chrono::seconds(1)));
  EXPECT_TRUE(p->empty());
  EXPECT_FALSE(p->has_link_header());
}

TEST(packet_pool, refuses_what_cannot_be) {
  auto memory = std::move(*arena::create({.bytes = 8u << 20, .huge_pages = false}));
  memory_registry registry;
  const auto error = [&](packet_pool::options o) {
    o.registry = &registry;
    return packet_pool::create(*memory, o).error();
  };
  EXPECT_EQ(error({.name = "p", .headroom = 2048, .count = 1}), std::errc::invalid_argument);
  EXPECT_EQ(error({.name = "", .count = 1}), std::errc::invalid_argument);
  EXPECT_EQ(error({.name = "p", .buffer_bytes = (1u << 20) + 1, .count = 1}), errc::too_large);
  EXPECT_EQ(error({.name = "p", .count = 1u << 20}), errc::too_large);
}

TEST(packet_pool, debug_mode_names_who_holds_a_packet) {
  const test_packets t({.debug = true});
  packet p = t->try_allocate();
  packet c = std::move(*p->clone());
  EXPECT_NE(t->buffers().owners(), "");
  p.reset();
  c.reset();
  EXPECT_EQ(t->buffers().owners(), "");
}

// ---- Random operations beside a flat model ----

// What a packet should be: its bytes, and before them what has been pulled.
struct model {
  bytes all;
  std::size_t start = 0;
  std::array<std::size_t, 3> headers{SIZE_MAX, SIZE_MAX, SIZE_MAX};  // positions in `all`

  std::size_t length() const { return all.size() - start; }
  bytes current() const { return {all.begin() + static_cast<std::ptrdiff_t>(start), all.end()}; }
  void push(const bytes& b) {
    if (start < b.size()) {
      const std::size_t more = b.size() - start;
      all.insert(all.begin(), more, std::byte{});
      for (std::size_t& h : headers) h += h == SIZE_MAX ? 0 : more;
      start += more;
    }
    start -= b.size();
    std::ranges::copy(b, all.begin() + static_cast<std::ptrdiff_t>(start));
  }
  // Bytes that were not in the linear part leave no trace.
  void pull(std::size_t n, std::size_t linear) {
    const std::size_t kept = std::min(n, linear);
    const auto at = all.begin() + static_cast<std::ptrdiff_t>(start + kept);
    all.erase(at, at + static_cast<std::ptrdiff_t>(n - kept));
    start += kept;
  }
};

struct pair_of {
  packet real;
  model flat;
};

class run {
 public:
  run() = default;
  run(const run&) = delete;
  run& operator=(const run&) = delete;
  ~run() {
    if (!starved_.empty()) starve();
  }

  void step();
  void finish() {
    packets_.clear();
    if (!starved_.empty()) starve();
    RC_ASSERT(pool_->statistics().buffers.in_use == 0u);
    RC_ASSERT(pool_->statistics().bare.objects_in_use == 0u);
    RC_ASSERT(pool_->statistics().fragment_arrays.objects_in_use == 0u);
    RC_ASSERT(external_.returned == external_starts_);
  }

 private:
  static std::size_t below(std::size_t n) { return *rc::gen::inRange<std::size_t>(0, n); }
  bytes fresh(std::size_t n) { return numbered(n, next_ += 13); }

  static void check_header(bool is_set, const std::byte* at, const pair_of& p, std::size_t which) {
    const std::size_t h = p.flat.headers[which];
    RC_ASSERT(is_set == (h != SIZE_MAX));
    if (!is_set) return;
    RC_ASSERT(at - p.real->data() == std::ptrdiff_t(h) - std::ptrdiff_t(p.flat.start));
    if (h < p.flat.start) RC_ASSERT(*at == p.flat.all[h]);
  }
  void check() {
    for (const pair_of& p : packets_) {
      RC_ASSERT(p.real->length() == p.flat.length());
      RC_ASSERT(contents(p.real) == p.flat.current());
      check_header(p.real->has_link_header(), p.real->link_header(), p, 0);
      check_header(p.real->has_network_header(), p.real->network_header(), p, 1);
      check_header(p.real->has_transport_header(), p.real->transport_header(), p, 2);
    }
  }

  void add(result<packet> made, model flat) {
    if (made) packets_.push_back({std::move(*made), std::move(flat)});
  }
  void grow_at_the_ends(pair_of& p);
  void shrink(pair_of& p);
  void set_header(pair_of& p);
  void append(pair_of& p);
  void cut(pair_of& p);
  void move_about(pair_of& p);
  void starve();

  test_packets pool_{{.buffer_bytes = 256, .headroom = 64, .count = 12}, 1u << 20};
  test_external external_{64};
  int external_starts_ = 0;
  unsigned next_ = 0;
  std::vector<page*> starved_;
  std::vector<pair_of> packets_;
};

void run::grow_at_the_ends(pair_of& p) {
  const bytes b = fresh(below(100));
  const bool front = *rc::gen::arbitrary<bool>();
  const std::size_t room = front ? p.real->headroom() : p.real->tailroom();
  const bool whole = front || p.real->fragments().empty();
  const bool shared = p.real->is_shared();
  const auto at = front ? p.real->push(b.size()) : p.real->put(b.size());
  RC_ASSERT(at.has_value() == (b.size() <= room && whole && !shared));
  if (!at) return;
  std::ranges::copy(b, *at);
  if (front) {
    p.flat.push(b);
  } else {
    p.flat.all.insert(p.flat.all.end(), b.begin(), b.end());
  }
}

void run::shrink(pair_of& p) {
  const std::size_t n = below(p.flat.length() + 2);
  if (*rc::gen::arbitrary<bool>()) {
    const std::size_t linear = p.real->linear_length();
    const bool done = p.real->pull(n).has_value();
    RC_ASSERT(done == (n <= p.flat.length()));
    if (done) p.flat.pull(n, linear);
  } else if (n < p.flat.length()) {
    p.real->trim(n);
    p.flat.all.resize(p.flat.start + n);
    p.real->clear_headers();
    p.flat.headers.fill(SIZE_MAX);
  }
}

void run::set_header(pair_of& p) {
  const std::size_t at = below(p.real->linear_length() + 2);
  const std::size_t which = below(3);
  const auto r = which == 0   ? p.real->set_link_header(at)
                 : which == 1 ? p.real->set_network_header(at)
                              : p.real->set_transport_header(at);
  RC_ASSERT(r.has_value() == (at <= p.real->linear_length()));
  if (r) p.flat.headers[which] = p.flat.start + at;
}

void run::append(pair_of& p) {
  switch (below(3)) {
    case 0: {
      const std::size_t other = below(packets_.size());
      pair_of& o = packets_[other];
      if (&o == &p) return;
      const bytes more = o.flat.current();
      if (!p.real->append(std::move(o.real))) return;
      p.flat.all.insert(p.flat.all.end(), more.begin(), more.end());
      packets_.erase(packets_.begin() + static_cast<std::ptrdiff_t>(other));
      return;
    }
    case 1: {
      page* const frame = pool_.memory->allocate(0, placement::fixed);
      if (frame == nullptr) return;
      const bytes more = fresh(below(200));
      std::ranges::copy(more, frame->data() + 1000);
      RC_ASSERT(!p.real->append(page_ref::adopt(*frame), 4000, 97));  // and the frame is free again
      page* const again = pool_.memory->allocate(0, placement::fixed);
      std::ranges::copy(more, again->data() + 1000);
      if (p.real->append(page_ref::adopt(*again), 1000, more.size())) {
        p.flat.all.insert(p.flat.all.end(), more.begin(), more.end());
      }
      return;
    }
    default: {
      if (external_.returned != external_starts_) return;
      external_.start();
      ++external_starts_;
      const auto part = external_.part(7, 20);
      if (p.real->append(external_, part)) {
        p.flat.all.insert(p.flat.all.end(), part.begin(), part.end());
      } else {
        external_.put();
      }
    }
  }
}

void run::cut(pair_of& p) {
  const std::size_t at = below(p.flat.length() + 2);
  const std::size_t linear = p.real->linear_length();
  auto rest = p.real->split(at);
  if (at > p.flat.length()) RC_ASSERT(!rest);
  if (!rest) return;
  model second;
  second.all.assign(p.flat.all.begin() + static_cast<std::ptrdiff_t>(p.flat.start + at),
                    p.flat.all.end());
  p.flat.all.resize(p.flat.start + at);
  if (at < linear) {
    p.real->clear_headers();
    p.flat.headers.fill(SIZE_MAX);
  }
  add(std::move(rest), std::move(second));
}

void run::move_about(pair_of& p) {
  switch (below(5)) {
    case 0: {
      if (p.real.unshare()) RC_ASSERT(!p.real->is_shared());
      return;
    }
    case 1: {
      const std::size_t head = below(200);
      const std::size_t tail = below(50);
      if (p.real.expand_head(head, tail)) {
        RC_ASSERT(p.real->headroom() >= head && p.real->tailroom() >= tail);
      }
      return;
    }
    case 2: {
      const std::size_t n = below(p.flat.length() + 2);
      if (p.real.make_linear(n)) RC_ASSERT(p.real->linear_length() >= n);
      return;
    }
    case 3: {
      auto copied = p.real->copy(below(100));
      if (copied) RC_ASSERT((*copied)->is_linear() && !(*copied)->is_shared());
      return add(std::move(copied), p.flat);
    }
    default: {
      const auto w = p.real->writable();
      RC_ASSERT(w.has_value() == !p.real->is_shared());
      if (!w || w->empty()) return;
      const std::size_t at = below(w->size());
      p.flat.all[p.flat.start + at] = (*w)[at] = static_cast<std::byte>(next_ += 7);
    }
  }
}

// No memory any more in the arena, or again some.
void run::starve() {
  if (starved_.empty()) {
    while (page* p = pool_.memory->allocate(0, placement::fixed)) starved_.push_back(p);
  } else {
    for (page* p : starved_) put_page(*p);
    starved_.clear();
  }
}

void run::step() {
  const std::size_t what = below(20);
  if (packets_.empty() || what == 0) {
    packet p = pool_->try_allocate();
    if (p) packets_.push_back({std::move(p), {}});
    if (packets_.empty()) return;
  } else if (what == 1) {
    starve();
  } else {
    const std::size_t which = below(packets_.size());
    pair_of& p = packets_[which];
    if (what == 2) packets_.erase(packets_.begin() + static_cast<std::ptrdiff_t>(which));
    if (what > 2 && what < 5) add(p.real->clone(), model(p.flat));
    if (what >= 5 && what < 9) grow_at_the_ends(p);
    if (what >= 9 && what < 11) shrink(p);
    if (what == 11) set_header(p);
    if (what >= 12 && what < 15) append(p);
    if (what == 15) cut(p);
    if (what >= 16) move_about(p);
  }
  check();
}

RC_GTEST_PROP(packet_buffer, does_as_a_flat_model, ()) {
  run r;
  const int steps = *rc::gen::inRange(0, std::getenv("FOREBAY_STRESS") != nullptr ? 1000 : 100);
  for (int i = 0; i < steps; ++i) r.step();
  r.finish();
}

}  // namespace
}  // namespace forebay
