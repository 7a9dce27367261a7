// What the messages of a vhost-user front-end do (QEMU docs/interop/vhost-user.rst).

#include <algorithm>
#include <cstring>
#include <utility>

#include "forebay/os/socket.h"
#include "forebay/serve/vhost_device.h"

namespace forebay {
namespace {

constexpr std::uint64_t protocol_offer = vhost::protocol_mq | vhost::protocol_reply_ack |
                                         vhost::protocol_config | vhost::protocol_inflight |
                                         vhost::protocol_reset_device | vhost::protocol_mem_slots |
                                         vhost::protocol_backend_req;

// How long a message is, and how many descriptors come with it; -1 for either: its handler looks.
struct shape {
  int bytes = -1;
  int fds = 0;
};

shape shape_of(vhost::message m) noexcept {
  using enum vhost::message;
  switch (m) {
    case get_features:
    case set_owner:
    case reset_owner:
    case get_protocol_features:
    case get_queue_num:
    case get_max_mem_slots:
    case reset_device:
      return {.bytes = 0};
    case set_features:
    case set_protocol_features:
      return {.bytes = 8};
    case set_vring_num:
    case set_vring_base:
    case get_vring_base:
    case set_vring_enable:
      return {.bytes = sizeof(vhost::vring_state)};
    case set_vring_addr:
      return {.bytes = sizeof(vhost::vring_addr)};
    case set_vring_kick:
    case set_vring_call:
    case set_vring_err:
      return {.bytes = 8, .fds = -1};
    case get_inflight_fd:
      return {};
    case set_inflight_fd:
      return {.fds = 1};
    case set_backend_req_fd:
      return {.bytes = 0, .fds = 1};
    case add_mem_reg:
      return {.bytes = sizeof(vhost::single_region), .fds = 1};
    case rem_mem_reg:
      return {.bytes = sizeof(vhost::single_region), .fds = -1};
    case set_mem_table:
      return {.fds = -1};
    case get_config:
    case set_config:
      return {};
  }
  return {};
}

bool is_known(std::uint32_t request) noexcept {
  using enum vhost::message;
  constexpr vhost::message known[] = {
      get_features,   set_features,   set_owner,       reset_owner,       set_mem_table,
      set_vring_num,  set_vring_addr, set_vring_base,  get_vring_base,    set_vring_kick,
      set_vring_call, set_vring_err,  get_queue_num,   set_vring_enable,  get_protocol_features,
      get_config,     set_config,     get_inflight_fd, set_inflight_fd,   set_protocol_features,
      reset_device,   add_mem_reg,    rem_mem_reg,     get_max_mem_slots, set_backend_req_fd};
  return std::ranges::find(known, static_cast<vhost::message>(request)) != std::end(known);
}

guest_memory::region region_of(const vhost::memory_region& r) noexcept {
  return {.guest_physical = r.guest_physical,
          .bytes = r.bytes,
          .user_address = r.user_address,
          .file_offset = r.file_offset};
}

}  // namespace

template <typename T>
T vhost_device::payload() const noexcept {
  static_assert(sizeof(T) <= vhost::payload_max);
  T value;
  std::memcpy(&value, in_.data(), sizeof value);
  return value;
}

result<vhost_device::ring*> vhost_device::ring_of(std::uint32_t index) noexcept {
  if (index >= rings_.size()) return fail(EINVAL);
  return &rings_[index];
}

// Does what a message says. Errors: EINVAL for what is malformed, ENOTSUP for what is not known; of
// what was to be done.
task<> vhost_device::handle(const message& m) {
  using enum vhost::message;
  answered_ = false;
  if (!is_known(m.head.request)) co_return fail(ENOTSUP);
  const shape s = shape_of(m.what());
  if (s.bytes >= 0 && m.head.size != static_cast<std::uint32_t>(s.bytes)) co_return fail(EINVAL);
  if (s.fds >= 0 && m.fds != static_cast<std::size_t>(s.fds)) co_return fail(EINVAL);
  const auto tell = [&](std::uint64_t value) -> result<> {
    if (!send(m, std::as_bytes(std::span(&value, 1)))) return fail(errc::protocol);
    return {};
  };
  switch (m.what()) {
    case get_features:
      co_return tell(features());
    case set_features:
      co_return co_await this->set_features(payload<std::uint64_t>());
    case set_owner:
      co_return result<>{};
    case reset_owner:
    case reset_device:
      co_return co_await reset();
    case get_protocol_features:
      co_return tell(protocol_offer);
    case set_protocol_features: {
      const auto wanted = payload<std::uint64_t>();
      if ((wanted & ~protocol_offer) != 0) co_return fail(EINVAL);
      protocol_features_ = wanted;
      co_return result<>{};
    }
    case get_queue_num:
      co_return tell(queues_max);
    case get_max_mem_slots:
      co_return tell(guest_memory::regions_max);
    case get_config:
      co_return this->get_config(m);
    case set_config:
      co_return co_await this->set_config(m);
    case set_backend_req_fd:
      if ((protocol_features_ & vhost::protocol_backend_req) == 0) co_return fail(EINVAL);
      backend_ = std::move(fds_[0]);
      co_return result<>{};
    case get_inflight_fd:
      co_return get_inflight(m);
    case set_inflight_fd:
      co_return co_await set_inflight(m);
    case set_mem_table:
    case add_mem_reg:
    case rem_mem_reg:
      co_return co_await handle_memory(m);
    default:
      co_return co_await handle_ring(m);
  }
}

task<> vhost_device::set_features(std::uint64_t wanted) {
  if ((wanted & ~features()) != 0) co_return fail(EINVAL);
  if (auto stopped = co_await stop_all(); !stopped) co_return stopped;
  features_ = wanted;
  for (ring& r : rings_) {
    r.setup.packed = (wanted & virtio::ring_packed) != 0;
    r.setup.event_index = (wanted & virtio::ring_event_index) != 0;
    r.setup.indirect = (wanted & virtio::ring_indirect) != 0;
    // Without the protocol features there is no message to enable a ring by.
    if ((wanted & vhost::protocol_features_bit) == 0) r.enabled = true;
  }
  update_writeback();
  co_return co_await start_all();
}

void vhost_device::update_writeback() noexcept {
  // What has no way to flush must not have to.
  const bool knows = (features_ & virtio::blk_flush) != 0;
  const bool wants = (features_ & virtio::blk_config_wce) == 0 || cache_on_;
  // relaxed: a request that comes now sees one or the other; set_config() flushes afterwards.
  writeback_.store(knows && wants, std::memory_order_relaxed);
}

// ---- Configuration ----

result<> vhost_device::get_config(const message& m) {
  const auto head = payload<vhost::config_space>();
  const bool fits = m.head.size >= sizeof head && m.head.size == sizeof head + head.bytes &&
                    head.bytes <= vhost::config_bytes_max &&
                    head.offset <= vhost::config_bytes_max - head.bytes;
  std::array<std::byte, sizeof head + vhost::config_bytes_max> out{};
  // No payload is how an error is told.
  if (!fits) {
    static_cast<void>(send(m, {}));
    return fail(EINVAL);
  }
  std::array<std::byte, vhost::config_bytes_max> all{};
  const virtio::blk_config c = config();
  std::memcpy(all.data(), &c, virtio::blk_config_bytes);
  std::memcpy(out.data(), &head, sizeof head);
  std::memcpy(out.data() + sizeof head, all.data() + head.offset, head.bytes);
  if (!send(m, std::span(out).first(m.head.size))) return fail(errc::protocol);
  return {};
}

// The guest may change one byte: whether there is to be a cache.
task<> vhost_device::set_config(const message& m) {
  const auto head = payload<vhost::config_space>();
  const bool fits = m.head.size == sizeof head + 1 && head.bytes == 1 &&
                    head.offset == offsetof(virtio::blk_config, writeback) &&
                    (features_ & virtio::blk_config_wce) != 0;
  const auto value = std::to_integer<std::uint8_t>(in_[sizeof head]);
  if (!fits || value > 1) co_return fail(EINVAL);
  cache_on_ = value == 1;
  update_writeback();
  if (cache_on_) co_return result<>{};
  // From now on what has ended is durable; so must be what ended before.
  co_return co_await export_.space().flush();
}

// What does not fit into the socket is not sent: the guest sees the change when it looks next.
task<> vhost_device::tell_of_config() {
  if (!backend_ || (protocol_features_ & vhost::protocol_config) == 0) co_return result<>{};
  vhost::header h{.request = static_cast<std::uint32_t>(vhost::backend_message::config_change),
                  .flags = vhost::version,
                  .size = 0};
  iovec part{&h, sizeof h};
  message_header out;
  out.set({&part, 1});
  // Half of it would be worse than nothing: then it has had the last.
  const std::int32_t n = send_now(backend_.get(), out);
  if (n > 0 && n != static_cast<std::int32_t>(sizeof h)) backend_.reset();
  co_return result<>{};
}

// ---- What is in flight ----

result<> vhost_device::get_inflight(const message& m) {
  if (m.head.size < vhost::inflight_bytes || m.head.size > sizeof(vhost::inflight) || m.fds != 0) {
    return fail(EINVAL);
  }
  vhost::inflight i;
  std::memcpy(&i, in_.data(), m.head.size);
  if (i.queues == 0 || i.queues > queues_max || i.queue_size == 0 ||
      i.queue_size > virtqueue_size_max) {
    return fail(EINVAL);
  }
  auto memory =
      shared_memory::create("forebay-inflight", i.queues * inflight_log::bytes_for(i.queue_size));
  if (!memory) return fail(memory.error());
  i.bytes = memory->memory().size();
  i.offset = 0;
  const int fd = memory->fd();
  if (!send(m, std::as_bytes(std::span(&i, 1)).first(m.head.size), {&fd, 1})) {
    return fail(errc::protocol);
  }
  return {};
}

task<> vhost_device::set_inflight(const message& m) {
  if (m.head.size < vhost::inflight_bytes || m.head.size > sizeof(vhost::inflight)) {
    co_return fail(EINVAL);
  }
  vhost::inflight i;
  std::memcpy(&i, in_.data(), m.head.size);
  if (i.queues == 0 || i.queues > queues_max || i.queue_size == 0 ||
      i.queue_size > virtqueue_size_max || i.offset % 8 != 0 ||
      i.bytes < i.queues * inflight_log::bytes_for(i.queue_size)) {
    co_return fail(EINVAL);
  }
  auto mapping = foreign_mapping::map(fds_[0].get(), i.offset, i.bytes);
  if (!mapping) co_return fail(mapping.error());
  if (auto stopped = co_await stop_all(); !stopped) co_return stopped;
  log_memory_ = std::move(*mapping);
  log_queues_ = i.queues;
  log_queue_size_ = i.queue_size;
  co_return co_await start_all();
}

// ---- Memory ----

task<> vhost_device::handle_memory(const message& m) {
  std::array<vhost::memory_region, vhost::table_regions_max> regions;
  std::size_t count = 1;
  if (m.what() == vhost::message::set_mem_table) {
    const auto table = payload<vhost::memory_table>();
    count = table.count;
    if (m.head.size < sizeof table || count > regions.size() || m.fds != count ||
        m.head.size != sizeof table + count * sizeof(vhost::memory_region)) {
      co_return fail(EINVAL);
    }
    std::memcpy(regions.data(), in_.data() + sizeof table, count * sizeof(vhost::memory_region));
  } else {
    regions[0] = payload<vhost::single_region>().region;
  }
  if (auto stopped = co_await stop_all(); !stopped) co_return stopped;
  result<> done;
  if (m.what() == vhost::message::rem_mem_reg) {
    done = memory_.remove(region_of(regions[0]));
  } else {
    if (m.what() == vhost::message::set_mem_table) memory_.clear();
    for (std::size_t i = 0; i < count && done; ++i) {
      done = memory_.add(region_of(regions[i]), fds_[i].get());
    }
    // A table is there as a whole or not at all.
    if (!done && m.what() == vhost::message::set_mem_table) memory_.clear();
  }
  const result<> started = co_await start_all();
  co_return done ? started : done;
}

// ---- Rings ----

task<> vhost_device::handle_ring(const message& m) {
  using enum vhost::message;
  if (m.what() == set_vring_kick || m.what() == set_vring_call || m.what() == set_vring_err) {
    co_return co_await take_ring_fd(m);
  }
  const auto found = ring_of(payload<std::uint32_t>());
  if (!found) co_return fail(found.error());
  ring& r = **found;
  const auto state = payload<vhost::vring_state>();
  if (m.what() == get_vring_base) co_return co_await this->get_vring_base(m, &r, state.index);
  // What is said of a ring that runs holds from now on.
  if (auto stopped = co_await stop_ring(&r); !stopped) co_return stopped;
  result<> done;
  switch (m.what()) {
    case set_vring_num:
      if (state.num == 0 || state.num > virtqueue_size_max) {
        done = fail(EINVAL);
      } else {
        r.setup.size = static_cast<std::uint16_t>(state.num);
      }
      break;
    case set_vring_base:
      r.setup.base = state.num;
      break;
    case set_vring_enable:
      if (state.num > 1 || (features_ & vhost::protocol_features_bit) == 0) {
        done = fail(EINVAL);
      } else {
        r.enabled = state.num == 1;
      }
      break;
    default: {
      const auto a = payload<vhost::vring_addr>();
      if (a.flags != 0) {  // logging was not offered
        done = fail(EINVAL);
        break;
      }
      r.setup.descriptors = a.descriptors;
      r.setup.driver = a.available;
      r.setup.device = a.used;
      r.has_addresses = true;
    }
  }
  const result<> started = co_await settle(&r);
  co_return done ? started : done;
}

// Ends a ring; its kick has to be set again before it can be started.
task<> vhost_device::get_vring_base(const message& m, ring* r, std::uint32_t index) {
  if (auto stopped = co_await stop_ring(r); !stopped) co_return stopped;
  r->started = false;
  r->kick.reset();
  const vhost::vring_state answer{.index = index, .num = r->setup.base};
  if (!send(m, std::as_bytes(std::span(&answer, 1)))) co_return fail(errc::protocol);
  co_return result<>{};
}

task<> vhost_device::take_ring_fd(const message& m) {
  const auto word = payload<std::uint64_t>();
  const bool none = (word & vhost::vring_no_fd) != 0;
  const auto found = ring_of(static_cast<std::uint32_t>(word & vhost::vring_index_mask));
  if (!found || m.fds != (none ? 0u : 1u)) co_return fail(EINVAL);
  if ((word & ~(vhost::vring_index_mask | vhost::vring_no_fd)) != 0) co_return fail(EINVAL);
  ring& r = **found;
  if (!none) {
    if (auto adopted = adopt_event_fd(fds_[0].get()); !adopted) co_return adopted;
  }
  if (auto stopped = co_await stop_ring(&r); !stopped) co_return stopped;
  switch (m.what()) {
    case vhost::message::set_vring_kick:
      r.kick = std::move(fds_[0]);
      r.started = true;
      break;
    case vhost::message::set_vring_call:
      r.call = std::move(fds_[0]);
      // What the one before was to say may not have been heard.
      r.call_owed = r.call && r.started;
      break;
    default:
      r.error = std::move(fds_[0]);
  }
  co_return co_await settle(&r);
}

task<> vhost_device::reset() {
  if (auto stopped = co_await stop_all(); !stopped) co_return stopped;
  for (ring& r : rings_) {
    r.started = r.enabled = r.has_addresses = r.call_owed = false;
    r.setup.base = 0;
    r.kick.reset();
  }
  // The next driver's rings have nothing to do with what was in flight.
  log_memory_ = {};
  log_queues_ = log_queue_size_ = 0;
  cache_on_ = true;
  features_ = 0;
  update_writeback();
  co_return result<>{};
}

// ---- Running ----

task<> vhost_device::stop_ring(ring* r) {
  if (!r->running) co_return result<>{};
  co_await r->queue->stop();
  r->running = false;
  r->setup.base = r->queue->base();
  co_return result<>{};
}

task<> vhost_device::stop_all() {
  for (ring& r : rings_) {
    if (auto stopped = co_await stop_ring(&r); !stopped) co_return stopped;
  }
  co_return result<>{};
}

task<> vhost_device::start_all() {
  result<> all;
  for (ring& r : rings_) {
    const result<> started = co_await settle(&r);
    if (!started && all) all = started;
  }
  co_return all;
}

// Starts a ring if it is to run now. Errors: EINVAL for one that cannot, ENOMEM.
task<> vhost_device::settle(ring* r) {
  const bool wanted = r->started && r->enabled && r->has_addresses && r->setup.size != 0 &&
                      memory_.size() != 0 && !r->running && !stopping_;
  if (!wanted) co_return result<>{};
  const auto index = static_cast<std::size_t>(r - rings_.data());
  vhost_queue::setup s{
      .ring = r->setup, .kick = r->kick.get(), .call = r->call.get(), .error = r->error.get()};
  s.call_first = std::exchange(r->call_owed, false);
  if (log_queues_ != 0) {
    // The front-end believes that what is in flight is kept.
    if (index >= log_queues_ || r->setup.size > log_queue_size_) co_return fail(EINVAL);
    const std::size_t bytes = inflight_log::bytes_for(log_queue_size_);
    s.log = log_memory_.memory().subspan(index * bytes, bytes);
  }
  const std::int32_t status = co_await r->queue->start(s);
  if (status < 0) co_return fail(-status);
  r->running = true;
  co_return result<>{};
}

}  // namespace forebay
