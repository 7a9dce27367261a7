#include "sim/nic.h"

#include <algorithm>
#include <numeric>

namespace forebay {
namespace {

constexpr std::size_t shortest_frame = 60;
constexpr std::size_t wire_overhead = 24;  // preamble, check sequence, gap between frames

}  // namespace

std::uint64_t simulated_nic::wire_ns(std::size_t bytes) const noexcept {
  const std::uint64_t bits = (std::max(bytes, shortest_frame) + wire_overhead) * 8;
  return bits * 1'000'000'000 / options_.bits_per_second;
}

// Calls `then` after a while, unless there is a reset before.
template <typename F>
void simulated_nic::after(std::uint64_t length_ns, F then) {
  clock_.after(length_ns, [this, of = life_, then] {
    if (of == life_) then();
  });
}

result<> simulated_nic::start(const coherent_buffer& rx_ring, const coherent_buffer& tx_ring) {
  if (rx_ring_) return fail(EBUSY);
  for (const coherent_buffer* b : {&rx_ring, &tx_ring}) {
    for (const auto access : {dma_direction::to_device, dma_direction::from_device}) {
      if (auto r = domain_.device_check(b->address(), b->size(), access); !r) return r;
    }
  }
  auto rx = descriptor_device::attach(rx_ring.bytes());
  if (!rx) return fail(rx.error());
  auto tx = descriptor_device::attach(tx_ring.bytes());
  if (!tx) return fail(tx.error());
  rx_ring_.emplace(std::move(*rx));
  tx_ring_.emplace(std::move(*tx));
  pump_rx();
  return {};
}

void simulated_nic::reset() {
  ++life_;
  ++stats_.resets;
  stats_.rx_lost_in_reset += rx_fifo_.size();
  stats_.tx_lost_in_reset += tx_fifo_.size();
  rx_ring_.reset();
  tx_ring_.reset();
  rx_fifo_.clear();
  tx_fifo_.clear();
  to_send_.clear();
  written_.clear();
  rx_bytes_ = tx_bytes_ = piece_count_ = 0;
  rx_busy_ = rx_waits_ = tx_busy_ = line_busy_ = interrupt_ = false;
  ended_ = 0;
}

void simulated_nic::remove() {
  removed_ = true;
  reset();
  raise_interrupt();
}

void simulated_nic::set_carrier(bool up) {
  carrier_ = up;
  raise_interrupt();
  pump_line();
}

void simulated_nic::ring_rx_doorbell() {
  ++stats_.doorbells;
  rx_waits_ = false;
  pump_rx();
}

void simulated_nic::ring_tx_doorbell() {
  ++stats_.doorbells;
  pump_tx();
}

std::optional<std::uint32_t> simulated_nic::next_written() noexcept {
  if (written_.empty()) return std::nullopt;
  const std::uint32_t check = written_.front();
  written_.pop_front();
  return check;
}

// ---- Rings ----

// The pieces of the next chain, in pieces_; none if there is none, or the ring is broken.
std::span<const descriptor> simulated_nic::take(ring& from) {
  if (!from || from->fault()) return {};
  const auto chain = from->take(pieces_);
  if (!chain) {
    ++stats_.ring_faults;
    return {};
  }
  return chain->descriptors;
}

void simulated_nic::end(ring& of, std::uint32_t length, int error) {
  if (!of->complete(length, static_cast<std::uint16_t>(error))) return;
  of->notify();
  if (++ended_ >= options_.interrupt_descriptors) return raise_interrupt();
  if (ended_ != 1) return;
  after(options_.interrupt_ns, [this, before = stats_.interrupts] {
    if (stats_.interrupts == before) raise_interrupt();
  });
}

void simulated_nic::raise_interrupt() noexcept {
  ended_ = 0;
  interrupt_ = true;
  ++stats_.interrupts;
}

// ---- Receiving ----

void simulated_nic::arrive(wire_frame&& f) {
  if (!link_up()) {
    ++stats_.rx_link_down;
    return;
  }
  if (!receiving_) {
    ++stats_.rx_disabled;
    return;
  }
  if (frame_check(f.data) != f.check) {
    ++stats_.rx_bad_check;
    return;
  }
  const std::size_t bytes = f.data.size();
  ++stats_.rx_frames;
  stats_.rx_bytes += bytes;
  if (bytes > options_.rx_fifo_bytes - rx_bytes_) {
    ++stats_.rx_fifo_full;
    return;
  }
  rx_bytes_ += bytes;
  stats_.rx_fifo_bytes_max = std::max<std::uint64_t>(stats_.rx_fifo_bytes_max, rx_bytes_);
  rx_fifo_.push_back(std::move(f));
  pump_rx();
}

// Begins to write the oldest frame, if there is one, and a buffer for it.
void simulated_nic::pump_rx() {
  if (rx_busy_ || rx_waits_ || rx_fifo_.empty() || !rx_ring_) return;
  std::array<descriptor, 1> one;
  const auto chain =
      rx_ring_->fault() ? result<descriptor_device::taken_chain>{} : rx_ring_->take(one);
  if (!chain) ++stats_.ring_faults;
  if (!chain || chain->descriptors.empty()) {
    rx_waits_ = true;
    ++stats_.rx_waits;
    return;
  }
  rx_busy_ = true;
  after(dma_ns(rx_fifo_.front().data.size()), [this, to = one[0]] { write_frame(to); });
}

void simulated_nic::write_frame(const descriptor& to) {
  const wire_frame f = std::move(rx_fifo_.front());
  rx_fifo_.pop_front();
  rx_bytes_ -= f.data.size();
  const auto length = static_cast<std::uint32_t>(f.data.size());
  constexpr auto access = dma_direction::from_device;
  int error = 0;
  if ((to.flags & descriptor_write) == 0 || length > to.length) {
    ++stats_.rx_too_long;
    error = EMSGSIZE;
  } else if (!domain_.device_check(dma_address{to.address}, length, access)) {
    ++stats_.dma_faults;
    error = EFAULT;
  } else {
    const dma_segment place{dma_address{to.address}, length, dma_segment::no_region};
    domain_.check_access(place, 0, length, access);
    static_cast<void>(domain_.device_write(place.address, f.data));  // it reaches all of it
    if (keeps_checks_) written_.push_back(f.check);
  }
  rx_busy_ = false;
  end(rx_ring_, error == 0 ? length : 0, error);
  pump_rx();
}

// ---- Sending ----

// Begins to read the next frame, if there is one, and room for it in the FIFO.
void simulated_nic::pump_tx() {
  while (!tx_busy_) {
    if (piece_count_ == 0) piece_count_ = take(tx_ring_).size();
    if (piece_count_ == 0) return;
    const auto bytes = std::accumulate(
        pieces_.begin(), pieces_.begin() + static_cast<std::ptrdiff_t>(piece_count_),
        std::size_t{0}, [](std::size_t sum, const descriptor& d) { return sum + d.length; });
    if (bytes == 0 || bytes > std::min(frame_bytes_max, options_.tx_fifo_bytes)) {
      ++stats_.tx_too_long;
      piece_count_ = 0;
      if (keeps_checks_ && !to_send_.empty()) to_send_.pop_front();
      end(tx_ring_, 0, EMSGSIZE);
      continue;
    }
    if (bytes > options_.tx_fifo_bytes - tx_bytes_) return;
    tx_bytes_ += bytes;
    tx_busy_ = true;
    after(dma_ns(bytes), [this] { read_frame(); });
  }
}

void simulated_nic::read_frame() {
  wire_frame f;
  std::size_t promised = 0;
  bool reached = true;
  for (std::size_t i = 0; i < piece_count_; ++i) {
    const descriptor& d = pieces_[i];
    const dma_segment place{dma_address{d.address}, d.length, dma_segment::no_region};
    promised += d.length;
    f.data.resize(promised);
    const std::span<std::byte> part = std::span(f.data).last(d.length);
    reached = reached && (d.flags & descriptor_write) == 0 &&
              domain_.device_read(place.address, part).has_value();
    if (reached) domain_.check_access(place, 0, d.length, dma_direction::to_device);
  }
  piece_count_ = 0;
  tx_busy_ = false;
  f.check = frame_check(f.data);
  if (keeps_checks_ && !to_send_.empty()) {
    if (reached && to_send_.front() != f.check) ++changed_before_sent_;
    to_send_.pop_front();
  }
  if (reached) {
    tx_fifo_.push_back(std::move(f));
  } else {
    ++stats_.dma_faults;
    tx_bytes_ -= promised;
  }
  end(tx_ring_, reached ? static_cast<std::uint32_t>(promised) : 0, reached ? 0 : EFAULT);
  pump_line();
  pump_tx();
}

// Begins to put the oldest frame on the wire.
void simulated_nic::pump_line() {
  if (line_busy_ || tx_fifo_.empty()) return;
  line_busy_ = true;
  after(wire_ns(tx_fifo_.front().data.size()), [this] {
    wire_frame f = std::move(tx_fifo_.front());
    tx_fifo_.pop_front();
    tx_bytes_ -= f.data.size();
    line_busy_ = false;
    if (!link_up() || wire_ == nullptr) {
      ++stats_.tx_link_down;
    } else {
      ++stats_.tx_frames;
      stats_.tx_bytes += f.data.size();
      wire_->send(*this, std::move(f));
    }
    pump_line();
    pump_tx();
  });
}

}  // namespace forebay
