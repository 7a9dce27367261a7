// The other side of vhost-user-blk, for tests and benchmarks: a front-end with its guest in one.
// It shares memory with the server, sets rings up, and drives them as a guest's driver would; or as
// one would that means harm.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "forebay/base/assert.h"
#include "forebay/os/fd_passing.h"
#include "forebay/os/shared_memory.h"
#include "forebay/os/socket.h"
#include "forebay/serve/inflight_log.h"
#include "forebay/serve/vhost_user.h"
#include "forebay/serve/virtio_blk.h"
#include "forebay/serve/virtqueue.h"

namespace forebay {

// A ring from the driver's side. Each tag has `chain_max` descriptors of a split ring to itself.
class virtio_driver {
 public:
  static constexpr unsigned chain_max = 4;

  struct shape {
    std::uint16_t size = 64;
    bool packed = false;
    bool event_index = false;
  };

  static std::size_t bytes_for(std::uint16_t size) noexcept {
    return round_up(std::size_t{size} * 16 + 2 * std::size_t{size} + 8, 64) + 8 * size + 64;
  }

  virtio_driver(std::span<std::byte> memory, const shape& s) : shape_(s), memory_(memory) {
    driver_at_ = std::size_t{s.size} * 16;
    device_at_ =
        s.packed ? driver_at_ + 64 : round_up(driver_at_ + 2 * std::size_t{s.size} + 8, 64);
    slots_of_.resize(s.size);
    poll_only();
  }

  const shape& what() const noexcept { return shape_; }
  std::size_t driver_offset() const noexcept { return driver_at_; }
  std::size_t device_offset() const noexcept { return device_at_; }

  // Makes a chain available under this tag.
  void post(std::uint16_t tag, std::span<const descriptor> chain) noexcept {
    if (shape_.packed) return post_packed(tag, chain);
    const std::uint16_t first = static_cast<std::uint16_t>(tag * chain_max % shape_.size);
    for (std::size_t i = 0; i < chain.size(); ++i) {
      descriptor d = chain[i];
      if (i + 1 != chain.size()) {
        d.flags |= descriptor_next;
        d.next = static_cast<std::uint16_t>(first + i + 1);
      }
      write_descriptor(first + i, d);
    }
    post_head(first);
  }
  // Of a split ring: whatever number as a head.
  void post_head(std::uint16_t head) noexcept {
    word16(driver_at_ + 4 + 2 * (std::size_t{posted_} % shape_.size)).store(head, relaxed);
    ++posted_;
    word16(driver_at_ + 2).store(posted_, release);
  }
  void write_descriptor(std::size_t slot, const descriptor& d) noexcept {
    const descriptor_words w = descriptor_words::pack(d);
    word64(16 * slot).store(w.address, relaxed);
    word64(16 * slot + 8).store(w.shape, relaxed);
  }
  // Of a split ring: the available index, as a driver would never set it.
  void jump(std::uint16_t index) noexcept { word16(driver_at_ + 2).store(index, release); }

  // Whether the device wants to be kicked for what was posted since the last call.
  bool wants_kick() noexcept {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const std::uint16_t old = std::exchange(kicked_, posted_);
    if (shape_.packed) {
      const std::uint32_t e = word32(device_at_).load(relaxed);
      if (e >> 16 != 2 || !shape_.event_index) return e >> 16 != 1;
      const packed_position wanted = packed_position::unpack(static_cast<std::uint16_t>(e));
      const int off = wanted.wrap == next_.wrap ? 0 : shape_.size;
      return event_passed_16(static_cast<std::uint16_t>(wanted.slot - off),
                             static_cast<std::uint16_t>(next_.slot - (posted_ - old)), next_.slot);
    }
    if (!shape_.event_index) return (word16(device_at_).load(relaxed) & 1) == 0;
    const std::size_t at = device_at_ + 4 + 8 * std::size_t{shape_.size};
    return event_passed_16(word16(at).load(relaxed), old, posted_);
  }

  struct used {
    std::uint16_t tag = 0;
    std::uint32_t written = 0;
  };
  std::optional<used> reap() noexcept {
    if (shape_.packed) return reap_packed();
    if (word16(device_at_ + 2).load(acquire) == reaped_) return std::nullopt;
    const std::size_t at = device_at_ + 4 + 8 * (std::size_t{reaped_} % shape_.size);
    ++reaped_;
    return used{static_cast<std::uint16_t>(word32(at).load(relaxed) / chain_max),
                word32(at + 4).load(relaxed)};
  }
  std::uint16_t used_index() noexcept { return word16(device_at_ + 2).load(acquire); }

  // No calls, please.
  void poll_only() noexcept {
    if (shape_.packed) return word32(driver_at_).store(1u << 16, relaxed);
    word16(driver_at_).store(1, relaxed);
    if (shape_.event_index) {
      word16(used_event_at()).store(static_cast<std::uint16_t>(reaped_ + 0x8000), relaxed);
    }
  }
  // A call at the next one that is used; whether one is by now.
  bool want_call() noexcept {
    if (shape_.packed) {
      const std::uint32_t at = shape_.event_index ? used_.pack() | 2u << 16 : 0;
      word32(driver_at_).store(at, relaxed);
    } else {
      word16(driver_at_).store(0, relaxed);
      word16(used_event_at()).store(reaped_, relaxed);
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (shape_.packed) return is_used();
    return word16(device_at_ + 2).load(acquire) != reaped_;
  }

 private:
  // What publishes is stored with release and looked at with acquire, the rest is relaxed because
  // of that; announcements are ordered by the fence behind them.
  static constexpr auto relaxed = std::memory_order_relaxed;  // relaxed: see above
  static constexpr auto acquire = std::memory_order_acquire;  // acquire: see above
  static constexpr auto release = std::memory_order_release;  // release: see above

  template <typename T>
  std::atomic<T>& word(std::size_t at) noexcept {
    FOREBAY_ASSERT(at + sizeof(T) <= memory_.size());
    return *reinterpret_cast<std::atomic<T>*>(memory_.data() + at);
  }
  std::atomic<std::uint16_t>& word16(std::size_t at) noexcept { return word<std::uint16_t>(at); }
  std::atomic<std::uint32_t>& word32(std::size_t at) noexcept { return word<std::uint32_t>(at); }
  std::atomic<std::uint64_t>& word64(std::size_t at) noexcept { return word<std::uint64_t>(at); }
  std::size_t used_event_at() const noexcept {
    return driver_at_ + 4 + 2 * std::size_t{shape_.size};
  }

  void post_packed(std::uint16_t tag, std::span<const descriptor> chain) noexcept {
    std::uint64_t head_shape = 0;
    const packed_position head = next_;
    for (std::size_t i = 0; i < chain.size(); ++i) {
      descriptor d = chain[i];
      d.flags = static_cast<std::uint16_t>(d.flags | (i + 1 != chain.size() ? descriptor_next : 0) |
                                           (next_.wrap ? 1 << 7 : 1 << 15));
      // The words of this ring: length, then the number, then the flags.
      const std::uint64_t words =
          d.length | std::uint64_t{tag} << 32 | std::uint64_t{d.flags} << 48;
      word64(16 * std::size_t{next_.slot}).store(d.address, relaxed);
      if (i == 0) {
        head_shape = words;
      } else {
        word64(16 * std::size_t{next_.slot} + 8).store(words, relaxed);
      }
      next_.advance(1, shape_.size);
    }
    slots_of_[tag] = static_cast<std::uint16_t>(chain.size());
    posted_ = static_cast<std::uint16_t>(posted_ + chain.size());
    word64(16 * std::size_t{head.slot} + 8).store(head_shape, release);
  }
  bool is_used() noexcept {
    const std::uint64_t flags = word64(16 * std::size_t{used_.slot} + 8).load(acquire) >> 48;
    return ((flags >> 7 & 1) != 0) == used_.wrap && ((flags >> 15 & 1) != 0) == used_.wrap;
  }
  std::optional<used> reap_packed() noexcept {
    if (!is_used()) return std::nullopt;
    const std::uint64_t words = word64(16 * std::size_t{used_.slot} + 8).load(relaxed);
    const auto tag = static_cast<std::uint16_t>(words >> 32);
    used_.advance(slots_of_[tag], shape_.size);
    return used{tag, static_cast<std::uint32_t>(words)};
  }

  shape shape_;
  std::span<std::byte> memory_;
  std::size_t driver_at_;
  std::size_t device_at_;
  std::uint16_t posted_ = 0;  // split: entries; packed: slots, as are the next ones
  std::uint16_t kicked_ = 0;
  std::uint16_t reaped_ = 0;
  packed_position next_;
  packed_position used_;
  std::vector<std::uint16_t> slots_of_;
};

// A front-end over a unix socket; no wait of it is longer than 20 seconds.
class vhost_client {
 public:
  static constexpr std::uint64_t guest_base = 0x4000'0000;

  explicit vhost_client(unique_fd socket) : socket_(std::move(socket)) {
    const timeval limit{20, 0};
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }

  int fd() const noexcept { return socket_.get(); }
  void close() noexcept { socket_.reset(); }

  // ---- Messages ----

  bool send(vhost::message what, std::span<const std::byte> payload, std::span<const int> fds = {},
            std::uint32_t flags = vhost::version) {
    std::vector<std::byte> all(sizeof(vhost::header) + payload.size());
    const vhost::header h{static_cast<std::uint32_t>(what), flags,
                          static_cast<std::uint32_t>(payload.size())};
    std::memcpy(all.data(), &h, sizeof h);
    std::ranges::copy(payload, all.begin() + sizeof h);
    return send_with_fds(socket_.get(), all, fds).has_value();
  }
  struct reply {
    std::vector<std::byte> payload;
    unique_fd fd;
  };
  std::optional<reply> receive() {
    vhost::header h;
    reply r;
    const auto got =
        receive_with_fds(socket_.get(), std::as_writable_bytes(std::span(&h, 1)), {&r.fd, 1});
    if (!got || got->bytes != sizeof h) return std::nullopt;
    r.payload.resize(h.size);
    if (h.size != 0 && !receive_all(socket_.get(), r.payload)) return std::nullopt;
    return r;
  }
  template <typename T>
  static std::span<const std::byte> as_payload(const T& v) {
    return std::as_bytes(std::span(&v, 1));
  }
  // Asks for a number.
  std::uint64_t ask(vhost::message what) {
    std::uint64_t v = 0;
    if (!send(what, {})) return 0;
    if (const auto r = receive(); r && r->payload.size() == sizeof v) {
      std::memcpy(&v, r->payload.data(), sizeof v);
    }
    return v;
  }
  // Has something done, and the answer: 0 if it was. UINT64_MAX if the connection has ended.
  template <typename T>
  std::uint64_t tell(vhost::message what, const T& payload, std::span<const int> fds = {}) {
    return tell_bytes(what, as_payload(payload), fds);
  }
  std::uint64_t tell_bytes(vhost::message what, std::span<const std::byte> payload,
                           std::span<const int> fds = {}) {
    if (!send(what, payload, fds, vhost::version | vhost::flag_need_reply)) return UINT64_MAX;
    std::uint64_t v = UINT64_MAX;
    const auto r = receive();
    if (r && r->payload.size() == sizeof v) std::memcpy(&v, r->payload.data(), sizeof v);
    return v;
  }

  // ---- Set-up ----

  bool negotiate(std::uint64_t wanted) {
    offered = ask(vhost::message::get_features);
    const std::uint64_t protocol = ask(vhost::message::get_protocol_features);
    if (!send(vhost::message::set_protocol_features, as_payload(protocol))) return false;
    features = (wanted & offered) | virtio::version_1 | vhost::protocol_features_bit;
    return tell_bytes(vhost::message::set_owner, {}) == 0 &&
           tell(vhost::message::set_features, features) == 0;
  }

  // Memory in two regions, with a hole between their guest-physical addresses.
  bool share_memory(std::size_t size) {
    if (!memory_) {
      auto made = shared_memory::create("guest", size);
      if (!made) return false;
      memory_ = std::move(*made);
    }
    return share_again();
  }
  bool share_again() {
    const std::size_t half = memory_->memory().size() / 2;
    struct {
      vhost::memory_table head{.count = 2};
      vhost::memory_region regions[2];
    } table;
    const auto user = reinterpret_cast<std::uint64_t>(memory_->memory().data());
    table.regions[0] = {guest_base, half, user, 0};
    table.regions[1] = {guest_base + half + hole_bytes, half, user + half, half};
    const int fds[] = {memory_->fd(), memory_->fd()};
    return tell(vhost::message::set_mem_table, table, fds) == 0;
  }
  static constexpr std::uint64_t hole_bytes = 1u << 20;
  std::span<std::byte> memory() const { return memory_->memory(); }
  int memory_fd() const { return memory_->fd(); }
  // Of an offset in the memory.
  std::uint64_t guest_address(std::size_t offset) const {
    const std::size_t half = memory_->memory().size() / 2;
    return guest_base + offset + (offset < half ? 0 : hole_bytes);
  }

  // Sets a ring up whose words are at `offset`, and starts it. The answer of the last message.
  std::uint64_t start_ring(unsigned index, const virtio_driver& d, std::size_t offset, int kick,
                           int call, std::uint32_t base = 0) {
    const auto user = reinterpret_cast<std::uint64_t>(memory_->memory().data()) + offset;
    const auto state = [&](vhost::message m, std::uint32_t n) {
      return tell(m, vhost::vring_state{index, n});
    };
    if (state(vhost::message::set_vring_num, d.what().size) != 0) return 1;
    if (d.what().packed && base == 0) base = 0x8000'8000;
    if (state(vhost::message::set_vring_base, base) != 0) return 2;
    const vhost::vring_addr a{.index = index,
                              .descriptors = user,
                              .used = user + d.device_offset(),
                              .available = user + d.driver_offset()};
    if (tell(vhost::message::set_vring_addr, a) != 0) return 3;
    if (ring_fd(vhost::message::set_vring_call, index, call) != 0) return 4;
    if (ring_fd(vhost::message::set_vring_kick, index, kick) != 0) return 5;
    return state(vhost::message::set_vring_enable, 1);
  }
  std::uint64_t ring_fd(vhost::message what, unsigned index, int fd) {
    const std::uint64_t word = index | (fd < 0 ? vhost::vring_no_fd : 0);
    const std::span<const int> fds = fd < 0 ? std::span<const int>() : std::span(&fd, 1);
    return tell(what, word, fds);
  }
  // Stops a ring: where it is.
  std::optional<std::uint32_t> stop_ring(unsigned index) {
    const vhost::vring_state s{index, 0};
    if (!send(vhost::message::get_vring_base, as_payload(s))) return std::nullopt;
    const auto r = receive();
    if (!r || r->payload.size() != sizeof s) return std::nullopt;
    vhost::vring_state answer;
    std::memcpy(&answer, r->payload.data(), sizeof answer);
    return answer.num;
  }
  virtio::blk_config config() {
    std::vector<std::byte> ask(sizeof(vhost::config_space) + virtio::blk_config_bytes);
    const vhost::config_space head{.bytes = virtio::blk_config_bytes};
    std::memcpy(ask.data(), &head, sizeof head);
    virtio::blk_config c;
    if (!send(vhost::message::get_config, ask)) return c;
    const auto r = receive();
    if (!r || r->payload.size() != ask.size()) return c;
    std::memcpy(static_cast<void*>(&c), r->payload.data() + sizeof head, virtio::blk_config_bytes);
    return c;
  }

  std::uint64_t offered = 0;
  std::uint64_t features = 0;

 private:
  unique_fd socket_;
  std::optional<shared_memory> memory_;
};

// A disk as a guest sees it, on one ring: a request at a time, polled or with calls.
class vhost_disk {
 public:
  // `area`: where in the memory its ring, its requests and its data are; of area_bytes.
  static constexpr std::size_t area_bytes = 2u << 20;
  static constexpr std::size_t data_max = 1u << 20;

  vhost_disk(vhost_client& c, unsigned index, std::size_t area, const virtio_driver::shape& s)
      : client_(c),
        area_(area),
        index_(index),
        driver_(c.memory().subspan(area, virtio_driver::bytes_for(s.size)), s) {
    auto k = make_event_fd();
    auto e = make_event_fd();
    FOREBAY_ASSERT(k && e && virtio_driver::bytes_for(s.size) <= requests_at);
    kick_ = std::move(*k);
    call_ = std::move(*e);
  }

  bool start(std::uint32_t base = 0) {
    return client_.start_ring(index_, driver_, area_, kick_.get(), call_.get(), base) == 0;
  }
  virtio_driver& driver() noexcept { return driver_; }
  int kick_fd() const noexcept { return kick_.get(); }
  int call_fd() const noexcept { return call_.get(); }
  std::span<std::byte> data() const { return client_.memory().subspan(area_ + data_at, data_max); }
  std::uint64_t data_address() const { return client_.guest_address(area_ + data_at); }
  std::uint64_t request_address(std::uint16_t tag) const {
    return client_.guest_address(request_offset(tag));
  }
  std::size_t request_offset(std::uint16_t tag) const { return area_ + requests_at + tag * 64u; }
  std::uint8_t status(std::uint16_t tag) const {
    return std::to_integer<std::uint8_t>(client_.memory()[request_offset(tag) + 16]);
  }

  // Posts a request under a tag: its data at an offset in data().
  void post(std::uint16_t tag, virtio::blk_type type, std::uint64_t sector, std::size_t data_offset,
            std::uint32_t length, bool device_writes) {
    const virtio::blk_header h{.type = static_cast<std::uint32_t>(type), .sector = sector};
    std::byte* const at = client_.memory().data() + request_offset(tag);
    std::memcpy(at, &h, sizeof h);
    at[16] = std::byte{0xff};
    const descriptor chain[] = {
        {.address = request_address(tag), .length = 16},
        {.address = data_address() + data_offset,
         .length = length,
         .flags = device_writes ? descriptor_write : std::uint16_t{0}},
        {.address = request_address(tag) + 16, .length = 1, .flags = descriptor_write}};
    const descriptor no_data[] = {chain[0], chain[2]};
    driver_.post(tag, length == 0 ? std::span<const descriptor>(no_data) : chain);
  }
  void kick() {
    if (driver_.wants_kick()) signal_event_fd(kick_.get());
  }
  // Sleeps until the device calls.
  std::optional<virtio_driver::used> wait() {
    for (int i = 0; i < 600; ++i) {
      if (auto u = driver_.reap()) return u;
      if (driver_.want_call()) continue;
      pollfd p{call_.get(), POLLIN, 0};
      if (::poll(&p, 1, 100) > 0) {
        std::uint64_t n = 0;
        static_cast<void>(!::read(call_.get(), &n, sizeof n));
      }
    }
    return std::nullopt;
  }
  // A request and its end: the status; 255 if it has none.
  std::uint8_t call(virtio::blk_type type, std::uint64_t sector, std::uint32_t length,
                    bool device_writes, std::size_t data_offset = 0) {
    post(0, type, sector, data_offset, length, device_writes);
    kick();
    const auto u = wait();
    if (!u || u->tag != 0) return 255;
    last_used_bytes = u->written;
    return status(0);
  }
  std::uint8_t read(std::uint64_t sector, std::uint32_t length) {
    return call(virtio::blk_type::in, sector, length, true);
  }
  std::uint8_t write(std::uint64_t sector, std::uint32_t length) {
    return call(virtio::blk_type::out, sector, length, false);
  }
  std::uint8_t flush() { return call(virtio::blk_type::flush, 0, 0, false); }

  std::uint32_t last_used_bytes = 0;

 private:
  static constexpr std::size_t requests_at = 64u << 10;
  static constexpr std::size_t data_at = 512u << 10;

  vhost_client& client_;
  std::size_t area_;
  unsigned index_;
  virtio_driver driver_;
  unique_fd kick_;
  unique_fd call_;
};

}  // namespace forebay
