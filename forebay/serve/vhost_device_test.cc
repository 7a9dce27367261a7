// A vhost-user block device with a real socket, real shared memory, and a front-end that behaves or
// does not.
// long: the tests of rings and those of messages have one fixture, and are compiled together.

#include "forebay/serve/vhost_device.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <random>
#include <thread>

#include "forebay/base/racing_copy.h"
#include "forebay/serve/test_front_end.h"
#include "forebay/serve/test_server.h"
#include "forebay/serve/test_vhost_client.h"

namespace forebay {
namespace {

constexpr std::uint64_t disk_bytes = 4u << 20;
constexpr std::uint64_t all_features = ~(virtio::ring_packed | virtio::ring_event_index);

class VhostUser : public testing::TestWithParam<virtio_driver::shape> {
 protected:
  void start(export_options opts = named("disk"), bool read_only = false, unsigned threads = 1) {
    server_options so;
    so.threads = threads;
    so.log = [this](const std::string&) { ++logged; };
    server.emplace(so);
    disk = &server->add(std::move(opts), disk_bytes, read_only);
    path = server->socket_path() + "-vhost";
    auto socket = listen_unix(path);
    ASSERT_TRUE(socket);
    ASSERT_TRUE(server->get().add_vhost_listener("", std::move(*socket)));
    server->start();
  }
  void TearDown() override {
    clients.clear();
    remove_socket_file(path);
    server.reset();
  }
  vhost_client& connect() {
    endpoint at;
    at.path = path;
    auto socket = connect_to(at);
    FOREBAY_ASSERT(socket.has_value());
    return clients.emplace_back(std::move(*socket));
  }
  vhost_client& guest(std::size_t queues = 1) {
    vhost_client& c = connect();
    std::uint64_t wanted = all_features;
    if (GetParam().packed) wanted |= virtio::ring_packed;
    if (GetParam().event_index) wanted |= virtio::ring_event_index;
    EXPECT_TRUE(c.negotiate(wanted));
    EXPECT_TRUE(c.share_memory(queues * vhost_disk::area_bytes));
    return c;
  }
  // The next guest finds the disk in order.
  void expect_service() {
    vhost_client& c = guest();
    vhost_disk d(c, 0, 0, GetParam());
    ASSERT_TRUE(d.start());
    EXPECT_EQ(d.read(0, 4096), 0);
  }
  std::uint64_t statistic(const std::string& name) {
    const std::string text = server->get().statistics_text();
    const auto at = text.find("\"" + name + "\":");
    FOREBAY_ASSERT(at != text.npos);
    return std::stoull(text.substr(at + name.size() + 3));
  }
  // What the device holds. That it was written before is told by shared memory, through two
  // mappings of it, which a thread sanitizer takes for two memories.
  bytes on_disk(std::size_t offset, std::size_t size) {
    bytes out(size);
    racing_copy(out.data(), disk->memory.contents().data() + offset, size);
    return out;
  }
  static void fill(std::span<std::byte> out, std::uint64_t seed) {
    std::mt19937_64 rng(seed);
    for (std::byte& b : out) b = std::byte{static_cast<std::uint8_t>(rng())};
  }

  std::optional<test_server> server;
  test_disk* disk = nullptr;
  std::string path;
  std::list<vhost_client> clients;
  std::atomic<int> logged{0};
};

TEST_P(VhostUser, ReadsWritesFlushesAndIsOneCacheWithNbd) {
  start();
  vhost_client& c = guest();
  vhost_disk d(c, 0, 0, GetParam());
  ASSERT_TRUE(d.start());
  const auto data = d.data();
  fill(data.first(256u << 10), 1);
  const bytes written(data.begin(), data.begin() + (256 << 10));
  ASSERT_EQ(d.write(8, 256u << 10), 0);
  std::ranges::fill(data, std::byte{});
  ASSERT_EQ(d.read(8, 256u << 10), 0);
  EXPECT_EQ(d.last_used_bytes, (256u << 10) + 1);
  EXPECT_TRUE(std::ranges::equal(written, data.first(written.size())));
  EXPECT_EQ(statistic("guest"), 2 * (256u << 10));  // each byte once
  // Through the other door, and back.
  raw_client nbd_client(*server);
  ASSERT_TRUE(nbd_client.go());
  EXPECT_EQ(nbd_client.read(4096, 256u << 10), written);
  bytes other(4096, std::byte{0x5a});
  ASSERT_EQ(nbd_client.write(8192, other), 0u);
  ASSERT_EQ(d.read(16, 4096), 0);
  EXPECT_TRUE(std::ranges::equal(other, data.first(4096)));
  // Durable after a flush.
  ASSERT_EQ(d.flush(), 0);
  EXPECT_EQ(on_disk(8192, 4096), other);
  // What came before the flush on its ring is told of, and so is the other client.
  nbd_export& served = *server->get().exports().front();
  client_reports told;
  served.clients().report(told, served.name());
  ASSERT_EQ(told.count, 2u);
  EXPECT_EQ(told.first[0].door, client_door::vhost_user);
  EXPECT_EQ(told.first[0].requests, 4u);
  EXPECT_EQ(told.first[0].read_bytes, (256u << 10) + 4096);
  EXPECT_EQ(told.first[0].written_bytes, 256u << 10);
  EXPECT_EQ(told.first[1].door, client_door::nbd);
  EXPECT_EQ(told.first[1].requests, 2u);
  // From sectors that nobody has read yet, in pieces that are no pages.
  std::ranges::fill(data.first(8192), std::byte{1});
  ASSERT_EQ(d.read(4001, 3 * 512), 0);
  EXPECT_TRUE(std::ranges::all_of(data.first(1536), [](std::byte b) { return b == std::byte{}; }));
  EXPECT_EQ(statistic("chains_refused"), 0u);
}

TEST_P(VhostUser, ManyRequestsAtOnceOnSeveralQueues) {
  start(named("disk"), false, 2);
  constexpr unsigned queues = 2;
  vhost_client& c = guest(queues);
  std::list<vhost_disk> disks;
  for (unsigned q = 0; q < queues; ++q) {
    disks.emplace_back(c, q, q * vhost_disk::area_bytes, GetParam());
    ASSERT_TRUE(disks.back().start());
  }
  std::vector<std::thread> threads;
  for (unsigned q = 0; q < queues; ++q) {
    vhost_disk& d = *std::next(disks.begin(), q);
    threads.emplace_back([&d, q] {
      constexpr std::uint16_t depth = 16;
      std::mt19937_64 rng(q);
      // Each queue has its half of the disk; each tag its page of the data.
      std::vector<std::uint64_t> tag_of(512, 0);
      struct {
        std::uint64_t page = 0;
        bool write = false;
        std::uint64_t mark = 0;
      } of[depth];
      unsigned done = 0;
      unsigned posted = 0;
      constexpr unsigned total = 600;
      std::vector<bool> busy(512);
      const auto post = [&](std::uint16_t tag) {
        auto& r = of[tag];
        do r.page = rng() % 512;
        while (busy[r.page]);
        busy[r.page] = true;
        r.write = rng() % 2 == 0;
        r.mark = rng();
        std::byte* const at = d.data().data() + tag * 4096;
        if (r.write) {
          for (std::size_t i = 0; i < 4096; i += 8) std::memcpy(at + i, &r.mark, 8);
        }
        d.post(tag, r.write ? virtio::blk_type::out : virtio::blk_type::in, (q * 512 + r.page) * 8,
               tag * 4096u, 4096, !r.write);
        ++posted;
      };
      for (std::uint16_t t = 0; t < depth; ++t) post(t);
      d.kick();
      while (done < total) {
        const auto u = d.wait();
        ASSERT_TRUE(u);
        auto& r = of[u->tag];
        ASSERT_EQ(d.status(u->tag), 0);
        if (r.write) {
          tag_of[r.page] = r.mark;
        } else {
          const std::byte* const at = d.data().data() + u->tag * 4096;
          for (std::size_t i = 0; i < 4096; i += 8) {
            std::uint64_t v = 0;
            std::memcpy(&v, at + i, 8);
            ASSERT_EQ(v, tag_of[r.page]);
          }
        }
        busy[r.page] = false;
        ++done;
        if (posted < total) {
          post(u->tag);
          d.kick();
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

TEST_P(VhostUser, DiscardsZeroesAndTellsItsName) {
  start();
  vhost_client& c = guest();
  vhost_disk d(c, 0, 0, GetParam());
  ASSERT_TRUE(d.start());
  fill(d.data().first(64u << 10), 2);
  ASSERT_EQ(d.write(0, 64u << 10), 0);
  const auto change = [&](virtio::blk_type what, std::vector<virtio::blk_range> ranges) {
    const auto raw = std::as_bytes(std::span(ranges));
    std::ranges::copy(raw, d.data().begin());
    return d.call(what, 0, static_cast<std::uint32_t>(raw.size()), false);
  };
  using virtio::blk_type;
  EXPECT_EQ(change(blk_type::write_zeroes, {{0, 8, 0}, {16, 8, virtio::range_unmap}}), 0);
  EXPECT_EQ(change(blk_type::discard, {{32, 8, 0}}), 0);
  ASSERT_EQ(d.read(0, 64u << 10), 0);
  const auto zero = [&](std::size_t page) {
    return std::ranges::all_of(d.data().subspan(page * 4096, 4096),
                               [](std::byte b) { return b == std::byte{}; });
  };
  EXPECT_TRUE(zero(0) && zero(2) && zero(4));
  EXPECT_FALSE(zero(1) || zero(3) || zero(5));
  // Refused: behind the end, unknown flags, no whole range, too many.
  EXPECT_EQ(change(blk_type::discard, {{disk_bytes / 512, 1, 0}}), 1);
  EXPECT_EQ(change(blk_type::discard, {{0, 8, 1}}), 2);
  EXPECT_EQ(change(blk_type::write_zeroes, {{0, 8, 2}}), 2);
  EXPECT_EQ(d.call(blk_type::discard, 0, 15, false), 1);
  EXPECT_EQ(change(blk_type::discard, std::vector<virtio::blk_range>(17)), 1);
  EXPECT_EQ(d.read(disk_bytes / 512, 512), 1);
  EXPECT_EQ(d.read(disk_bytes / 512 - 1, 1024), 1);
  EXPECT_EQ(d.read(~std::uint64_t{0}, 512), 1);
  EXPECT_EQ(d.read(0, 100), 1);
  EXPECT_EQ(d.call(static_cast<blk_type>(77), 0, 512, true), 2);
  EXPECT_EQ(d.call(blk_type::get_id, 0, 20, true), 0);
  EXPECT_EQ(std::memcmp(d.data().data(), "disk\0\0", 6), 0);
}

TEST_P(VhostUser, HostileChainsAreGivenBackAndNobodyElseNotices) {
  start();
  vhost_client& c = guest(2);
  vhost_disk d(c, 0, 0, GetParam());
  vhost_disk other(c, 1, vhost_disk::area_bytes, GetParam());
  ASSERT_TRUE(d.start() && other.start());
  const std::uint64_t ok = d.request_address(0);
  const std::uint64_t hole =
      vhost_client::guest_base + vhost_disk::area_bytes + vhost_client::hole_bytes / 2;
  std::byte& status_of_0 = c.memory()[d.request_offset(0) + 16];
  using chain = std::vector<descriptor>;
  const descriptor head{.address = ok, .length = 16};
  const descriptor end{.address = ok + 16, .length = 1, .flags = descriptor_write};
  constexpr std::size_t with_status = 6;  // the first ones have a place where to say that
  const std::vector<chain> bad = {
      {{.address = hole, .length = 16}, end},                             // in no region
      {{.address = ~std::uint64_t{0} - 8, .length = 16}, end},            // round the end
      {head, {.address = d.data_address(), .length = 0xffff'ffff}, end},  // much too long
      {head, {.address = d.data_address(), .length = 0}, end},            // of nothing
      {end},                                                              // nothing to read
      {{.address = ok, .length = 15}, end},                               // half a header
      {head},                                                             // no status
      {end, head},                                                        // the wrong way round
      {{.address = ok, .length = 24, .flags = descriptor_indirect}},      // half a descriptor
      {{.address = hole, .length = 32, .flags = descriptor_indirect}},    // a table nowhere
      {{.address = ok + 8, .length = 1u << 20, .flags = descriptor_indirect}}  // a table too long
  };
  for (std::size_t i = 0; i < bad.size(); ++i) {
    status_of_0 = std::byte{0xff};
    d.driver().post(1, bad[i]);
    d.kick();
    const auto u = d.wait();
    ASSERT_TRUE(u) << i;
    EXPECT_EQ(u->written, 0u) << i;
    EXPECT_EQ(d.status(0), i < with_status ? 1 : 0xff) << i;
  }
  EXPECT_EQ(statistic("chains_refused"), bad.size());
  EXPECT_EQ(logged, 1);
  // The same ring still works, and so does the other one.
  EXPECT_EQ(d.read(0, 4096), 0);
  EXPECT_EQ(other.read(0, 4096), 0);
  if (GetParam().packed) return;
  // A loop, and an index outside the table.
  d.driver().write_descriptor(4, {.address = ok, .length = 1, .flags = descriptor_next, .next = 5});
  d.driver().write_descriptor(5, {.address = ok, .length = 1, .flags = descriptor_next, .next = 4});
  d.driver().post_head(4);
  d.kick();
  ASSERT_TRUE(d.wait());
  EXPECT_EQ(statistic("chains_refused"), bad.size() + 1);
  // A head outside the table ends the ring, and that alone.
  d.driver().post_head(GetParam().size);
  d.kick();
  EXPECT_TRUE(eventually([&] { return statistic("rings_broken") == 1; }));
  EXPECT_EQ(other.read(0, 4096), 0);
  other.driver().jump(0x7000);
  signal_event_fd(other.kick_fd());
  EXPECT_TRUE(eventually([&] { return statistic("rings_broken") == 2; }));
  raw_client nbd_client(*server);
  ASSERT_TRUE(nbd_client.go());
  EXPECT_TRUE(nbd_client.read(0, 4096));
}

// Firmware that does not know of the limits: one segment of 40 MiB, which is the same memory again
// and again here, because a guest may do that too.
TEST_P(VhostUser, LongRequestsAreDoneInParts) {
  start();
  vhost_client& c = guest(2);  // the first disk's memory is in one region
  vhost_disk d(c, 0, 0, GetParam());
  ASSERT_TRUE(d.start());
  fill(d.data(), 5);
  const bytes written(d.data().begin(), d.data().end());
  const auto call = [&](virtio::blk_type type, std::uint16_t flags, std::size_t pieces) {
    const virtio::blk_header h{.type = static_cast<std::uint32_t>(type)};
    std::memcpy(c.memory().data() + d.request_offset(0), &h, sizeof h);
    std::vector<descriptor> chain{{.address = d.request_address(0), .length = 16}};
    for (std::size_t i = 0; i < pieces; ++i) {
      chain.push_back(
          {.address = d.data_address(), .length = vhost_disk::data_max, .flags = flags});
    }
    chain.push_back({.address = d.request_address(0) + 16, .length = 1, .flags = descriptor_write});
    d.driver().post(0, chain);
    d.kick();
    const auto u = d.wait();
    d.last_used_bytes = u ? u->written : 0;
    return u ? d.status(0) : 255;
  };
  ASSERT_EQ(call(virtio::blk_type::out, 0, 4), 0);
  std::ranges::fill(d.data(), std::byte{});
  ASSERT_EQ(call(virtio::blk_type::in, descriptor_write, 4), 0);
  EXPECT_EQ(d.last_used_bytes, disk_bytes + 1);
  EXPECT_TRUE(std::ranges::equal(written, d.data()));
  // Longer than the disk: refused, and not as a chain that is none.
  EXPECT_EQ(call(virtio::blk_type::in, descriptor_write, 40), 1);
  EXPECT_EQ(d.last_used_bytes, 1u) << "no more than the status";
  EXPECT_EQ(statistic("chains_refused"), 0u);
}

// A front-end that has its event filled up, in the mode in which a write waits.
TEST_P(VhostUser, AnEventThatCannotBeGivenHoldsNobodyUp) {
  start();
  vhost_client& c = guest(2);
  vhost_disk d(c, 0, 0, GetParam());
  vhost_disk other(c, 1, vhost_disk::area_bytes, GetParam());
  ASSERT_TRUE(d.start() && other.start());
  const std::uint64_t most = UINT64_MAX - 1;
  ASSERT_EQ(::write(d.call_fd(), &most, sizeof most), 8);
  for (const int fd : {d.call_fd(), d.kick_fd()}) {
    ASSERT_EQ(::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) & ~O_NONBLOCK), 0);
  }
  ASSERT_FALSE(d.driver().want_call());
  d.post(0, virtio::blk_type::in, 0, 0, 4096, true);
  d.kick();
  // One thread serves both rings and the messages.
  for (int i = 0; i < 20; ++i) EXPECT_EQ(other.read(0, 4096), 0);
  EXPECT_TRUE(d.driver().reap());
  EXPECT_TRUE(c.stop_ring(0));
  EXPECT_EQ(other.read(0, 4096), 0);
}

TEST_P(VhostUser, StopsWhereItIsAndGoesOn) {
  start();
  vhost_client& c = guest();
  vhost_disk d(c, 0, 0, GetParam());
  ASSERT_TRUE(d.start());
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 50; ++i) ASSERT_EQ(d.read(static_cast<unsigned>(i) * 8, 4096), 0);
    const auto base = c.stop_ring(0);
    ASSERT_TRUE(base);
    if (!GetParam().packed) {
      EXPECT_EQ(*base, 50u * (static_cast<unsigned>(round) + 1));
    }
    // What is posted to a stopped ring waits.
    ASSERT_TRUE(d.start(*base));
    // Another table of the same memory while it runs.
    ASSERT_TRUE(c.share_again());
  }
  ASSERT_EQ(d.read(0, 4096), 0);
}

TEST_P(VhostUser, WaitsForItsExportsLimit) {
  start();
  vhost_client& c = guest();
  vhost_disk d(c, 0, 0, GetParam());
  ASSERT_TRUE(d.start());
  rate_limit& limit = server->get().find_export("")->rate();
  ASSERT_EQ(server->get().set_limits("iops=200,burst=0"), "");
  constexpr std::uint16_t count = 6;
  for (std::uint16_t tag = 0; tag < count; ++tag) {
    d.post(tag, virtio::blk_type::in, tag * 8u, tag * 4096u, 4096, true);
  }
  d.kick();
  for (int i = 0; i < count; ++i) ASSERT_TRUE(d.wait());
  EXPECT_GE(limit.statistics().throttled, 1u);
  EXPECT_EQ(d.flush(), 0);
  // One that waits for long is done when the ring is stopped.
  ASSERT_EQ(server->get().set_limits("iops=0,bytes=64K"), "");
  ASSERT_EQ(d.read(0, 256u << 10), 0);
  d.post(0, virtio::blk_type::in, 0, 0, 4096, true);
  d.kick();
  ASSERT_TRUE(somebody_waits_for(limit));
  const auto base = c.stop_ring(0);
  ASSERT_TRUE(base);
  EXPECT_EQ(limit.statistics().waiting, 0u);
  EXPECT_TRUE(d.wait());
  ASSERT_EQ(server->get().set_limits("bytes=0"), "");
  ASSERT_TRUE(d.start(*base));
  ASSERT_EQ(d.read(0, 4096), 0);
}

// A back-end that has gone in the middle: what it had taken is taken again by the next one.
TEST_P(VhostUser, RequestsInFlightSurviveTheConnection) {
  start();
  vhost_client* c = &guest(2);
  std::optional<vhost_disk> d(std::in_place, *c, 0, 0, GetParam());
  vhost::inflight i{.queues = 1, .queue_size = GetParam().size};
  ASSERT_TRUE(c->send(vhost::message::get_inflight_fd, vhost_client::as_payload(i)));
  auto r = c->receive();
  ASSERT_TRUE(r && r->payload.size() == sizeof i && r->fd);
  std::memcpy(&i, r->payload.data(), sizeof i);
  const int log_fd = r->fd.get();
  // As the device before this one left it: two chains taken, the first of which was used.
  auto log = shared_memory::open(unique_fd(::dup(log_fd)), i.bytes);
  ASSERT_TRUE(log);
  fill(d->data().first(8192), 3);
  for (std::uint16_t tag = 0; tag < 2; ++tag) {
    d->post(tag, virtio::blk_type::out, tag * 8u, tag * 4096u, 4096, false);
  }
  {
    guest_memory memory;
    ASSERT_TRUE(memory.add({.guest_physical = vhost_client::guest_base,
                            .bytes = c->memory().size() / 2,
                            .user_address = 0x1000},
                           c->memory_fd()));
    virtqueue_setup s{.size = GetParam().size,
                      .packed = GetParam().packed,
                      .event_index = GetParam().event_index,
                      .indirect = true,
                      .descriptors = 0x1000,
                      .driver = 0x1000 + d->driver().driver_offset(),
                      .device = 0x1000 + d->driver().device_offset(),
                      .base = GetParam().packed ? 0x8000u : 0u};
    auto q = virtqueue::create(s, memory);
    ASSERT_TRUE(q);
    auto l = inflight_log::open(log->memory(), *q);
    ASSERT_TRUE(l);
    virtqueue::element e[2];
    virtqueue::piece_storage storage;
    std::uint16_t number[2];
    for (int k = 0; k < 2; ++k) {
      ASSERT_TRUE(*q->take(e[k], storage));
      number[k] = l->taken(e[k]);
    }
    l->before_put(*q, number[0], e[0].slots);
    q->put(e[0].id, e[0].slots, 1);
    q->publish();
    // Here it ends: the log does not say yet that the first was published, the ring does.
  }
  ASSERT_EQ(c->tell(vhost::message::set_inflight_fd, i, {&log_fd, 1}), 0u);
  // The front-end does not know the base, and says what the ring says.
  ASSERT_TRUE(d->start(GetParam().packed ? 0 : d->driver().used_index()));
  // Nor did that device call for what it had published. (The driver polls: there is no other call.)
  pollfd called{d->call_fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&called, 1, 60'000), 1);
  auto first = d->wait();
  auto second = d->wait();
  ASSERT_TRUE(first && second);
  EXPECT_EQ(first->tag, 0);
  EXPECT_EQ(second->tag, 1);
  EXPECT_EQ(d->status(0), 0xff);  // the device that is gone has not written it
  EXPECT_EQ(d->status(1), 0);
  std::ranges::fill(d->data(), std::byte{});
  ASSERT_EQ(d->read(8, 4096), 0);
  bytes expected(8192);
  fill(expected, 3);
  EXPECT_TRUE(std::ranges::equal(d->data().first(4096), std::span(expected).subspan(4096)));
  // A ring that the log has no room for does not run without it.
  vhost_disk beyond(*c, 1, vhost_disk::area_bytes, GetParam());
  EXPECT_FALSE(beyond.start());
  // A log that contradicts itself is refused.
  ASSERT_TRUE(c->stop_ring(0));
  std::ranges::fill(log->memory().subspan(8, 8), std::byte{0xff});
  EXPECT_FALSE(d->start());
}

INSTANTIATE_TEST_SUITE_P(
    Rings, VhostUser,
    testing::Values(virtio_driver::shape{}, virtio_driver::shape{.event_index = true},
                    virtio_driver::shape{.packed = true},
                    virtio_driver::shape{.packed = true, .event_index = true}));

class VhostMessages : public VhostUser {};
INSTANTIATE_TEST_SUITE_P(One, VhostMessages, testing::Values(virtio_driver::shape{}));

TEST_P(VhostMessages, TheCacheIsToldTruthfully) {
  start();
  vhost_client& c = guest();
  EXPECT_TRUE((c.offered & virtio::blk_flush) != 0 && (c.offered & virtio::blk_config_wce) != 0);
  virtio::blk_config config = c.config();
  EXPECT_EQ(config.capacity_sectors, disk_bytes / 512);
  EXPECT_EQ(config.writeback, 1);
  // A request as long as it says may be is taken.
  EXPECT_LE(std::uint64_t{config.seg_max} * config.size_max + 17, virtqueue::chain_bytes_max);
  vhost_disk d(c, 0, 0, GetParam());
  ASSERT_TRUE(d.start());
  const auto is_durable = [&](std::size_t sector) {
    return on_disk(sector * 512, 1)[0] == std::byte{0x77};
  };
  d.data()[0] = std::byte{0x77};
  ASSERT_EQ(d.write(0, 4096), 0);
  EXPECT_FALSE(is_durable(0));
  // Off: what was written before is durable then, and what is written when it has ended.
  std::array<std::byte, sizeof(vhost::config_space) + 1> off{};
  const vhost::config_space head{.offset = 32, .bytes = 1};
  std::memcpy(off.data(), &head, sizeof head);
  ASSERT_EQ(c.tell_bytes(vhost::message::set_config, off), 0u);
  EXPECT_TRUE(is_durable(0));
  EXPECT_EQ(c.config().writeback, 0);
  ASSERT_EQ(d.write(64, 4096), 0);
  EXPECT_TRUE(is_durable(64));
  clients.clear();
  // A guest that knows no flush never has to.
  vhost_client& plain = connect();
  ASSERT_TRUE(plain.negotiate(0));
  ASSERT_TRUE(plain.share_memory(vhost_disk::area_bytes));
  vhost_disk simple(plain, 0, 0, GetParam());
  ASSERT_TRUE(simple.start());
  simple.data()[0] = std::byte{0x77};
  ASSERT_EQ(simple.write(128, 4096), 0);
  EXPECT_TRUE(is_durable(128));
}

TEST_P(VhostMessages, AResetForgetsTheLogAndTheCachesSwitch) {
  start();
  vhost_client& c = guest();
  vhost::inflight i{.queues = 1, .queue_size = 32};
  ASSERT_TRUE(c.send(vhost::message::get_inflight_fd, vhost_client::as_payload(i)));
  auto r = c.receive();
  ASSERT_TRUE(r && r->payload.size() == sizeof i && r->fd);
  std::memcpy(&i, r->payload.data(), sizeof i);
  const int log_fd = r->fd.get();
  ASSERT_EQ(c.tell(vhost::message::set_inflight_fd, i, {&log_fd, 1}), 0u);
  std::array<std::byte, sizeof(vhost::config_space) + 1> off{};
  const vhost::config_space head{.offset = 32, .bytes = 1};
  std::memcpy(off.data(), &head, sizeof head);
  ASSERT_EQ(c.tell_bytes(vhost::message::set_config, off), 0u);
  vhost_disk d(c, 0, 0, GetParam());
  EXPECT_FALSE(d.start()) << "longer than the log";
  ASSERT_EQ(c.tell_bytes(vhost::message::reset_device, {}), 0u);
  EXPECT_EQ(c.config().writeback, 1);
  ASSERT_EQ(c.tell(vhost::message::set_features, c.features), 0u);
  ASSERT_TRUE(d.start());
  EXPECT_EQ(d.read(0, 4096), 0);
}

TEST_P(VhostMessages, ReadOnlyAndWriteThroughAreSeen) {
  start(named("disk", true), true);
  vhost_client& c = guest();
  EXPECT_NE(c.offered & virtio::blk_read_only, 0u);
  EXPECT_EQ(c.offered & (virtio::blk_discard | virtio::blk_write_zeroes | virtio::blk_config_wce),
            0u);
  EXPECT_EQ(c.config().writeback, 0);
  vhost_disk d(c, 0, 0, GetParam());
  ASSERT_TRUE(d.start());
  EXPECT_EQ(d.write(0, 512), 1);
  EXPECT_EQ(d.read(0, 512), 0);
  EXPECT_EQ(d.flush(), 0);
}

TEST_P(VhostMessages, MalformedOnesAreRefusedCountedAndLoggedOnce) {
  start();
  vhost_client& c = guest();
  const auto before = statistic("messages_refused");
  using enum vhost::message;
  const auto own = make_event_fd();
  const int event = own->get();
  const int file = c.memory_fd();
  EXPECT_EQ(c.tell(set_features, ~std::uint64_t{0}), std::uint64_t{EINVAL});
  EXPECT_EQ(c.tell(set_vring_num, vhost::vring_state{99, 64}), std::uint64_t{EINVAL});
  EXPECT_EQ(c.tell(set_vring_num, vhost::vring_state{0, 0}), std::uint64_t{EINVAL});
  EXPECT_EQ(c.tell(set_vring_num, std::uint32_t{0}), std::uint64_t{EINVAL});
  EXPECT_EQ(c.tell(set_vring_kick, std::uint64_t{0}), std::uint64_t{EINVAL});  // no descriptor
  EXPECT_EQ(c.tell(set_vring_kick, std::uint64_t{0}, {&file, 1}), std::uint64_t{EINVAL});
  EXPECT_EQ(c.tell(get_features, std::uint64_t{0}), std::uint64_t{EINVAL});
  EXPECT_EQ(c.tell(static_cast<vhost::message>(6), std::uint64_t{0}), std::uint64_t{ENOTSUP});
  vhost::single_region r{.region = {1u << 30, 1u << 30, 1u << 30, 1u << 30}};
  EXPECT_EQ(c.tell(add_mem_reg, r, {&file, 1}), std::uint64_t{EINVAL});  // behind the file's end
  r.region = {.guest_physical = ~std::uint64_t{0} - 10, .bytes = 4096, .user_address = 4096};
  EXPECT_EQ(c.tell(add_mem_reg, r, {&file, 1}), std::uint64_t{EINVAL});
  r.region = {.guest_physical = vhost_client::guest_base, .bytes = 4096, .user_address = 4096};
  EXPECT_EQ(c.tell(add_mem_reg, r, {&file, 1}), std::uint64_t{EEXIST});
  EXPECT_EQ(c.tell(rem_mem_reg, r), std::uint64_t{ENOENT});
  vhost::memory_table many{.count = 9};
  EXPECT_EQ(c.tell(set_mem_table, many), std::uint64_t{EINVAL});
  EXPECT_EQ(c.tell(set_inflight_fd, vhost::inflight{.bytes = 64, .queues = 1, .queue_size = 64},
                   {&event, 1}),
            std::uint64_t{EINVAL});
  // A ring whose words are in no memory.
  const vhost::vring_addr nowhere{.descriptors = 16, .used = 32, .available = 64};
  EXPECT_EQ(c.tell(set_vring_num, vhost::vring_state{0, 64}), 0u);
  EXPECT_EQ(c.tell(set_vring_addr, nowhere), 0u);
  EXPECT_EQ(c.ring_fd(set_vring_kick, 0, event), 0u);
  EXPECT_EQ(c.tell(set_vring_enable, vhost::vring_state{0, 1}), std::uint64_t{EFAULT});
  EXPECT_EQ(statistic("messages_refused"), before + 15);
  EXPECT_EQ(logged, 1);
  // It still serves.
  vhost_disk d(c, 1, 0, GetParam());
  ASSERT_TRUE(d.start());
  EXPECT_EQ(d.read(0, 4096), 0);
  // Without a wish for an answer the connection ends; and the door is open for the next one.
  ASSERT_TRUE(c.send(set_vring_num, vhost_client::as_payload(std::uint32_t{7})));
  EXPECT_FALSE(c.receive());
  vhost_client& large = connect();
  const vhost::header too_long{.request = 1, .flags = 1, .size = 1u << 20};
  ASSERT_TRUE(send_all(large.fd(), std::as_bytes(std::span(&too_long, 1))));
  EXPECT_FALSE(large.receive());
  expect_service();
}

TEST_P(VhostMessages, WhateverIsSaidTheNextFrontEndIsServed) {
  start();
  std::mt19937_64 rng(11);
  for (int round = 0; round < 100; ++round) {
    std::vector<std::uint8_t> input(rng() % 600);
    for (std::uint8_t& b : input) b = static_cast<std::uint8_t>(rng() % 4 == 0 ? rng() : rng() % 9);
    play_front_end(path, input);
  }
  EXPECT_GE(statistic("messages_refused"), 50u);
  expect_service();
}

// Messages that never run dry are one client's work among others'.
TEST_P(VhostMessages, AFloodOfThemLeavesTimeForOthers) {
  start();
  vhost_client& c = connect();
  std::vector<vhost::header> many(10'000, {.request = 3, .flags = vhost::version});  // SET_OWNER
  std::atomic<bool> over{false};
  std::thread flood([&] {
    while (!over && send_all(c.fd(), std::as_bytes(std::span(many)))) {
    }
  });
  for (int i = 0; i < 20; ++i) {
    raw_client nbd_client(*server);
    EXPECT_TRUE(nbd_client.go() && nbd_client.read(0, 4096));
  }
  over = true;
  flood.join();
  c.close();
  expect_service();
}

// A front-end that cuts its file off does not take the server with it.
TEST_P(VhostMessages, MemoryThatIsCutOffEndsTheRing) {
  start();
  vhost_client& c = connect();
  ASSERT_TRUE(c.negotiate(all_features));
  unique_fd file(::memfd_create("unsealed", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(file.get(), 1 << 20), 0);
  void* const p = ::mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  ASSERT_NE(p, MAP_FAILED);
  virtio_driver driver({static_cast<std::byte*>(p), 1 << 20}, {});
  vhost::single_region r{.region = {0, 1 << 20, 0, 0}};
  const int fd = file.get();
  ASSERT_EQ(c.tell(vhost::message::add_mem_reg, r, {&fd, 1}), 0u);
  auto kick = make_event_fd();
  using enum vhost::message;
  ASSERT_EQ(c.tell(set_vring_num, vhost::vring_state{0, 64}), 0u);
  ASSERT_EQ(c.tell(set_vring_addr, vhost::vring_addr{.descriptors = 0,
                                                     .used = driver.device_offset(),
                                                     .available = driver.driver_offset()}),
            0u);
  ASSERT_EQ(c.ring_fd(set_vring_kick, 0, kick->get()), 0u);
  ASSERT_EQ(c.tell(set_vring_enable, vhost::vring_state{0, 1}), 0u);
  ASSERT_EQ(::ftruncate(file.get(), 0), 0);
  ::munmap(p, 1 << 20);
  signal_event_fd(kick->get());
  EXPECT_TRUE(eventually([&] {
    signal_event_fd(kick->get());
    return statistic("rings_broken") == 1;
  }));
  raw_client nbd_client(*server);
  ASSERT_TRUE(nbd_client.go());
  EXPECT_TRUE(nbd_client.read(0, 4096));
}

}  // namespace
}  // namespace forebay
