#include "sim/wire.h"

#include <utility>

namespace forebay {
namespace {

constexpr std::array<std::uint32_t, 256> make_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    std::uint32_t c = i;
    for (unsigned bit = 0; bit < 8; ++bit) c = (c & 1) != 0 ? 0xedb88320 ^ (c >> 1) : c >> 1;
    table[i] = c;
  }
  return table;
}

}  // namespace

std::uint32_t frame_check(std::span<const std::byte> bytes, std::uint32_t before) noexcept {
  static constexpr std::array<std::uint32_t, 256> table = make_table();
  std::uint32_t c = ~before;
  for (const std::byte b : bytes) c = table[(c ^ static_cast<std::uint8_t>(b)) & 0xff] ^ (c >> 8);
  return ~c;
}

void simulated_wire::connect(wire_end& a, wire_end& b) {
  ends_ = {&a, &b};
  ++connection_;
  for (wire_end* e : ends_) e->set_carrier(true);
}

void simulated_wire::disconnect() {
  ++connection_;
  for (wire_end* e : std::exchange(ends_, {})) {
    if (e != nullptr) e->set_carrier(false);
  }
}

// Chance is asked whatever the probability, so that a knob changes nothing but what it is for.
bool simulated_wire::happens(double probability) {
  return std::uniform_real_distribution<double>(0, 1)(random_) < probability;
}

void simulated_wire::send(const wire_end& from, wire_frame&& f) {
  const bool lost = happens(options_.loss);
  const bool corrupted = happens(options_.corruption);
  const bool reordered = happens(options_.reordering);
  const std::uint32_t where = random_();
  wire_end* const to = ends_[0] == &from ? ends_[1] : ends_[0];
  if (lost || to == nullptr) {
    ++stats_.lost;
    return;
  }
  if (corrupted) {
    ++stats_.corrupted;
    f.data[where / 8 % f.data.size()] ^= std::byte{1} << where % 8;
  }
  if (reordered) ++stats_.reordered;
  clock_.after(options_.latency_ns + (reordered ? options_.reorder_ns : 0),
               [this, to, of = connection_, frame = std::move(f)]() mutable {
                 if (of != connection_) {
                   ++stats_.cut;
                   return;
                 }
                 ++stats_.carried;
                 to->arrive(std::move(frame));
               });
}

}  // namespace forebay
