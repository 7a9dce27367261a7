#include "forebay/cache/bio_pool.h"

#include <new>
#include <utility>

namespace forebay {

bio_pool::bio_pool(arena& memory, std::size_t object_bytes, std::size_t reserve)
    : slabs_(memory, {.name = "bio", .object_bytes = object_bytes}), reserve_max_(reserve) {
  for (std::size_t i = 0; i < reserve; ++i) {
    void* const object = slabs_.allocate();
    if (object == nullptr) {
      reserve_max_ = i;
      break;
    }
    to_reserve(object);
  }
}

bio_pool::~bio_pool() {
  while (void* const object = from_reserve()) slabs_.free(object);
}

bool bio_pool::to_reserve(void* object) noexcept {
  const scoped_lock hold(lock_);
  const std::size_t n = reserved_.load(std::memory_order_relaxed);  // relaxed: under lock_
  if (n == reserve_max_) return false;
  reserve_ = new (object) spare{reserve_};
  reserved_.store(n + 1, std::memory_order_relaxed);  // relaxed: as above
  return true;
}

void* bio_pool::from_reserve() noexcept {
  const scoped_lock hold(lock_);
  if (reserve_ == nullptr) return nullptr;
  reserved_.fetch_sub(1, std::memory_order_relaxed);  // relaxed: under lock_
  return std::exchange(reserve_, reserve_->next);
}

void* bio_pool::allocate() noexcept {
  void* const object = slabs_.allocate();
  return object != nullptr ? object : from_reserve();
}

void bio_pool::free(void* object) noexcept {
  // relaxed: a hint; whether there is room is looked at under the lock.
  if (reserved_.load(std::memory_order_relaxed) < reserve_max_ && to_reserve(object)) return;
  slabs_.free(object);
}

std::size_t bio_pool::reserved() const noexcept {
  return reserved_.load(std::memory_order_relaxed);  // relaxed: a level
}

}  // namespace forebay
