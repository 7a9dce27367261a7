// What can be wrong with a ring that two processes share: with what this side asked for, with the
// header that the other side wrote, with what the other side does. A std::error_code of a category
// of its own, so that each has a name; to_errno() makes EIO of them.
#pragma once

#include <system_error>

namespace forebay {

enum class ring_errc {
  // What was asked for.
  no_power_of_two = 1,  // a number of entries that is none
  too_few_entries,
  too_many_entries,
  region_too_small,   // for the ring that is asked for, or that the header describes
  region_misaligned,  // see shared_region_alignment
  // The header.
  bad_magic,
  bad_version,
  bad_kind,    // another kind of ring
  bad_layout,  // sizes that contradict each other
  // What the other side does.
  position_jump,     // a head or tail moved further than there are entries, or back
  unknown_id,        // an identifier outside the table
  stale_id,          // of nothing that is under way: never used, not read yet, or ended already
  duplicate_id,      // of a command while another one has it
  bad_length,        // zero bytes, or more than the buffer or the limit
  bad_status,        // not an errno value
  bad_flags,         // unknown flags, or such that exclude each other
  bad_order,         // a descriptor to be read after one to be written
  chain_index,       // a descriptor's number is outside the table
  chain_loop,        // a chain comes back to a descriptor of its own
  chain_too_long,    // more descriptors than the limit
  chain_cut,         // a chain goes on behind what has been published
  chain_pieces,      // more pieces of memory than there is room for
  unmapped_address,  // an address outside all regions
  forbidden_access,  // a region that the device may not write
  misaligned_table,  // a table of descriptors that is not aligned to 8 bytes, or not whole
  peer_gone,         // the other process has ended
};

const std::error_category& ring_error_category() noexcept;
std::error_code make_error_code(ring_errc e) noexcept;

}  // namespace forebay

template <>
struct std::is_error_code_enum<forebay::ring_errc> : std::true_type {};
