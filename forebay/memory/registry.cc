#include "forebay/memory/registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "forebay/base/assert.h"

namespace forebay {

std::string_view to_string(memory_kind kind) noexcept {
  switch (kind) {
    case memory_kind::slab:
      return "slab";
    case memory_kind::pool:
      return "pool";
    case memory_kind::frames:
      return "frames";
  }
  return "?";
}

registered_memory::~registered_memory() { FOREBAY_ASSERT(registry_ == nullptr); }

result<> registered_memory::enroll(memory_registry& registry, if_taken taken) {
  FOREBAY_ASSERT(registry_ == nullptr);
  if (name_.empty()) return fail(EINVAL);
  const scoped_lock hold(registry.lock_);
  std::string name = name_;
  for (unsigned number = 2; registry.taken(name); ++number) {
    if (taken == if_taken::refuse) return fail(EEXIST);
    name = fmt::format("{}:{}", name_, number);
  }
  name_ = std::move(name);
  registry_ = &registry;
  registry.list_.push_back(*this);
  return {};
}

void registered_memory::withdraw() noexcept {
  if (registry_ == nullptr) return;
  const scoped_lock hold(registry_->lock_);
  link_.unlink();
  registry_ = nullptr;
}

memory_registry::~memory_registry() {
  const scoped_lock hold(lock_);
  FOREBAY_ASSERT(list_.empty());
}

memory_registry& memory_registry::process() noexcept {
  // Never destroyed: what is static in a program may withdraw after everything else.
  alignas(memory_registry) static std::byte storage[sizeof(memory_registry)];
  static auto* const registry = new (storage) memory_registry;
  return *registry;
}

bool memory_registry::taken(std::string_view name) noexcept {
  return std::any_of(list_.begin(), list_.end(),
                     [&](const registered_memory& m) { return m.name_ == name; });
}

namespace {

std::uint64_t value_of(const memory_statistics& s, memory_order_by order) noexcept {
  switch (order) {
    case memory_order_by::name:
      return 0;
    case memory_order_by::active:
      return s.active;
    case memory_order_by::total:
      return s.total;
    case memory_order_by::cached:
      return s.cached;
    case memory_order_by::object_bytes:
      return s.object_bytes;
    case memory_order_by::slabs:
      return s.slabs;
    case memory_order_by::bytes:
      return s.bytes;
    case memory_order_by::allocations:
      return s.allocations;
    case memory_order_by::failures:
      return s.failures;
    case memory_order_by::high_watermark:
      return s.high_watermark;
  }
  return 0;
}

}  // namespace

std::vector<memory_statistics> memory_registry::snapshot(memory_order_by order) const {
  std::vector<memory_statistics> all;
  {
    const scoped_lock hold(lock_);
    for (const registered_memory& m : list_) all.push_back(m.report());
  }
  std::sort(all.begin(), all.end(),
            [order](const memory_statistics& a, const memory_statistics& b) {
              const std::uint64_t x = value_of(a, order);
              const std::uint64_t y = value_of(b, order);
              return x != y ? x > y : a.name < b.name;
            });
  return all;
}

std::string memory_registry::name_of(const void* address) const {
  const scoped_lock hold(lock_);
  for (const registered_memory& m : list_) {
    if (&m == address) return m.name_;
  }
  return {};
}

}  // namespace forebay
