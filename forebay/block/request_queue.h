// request_queue: a device over a device that splits, merges, orders by urgency and limits what is
// under way, as Linux's block layer between bios and a driver.
//
//                     too large                        waits (list per class)
//   submit(bio) ──┬──> split into pieces ──┬──────────┐      ^        |
//                 ├──> plugged: gathered,  ├──> admission ───┘        | a place is given up
//                 │    neighbours merged ──┤          |               v
//                 └────────────────────────┘          └────────> lower.submit(bio)
//
// A request is a bio as the lower device sees it: the submitter's own, or his with the segments of
// neighbours appended to it. Nothing is allocated for either. Neighbours are of the same operation,
// flags, urgency and thread; they are found among what the thread has plugged, and among those that
// came last to the waiting of their class. If a request of several fails, each of its bios is done
// again by itself: so nobody gets the error of his neighbour.
//
// A bio that is larger than the lower device's limits is cut into pieces, of which some are under
// way at a time; it ends once, with the first error. Without memory for pieces it is done piece by
// piece, with a record that the queue keeps for that.
//
// Urgency (bio_class): see admission.h. Write-back may have three quarters of the places,
// read-ahead half of them. What waits is bounded as well: read-ahead beyond waiting_max ends with
// -EAGAIN, other bios with -EBUSY.
//
// Order: none is kept or assumed. A flush is a bio like others and goes down when it has a place;
// it covers what had completed above before it was submitted, since that had completed below then.
// FUA goes down with its write.
//
// Bios end on their submitter's executor and enter the lower device there: who gives up a place
// posts the next bio to its home. There is one admission for all threads and no lock in it while
// nobody waits; separate queues for threads would have to share it in any case, since the places
// are the device's.
//
// Lock: lock_ guards waiting_, starved_ and reserve_busy_; a leaf but for executor::post().
//
// While a bio is in the queue, bio::queued is the queue's: `queue` and the submitter's `run`; home
// and since_ns while it waits. `merged` leads along the bios of a request in the order of their
// offsets; the first one stands for it, knows the last and has its own length in own_bytes.
#pragma once

#include <atomic>
#include <memory>

#include "forebay/base/list.h"
#include "forebay/base/stats.h"
#include "forebay/block/admission.h"
#include "forebay/block/device.h"
#include "forebay/block/plug.h"
#include "forebay/os/mutex.h"

namespace forebay {

struct request_queue_statistics {
  struct of_class {
    std::uint64_t waited = 0;       // requests that found no place at once
    std::uint64_t waiting = 0;      // at present
    std::uint64_t refused = 0;      // because too many waited
    std::uint64_t wait_p50_ns = 0;  // of those that waited
    std::uint64_t wait_p99_ns = 0;
  };
  std::array<of_class, bio_class_count> classes{};
  std::uint64_t requests = 0;      // that went down
  std::uint64_t merged_back = 0;   // bios that continued a request
  std::uint64_t merged_front = 0;  // bios that a request continued
  std::uint64_t redone = 0;        // requests of several bios that failed and were done one by one
  std::uint64_t splits = 0;        // bios that were cut
  std::uint64_t pieces = 0;        // into so many
  std::uint64_t in_flight = 0;     // requests, at present
  std::uint64_t in_flight_max = 0;
  std::uint64_t in_flight_limit = 0;
};

class request_queue final : public device {
 public:
  struct options {
    std::uint16_t in_flight_max = 256;   // requests
    std::uint16_t waiting_max = 16'384;  // of each class
    // How often in a row a class that waits is passed over for a more urgent one.
    unsigned passed_over_max = 16;
  };

  // `lower` must outlive the queue. Takes the only memory that it cannot do without, and so may
  // throw std::bad_alloc.
  request_queue(device& lower, options opts);
  explicit request_queue(device& lower) : request_queue(lower, options()) {}
  // No bio is in it.
  ~request_queue() override;

  // The lower device's: what exceeds its transfers is accepted and cut.
  const device_limits& limits() const noexcept override { return lower_.limits(); }
  result<std::uint64_t> follow_size() noexcept override { return lower_.follow_size(); }
  void submit(bio& b) noexcept override;
  result<file_extent> extent_at(std::uint64_t offset_bytes) const override {
    return lower_.extent_at(offset_bytes);
  }
  int registrable_fd() const noexcept override { return lower_.registrable_fd(); }

  request_queue_statistics statistics() const noexcept;

 private:
  friend class plug;
  struct piece;
  struct split_job;
  using bio_list = intrusive_list<bio, &bio::queue_link>;

  static constexpr unsigned pieces_under_way_max = 8;  // of one bio
  static constexpr unsigned merge_looks_max = 8;       // at those that came last

  void dispatch(bio& b) noexcept;
  void wait(bio& b) noexcept FOREBAY_EXCLUDES(lock_);
  bool merge_with_waiting(bio& b) noexcept FOREBAY_REQUIRES(lock_);
  // Makes one request of both if they are neighbours: the bio that stands for it, null if they are
  // not.
  bio* try_merge(bio& earlier, bio& b) noexcept;
  void start(bio& b, unsigned in_flight) noexcept;
  void let_next_in() noexcept FOREBAY_EXCLUDES(lock_);
  static void ended(bio& b) noexcept;
  void end_merged(bio& first) noexcept;
  static void hand_back(bio& b, std::int32_t status) noexcept;

  void split(bio& b) noexcept FOREBAY_EXCLUDES(lock_);
  void give_back(split_job& job) noexcept FOREBAY_EXCLUDES(lock_);

  device& lower_;
  const options options_;
  admission admission_;  // its leave() and enter_or_wait() under lock_

  mutable mutex lock_;
  std::array<bio_list, bio_class_count> waiting_ FOREBAY_GUARDED_BY(lock_);
  const std::unique_ptr<split_job> reserve_;  // lent while reserve_busy_
  bool reserve_busy_ FOREBAY_GUARDED_BY(lock_) = false;
  bio_list starved_ FOREBAY_GUARDED_BY(lock_);  // to be cut, and there was no memory

  struct counters {
    counter requests, merged_back, merged_front, redone, splits, pieces;
    std::array<counter, bio_class_count> refused;
    std::array<histogram, bio_class_count> wait_ns;
  };
  counters counters_;
  std::atomic<unsigned> in_flight_most_{0};
};

}  // namespace forebay
