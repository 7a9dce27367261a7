#include "forebay/cache/bio_batch.h"

#include <new>

namespace forebay {

std::size_t bio_batch::bio_bytes() noexcept { return sizeof(batch_bio); }

bio_batch::batch_bio* bio_batch::acquire() noexcept {
  if (in_flight_ >= depth_) return nullptr;
  batch_bio* b = nullptr;
  if (!reserve_busy_) {
    reserve_busy_ = true;
    b = &reserve_;
  } else {
    void* const memory = pool_.allocate();
    starved_ = memory == nullptr;
    if (memory == nullptr) return nullptr;
    b = new (memory) batch_bio;
  }
  b->op = op_;
  b->flags = flags_;
  b->urgency = urgency_;
  b->segment_count = 0;
  b->length_bytes = 0;
  b->batch = this;
  b->run = [](completion& c) noexcept {
    auto& ended_bio = static_cast<batch_bio&>(c);
    ended_bio.batch->ended(ended_bio);
  };
  return b;
}

bool bio_batch::try_append(std::uint64_t offset_bytes, std::byte* data,
                           std::size_t bytes) noexcept {
  if (current_ != nullptr) {
    const bool fits = current_->end_bytes() == offset_bytes &&
                      current_->length_bytes + bytes <= device_.limits().max_transfer_bytes;
    if (fits && current_->add(data, bytes)) return true;
    submit();
  }
  current_ = acquire();
  if (current_ == nullptr) return false;
  current_->offset_bytes = offset_bytes;
  return current_->add(data, bytes);
}

void bio_batch::submit() noexcept {
  if (current_ == nullptr) return;
  ++in_flight_;
  device_.submit(*std::exchange(current_, nullptr));
}

void bio_batch::ended(batch_bio& b) noexcept {
  if (b.status != 0) set_error(b.status);
  end_(space_, b);
  --in_flight_;
  starved_ = false;
  if (&b == &reserve_) {
    reserve_busy_ = false;
  } else {
    b.~batch_bio();
    pool_.free(&b);
  }
  if (waiter_ && reached(limit_)) std::exchange(waiter_, {}).resume();
}

}  // namespace forebay
