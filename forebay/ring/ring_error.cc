#include "forebay/ring/ring_error.h"

#include <string>

namespace forebay {
namespace {

const char* text_of(ring_errc e) noexcept {
  switch (e) {
    case ring_errc::no_power_of_two:
      return "the number of entries is no power of two";
    case ring_errc::too_few_entries:
      return "too few entries";
    case ring_errc::too_many_entries:
      return "too many entries";
    case ring_errc::region_too_small:
      return "the region is too small for the ring";
    case ring_errc::region_misaligned:
      return "the region is not aligned";
    case ring_errc::bad_magic:
      return "the region holds no ring";
    case ring_errc::bad_version:
      return "the ring is of another version";
    case ring_errc::bad_kind:
      return "the ring is of another kind";
    case ring_errc::bad_layout:
      return "the sizes in the ring's header contradict each other";
    case ring_errc::position_jump:
      return "the peer moved a head or tail out of its range";
    case ring_errc::unknown_id:
      return "the peer used an identifier that does not exist";
    case ring_errc::stale_id:
      return "the peer completed what is not under way";
    case ring_errc::duplicate_id:
      return "the peer used an identifier twice";
    case ring_errc::bad_length:
      return "the peer gave a length that is zero or past the buffer";
    case ring_errc::bad_status:
      return "the peer gave a status that is no error number";
    case ring_errc::bad_flags:
      return "the peer set flags that are unknown or exclude each other";
    case ring_errc::bad_order:
      return "a buffer to be read follows one to be written";
    case ring_errc::chain_index:
      return "a descriptor chain leaves its table";
    case ring_errc::chain_loop:
      return "a descriptor chain is a loop";
    case ring_errc::chain_too_long:
      return "a descriptor chain is too long";
    case ring_errc::chain_cut:
      return "a descriptor chain has no end";
    case ring_errc::chain_pieces:
      return "a descriptor chain is of too many pieces of memory";
    case ring_errc::unmapped_address:
      return "an address is outside the memory that is shared";
    case ring_errc::forbidden_access:
      return "memory that may only be read is to be written";
    case ring_errc::misaligned_table:
      return "a table of descriptors is misaligned or not whole";
    case ring_errc::peer_gone:
      return "the peer has ended";
  }
  return "unknown ring error";
}

class category final : public std::error_category {
 public:
  const char* name() const noexcept override { return "ring"; }
  std::string message(int condition) const override {
    return text_of(static_cast<ring_errc>(condition));
  }
};

}  // namespace

const std::error_category& ring_error_category() noexcept {
  static const category instance;
  return instance;
}

std::error_code make_error_code(ring_errc e) noexcept {
  return {static_cast<int>(e), ring_error_category()};
}

}  // namespace forebay
