#include "sim/nic_port.h"

#include <algorithm>

namespace forebay {
namespace {

constexpr std::size_t reap_burst = 64;

// The pieces of a packet, and how many.
std::size_t pieces_of(const packet_buffer& p, std::span<iovec> out) noexcept {
  std::size_t n = 0;
  p.for_each_segment([&](std::span<const std::byte> s) {
    out[n++] = {const_cast<std::byte*>(s.data()), s.size()};  // it is only read
  });
  return n;
}

std::uint32_t check_of(const packet_buffer& p) noexcept {
  std::uint32_t check = 0;
  p.for_each_segment([&](std::span<const std::byte> s) { check = frame_check(s, check); });
  return check;
}

}  // namespace

result<std::unique_ptr<nic_port>> nic_port::open(simulated_nic& nic, arena& memory,
                                                 packet_pool& pool, const options& opts) {
  auto rx = coherent_buffer::create(memory, nic.domain(),
                                    descriptor_driver::region_bytes(opts.rx_entries));
  if (!rx) return fail(rx.error());
  auto tx = coherent_buffer::create(memory, nic.domain(),
                                    descriptor_driver::region_bytes(opts.tx_entries));
  if (!tx) return fail(tx.error());
  std::unique_ptr<nic_port> made(new nic_port(nic, pool, opts, std::move(*rx), std::move(*tx)));
  if (auto r = made->fill_slots(); !r) return fail(r.error());
  if (opts.check_ownership) nic.keep_checks();
  if (auto r = made->start(); !r) return fail(r.error());
  return made;
}

nic_port::~nic_port() {
  // Before anything is unmapped.
  nic_.reset();
  for (tx_slot& s : tx_slots_) release(s);
}

result<> nic_port::fill_slots() {
  slots_.reserve(options_.rx_entries);
  while (slots_.size() < options_.rx_entries) {
    packet empty = pool_.try_allocate();
    if (!empty) return fail(ENOBUFS);
    auto mapped = own(std::move(empty)).map(nic_.domain(), dma_direction::from_device);
    if (!mapped) return fail(mapped.error());
    slots_.push_back(std::move(*mapped));
  }
  return {};
}

// Makes the rings, posts all slots and starts the device.
result<> nic_port::start() {
  auto rx = descriptor_driver::create(rx_memory_.bytes(), {.entries = options_.rx_entries});
  if (!rx) return fail(rx.error());
  auto tx = descriptor_driver::create(tx_memory_.bytes(), {.entries = options_.tx_entries});
  if (!tx) return fail(tx.error());
  rx_.emplace(std::move(*rx));
  tx_.emplace(std::move(*tx));
  if (auto r = nic_.start(rx_memory_, tx_memory_); !r) return r;
  for (std::uint64_t i = 0; i < slots_.size(); ++i) post_slot(i);
  rx_->ring_doorbell();
  nic_.ring_rx_doorbell();
  return {};
}

result<> nic_port::reset() noexcept {
  nic_.reset();
  // What has ended before counts as that; the rest is given back as it is.
  reap_sent();
  work_.tx_lost_in_reset += tx_slots_.size();
  for (tx_slot& s : tx_slots_) release(s);
  tx_slots_.clear();
  std::array<ended_chain, reap_burst> ended;
  while (const std::size_t n = rx_->reap(ended).value_or(0)) rx_lost_in_reset_ += n;
  return start();
}

// ---- Receiving ----

void nic_port::post_slot(std::uint64_t number) noexcept {
  const dma_segment& s = slots_[number].segment();
  // There are as many entries as slots.
  const auto posted = rx_->post(
      {.address = to_number(s.address), .length = s.length, .flags = descriptor_write}, number);
  FOREBAY_ASSERT(posted.has_value());
}

packet nic_port::copy_out(device_owned<packet>& slot, std::uint32_t length) noexcept {
  packet p = pool_.try_allocate();
  if (!p) return p;
  const auto view = slot.sync_for_cpu(0, length);
  FOREBAY_ASSERT(view.has_value());
  std::ranges::copy(view->bytes(), p->put_unchecked(length));
  ++work_.copied;
  return p;
}

packet nic_port::flip_out(device_owned<packet>& slot, std::uint32_t length) noexcept {
  packet empty = pool_.try_allocate();
  if (!empty) return {};
  auto filled = flip(slot, std::move(empty));
  if (!filled) return {};
  packet p = std::move(*filled).release();
  static_cast<void>(p->put_unchecked(length));
  ++work_.flipped;
  return p;
}

// The frame that a descriptor has ended with, if it can go up.
bool nic_port::take_frame(const ended_chain& e, packet& out) noexcept {
  if (e.error != 0) {
    ++(e.error == EMSGSIZE ? counted_.dropped_malformed : counted_.dropped_memory);
    return false;
  }
  device_owned<packet>& slot = slots_[e.id];
  const auto written = nic_.next_written();
  packet p = e.length != 0 && e.length <= options_.copybreak_bytes ? copy_out(slot, e.length)
                                                                   : flip_out(slot, e.length);
  if (!p) {
    ++counted_.dropped_memory;
    return false;
  }
  if (written && *written != check_of(*p)) ++work_.ownership_violations;
  p->set_timestamp_ns(options_.started_at_ns + nic_.clock().now_ns());
  ++counted_.delivered;
  counted_.delivered_bytes += e.length;
  out = std::move(p);
  return true;
}

std::size_t nic_port::receive(std::span<packet> out) noexcept {
  std::array<ended_chain, reap_burst> ended;
  std::size_t n = 0;
  while (n < out.size()) {
    const std::size_t wanted = std::min(out.size() - n, ended.size());
    const std::size_t got = rx_->reap(std::span(ended).first(wanted)).value_or(0);
    if (got == 0) break;
    for (const ended_chain& e : std::span(ended).first(got)) {
      if (take_frame(e, out[n])) ++n;
      post_slot(e.id);
    }
    rx_->ring_doorbell();
    nic_.ring_rx_doorbell();
  }
  if (options_.receive_ns != 0 && n != 0) {
    nic_.clock().run_until(nic_.clock().now_ns() + n * options_.receive_ns);
  }
  return n;
}

// ---- Sending ----

// Posts one packet, which is the device's then.
result<> nic_port::post(packet& p) noexcept {
  if (p->empty() || p->length() > simulated_nic::frame_bytes_max) return fail(EMSGSIZE);
  std::array<iovec, packet_buffer::fragments_max + 1> pieces;
  const std::size_t piece_count = pieces_of(*p, pieces);
  tx_slot s;
  const auto mapped = map_segments(nic_.domain(), std::span(pieces).first(piece_count),
                                   dma_direction::to_device, s.segments);
  if (!mapped) return fail(mapped.error());
  s.segment_count = *mapped;
  std::array<descriptor, simulated_nic::pieces_max> chain;
  for (std::size_t i = 0; i < s.segment_count; ++i) {
    chain[i] = {.address = to_number(s.segments[i].address), .length = s.segments[i].length};
  }
  const auto posted = tx_->post(std::span(chain).first(s.segment_count), 0);
  s.held = std::move(p);
  if (!posted) {
    packet back = std::move(s.held);
    unmap_segments(nic_.domain(), std::span(pieces).first(piece_count), dma_direction::to_device,
                   std::span(s.segments).first(s.segment_count));
    p = std::move(back);
    return posted;
  }
  if (options_.check_ownership) nic_.expect_to_send(check_of(*s.held));
  tx_slots_.push_back(std::move(s));
  return {};
}

void nic_port::release(tx_slot& s) noexcept {
  std::array<iovec, packet_buffer::fragments_max + 1> pieces;
  const std::size_t piece_count = pieces_of(*s.held, pieces);
  unmap_segments(nic_.domain(), std::span(pieces).first(piece_count), dma_direction::to_device,
                 std::span(s.segments).first(s.segment_count));
  s.held.reset();
}

// Chains end in the order in which they were posted.
void nic_port::end_sent(const ended_chain& e) noexcept {
  tx_slot& s = tx_slots_.front();
  if (e.error != 0) {
    ++work_.tx_faults;
  } else {
    ++counted_.transmitted;
    counted_.transmitted_bytes += s.held->length();
  }
  release(s);
  tx_slots_.pop_front();
}

void nic_port::reap_sent() noexcept {
  std::array<ended_chain, reap_burst> ended;
  while (const std::size_t n = tx_->reap(ended).value_or(0)) {
    for (const ended_chain& e : std::span(ended).first(n)) end_sent(e);
  }
}

result<std::size_t> nic_port::transmit(std::span<packet> packets) noexcept {
  reap_sent();
  if (!nic_.link_up()) return fail(ENETDOWN);
  std::size_t sent = 0;
  for (packet& p : packets) {
    const auto posted = post(p);
    if (posted) {
      ++sent;
      continue;
    }
    if (posted.error().value() != EAGAIN && sent == 0) return fail(posted.error());
    ++counted_.refused;
    break;
  }
  if (sent != 0) {
    tx_->ring_doorbell();
    nic_.ring_tx_doorbell();
  }
  return sent;
}

// ---- The rest ----

result<> nic_port::wait(int timeout_ms, int) noexcept {
  simulated_clock& clock = nic_.clock();
  const std::uint64_t end =
      timeout_ms < 0 ? UINT64_MAX
                     : clock.now_ns() + static_cast<std::uint64_t>(timeout_ms) * 1'000'000;
  // Without an end and an event there is nothing that could come.
  while (!nic_.take_interrupt() && !(timeout_ms < 0 && clock.idle()) && clock.run_next(end)) {
  }
  reap_sent();
  return {};
}

link_state nic_port::state() noexcept {
  if (nic_.removed()) return link_state::gone;
  return nic_.link_up() ? link_state::up : link_state::down;
}

bool nic_port::drained() noexcept {
  const port_statistics s = statistics();
  return s.received == s.delivered + s.dropped_full + s.dropped_memory + s.dropped_malformed;
}

port_statistics nic_port::statistics() noexcept {
  port_statistics s = counted_;
  const nic_statistics& n = nic_.stats();
  s.received = n.rx_frames;
  s.dropped_full = n.rx_fifo_full + n.rx_lost_in_reset + rx_lost_in_reset_;
  s.dropped_interface = n.rx_bad_check + n.rx_link_down + n.rx_disabled;
  return s;
}

nic_port::counters nic_port::work() const noexcept {
  counters c = work_;
  c.ownership_violations += nic_.changed_before_sent();
  return c;
}

}  // namespace forebay
