// Guards: the CPU's access to memory that a device has faults where it happens.
//
//    mapping     |···|####|####|####|···|      #: pages that lie in it whole are protected:
//    pages       |  p0  |  p1 |  p2 |  p3  |      read-only while the device only reads,
//    with a checker  |##############|             not accessible while it may write
//    lent                   |··|               the pages that it touches are open until returned
//
// Memory that the device may write is told to a memory checker where there is one (the address
// sanitizer, valgrind), which catches stray accesses to the byte (but for the first and last seven,
// where a neighbour begins in the middle of a word). Otherwise, and where the device only reads,
// pages are protected (os/protection.h); what shares its page with other memory is not.
//
// What a page may be is worked out from all mappings that hold it, in all domains: it is open again
// when the last of them has gone. Memory must have been readable and writable, and is again then;
// its huge pages stay split.
#pragma once

#include <cstdint>

#include "forebay/dma/mapping_record.h"

namespace forebay {

class dma_guard {
 public:
  using records = range_index<dma_mapping>;

  // Whether the operating system lets single pages of it be protected, which it does not in huge
  // pages of MAP_HUGETLB. The device must have it; update() has to follow if so.
  static bool possible(const dma_mapping& m) noexcept;

  // Sets the guard of `bytes` from `start` of a mapping as the records say, and what it has lent.
  // Unless `active` it is not among the records any more, and its guard goes. False if the
  // operating system refuses to close memory; to refuse to open it again is an assertion's failure.
  // Called with the records' lock held.
  static bool update(const records& all, const dma_mapping& m, std::uint64_t start,
                     std::uint64_t bytes, bool active) noexcept;
};

}  // namespace forebay
