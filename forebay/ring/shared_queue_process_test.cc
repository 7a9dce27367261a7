// One thread: not in the thread sanitizer's tree.
// Both kinds of ring between two processes: a device that is a child process, with memory of its
// own mapping, that works, dies or has never been told the truth.
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>

#include "forebay/os/clock.h"
#include "forebay/os/fd_passing.h"
#include "forebay/os/shared_memory.h"
#include "forebay/os/test_process.h"
#include "forebay/ring/descriptor_ring.h"
#include "forebay/ring/shared_queue_controller.h"
#include "forebay/ring/shared_queue_pair.h"

namespace forebay {
namespace {

constexpr std::uint64_t second_ns = 1'000'000'000;
constexpr std::uint64_t data_address = 0x7000'0000;  // of the data area, for the device
constexpr std::uint32_t block_bytes = 512;
constexpr std::uint32_t entries = 64;

bool long_run() { return std::getenv("FOREBAY_STRESS") != nullptr; }
std::uint32_t transfers() { return long_run() ? 1'000'000 : 100'000; }

// One file: a ring, behind it the blocks that the transfers move, and a descriptor table for each.
struct shared_area {
  static constexpr std::size_t table_bytes = 2 * sizeof(descriptor);

  shared_area(shared_memory m, std::size_t ring_bytes)
      : memory(std::move(m)),
        ring(memory.memory().first(ring_bytes)),
        data(memory.memory().subspan(round_up(ring_bytes, shared_region_alignment))) {
    if (!regions.add(data_address, data)) std::abort();
  }
  static shared_area make(std::size_t ring_bytes) {
    auto m = shared_memory::create("forebay test",
                                   round_up(ring_bytes, shared_region_alignment) +
                                       std::size_t{entries} * (block_bytes + table_bytes));
    EXPECT_TRUE(m) << m.error().message();
    return shared_area(std::move(*m), ring_bytes);
  }

  std::span<std::byte> block(std::uint32_t i) const {
    return data.subspan(std::size_t{i % entries} * block_bytes, block_bytes);
  }
  std::span<std::byte> table(std::uint32_t i) const {
    return data.subspan(std::size_t{entries} * block_bytes + i * table_bytes, table_bytes);
  }
  std::uint64_t address_of(std::span<std::byte> part) const {
    return data_address + static_cast<std::uint64_t>(part.data() - data.data());
  }

  shared_memory memory;
  std::span<std::byte> ring;
  std::span<std::byte> data;
  memory_region_table regions;
};

// A child process that is given the memory over a socket, maps it and calls `body` with it.
class peer_process {
 public:
  template <typename Body>
  explicit peer_process(std::size_t ring_bytes, Body body)
      : sockets_(*make_socket_pair()), process_([&] {
          sockets_.first.reset();
          std::byte go{};
          unique_fd fd;
          const auto r = receive_with_fds(sockets_.second.get(), {&go, 1}, {&fd, 1});
          if (!r) return 10;
          auto memory = shared_memory::open(std::move(fd), ring_bytes);
          return memory ? body(shared_area(std::move(*memory), ring_bytes)) : 11;
        }) {
    sockets_.second.reset();
  }

  void start(const shared_area& area) {
    const std::byte go{1};
    ASSERT_TRUE(send_with_fds(sockets_.first.get(), {&go, 1}, std::array{area.memory.fd()}));
  }
  int socket() const { return sockets_.first.get(); }
  test_process& process() { return process_; }

 private:
  socket_pair sockets_;
  test_process process_;
};

// The content of transfer n: words that follow from n, so that no other transfer's passes for it.
void fill(std::span<std::byte> block, std::uint64_t n) {
  for (std::size_t i = 0; i < block.size(); i += 8) {
    const std::uint64_t word = (n + 1) * 0x9e3779b97f4a7c15 + i;
    std::memcpy(block.data() + i, &word, sizeof word);
  }
}
bool holds(std::span<const std::byte> block, std::uint64_t n) {
  for (std::size_t i = 0; i < block.size(); i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, block.data() + i, sizeof word);
    if (word != (n + 1) * 0x9e3779b97f4a7c15 + i) return false;
  }
  return true;
}

// ---- The descriptor ring: what is sent comes back with every byte inverted ----

std::size_t ring_bytes() { return descriptor_driver::region_bytes(entries); }

// Exit status 0 when the driver has closed.
int run_device(const shared_area& area, std::uint32_t die_after) {
  auto device = descriptor_device::attach(area.ring);
  if (!device) return 1;
  std::array<descriptor, 4> storage;
  std::array<std::span<std::byte>, 8> pieces;
  for (std::uint32_t n = 0;;) {
    if (auto r = device->wait(30 * second_ns); !r) return r.error() == errc::end_of_stream ? 0 : 2;
    for (;; ++n) {
      if (n == die_after) ::raise(SIGKILL);
      const auto taken = device->take(storage);
      if (!taken) return 3;
      if (taken->descriptors.empty()) break;
      const auto chain =
          collect_chain(descriptor_list(taken->descriptors), 0, {}, area.regions, pieces);
      if (!chain || chain->writable.size() != 1) return 4;
      for (std::byte& b : chain->writable[0]) b = ~b;
      if (!device->complete(static_cast<std::uint32_t>(chain->writable_bytes))) return 5;
      // A bell now and then in the middle of a batch, and always at its end.
      if (n % 16 == 0) device->notify();
    }
    device->notify();
  }
}

class sender {
 public:
  sender(const shared_area& area, descriptor_driver& driver) : area_(area), driver_(driver) {}

  // Posts what there is room for, in batches that vary; blocks come after each other.
  void post(std::uint32_t until) {
    while (sent_ < until && driver_.room() >= 2) {
      const std::span<std::byte> block = area_.block(sent_);
      fill(block, sent_);
      // In two descriptors that lie behind each other: one piece for the device.
      const std::uint64_t at = area_.address_of(block);
      const std::array chain = {
          descriptor{at, block_bytes / 4, descriptor_write, 0},
          descriptor{at + block_bytes / 4, 3 * block_bytes / 4, descriptor_write, 0}};
      ASSERT_TRUE(driver_.post(chain, sent_ * 3ull));
      if (++sent_ % 24 == 0) break;
    }
    driver_.ring_doorbell();
  }
  result<> receive() {
    if (auto r = driver_.wait(30 * second_ns); !r) return r;
    std::array<ended_chain, 16> ended;
    const auto n = driver_.reap(ended);
    if (!n) return fail(n.error());
    for (std::size_t i = 0; i < *n; ++i, ++received_) {
      const std::span<std::byte> block = area_.block(received_);
      for (std::byte& b : block) b = ~b;
      if (ended[i].id != received_ * 3ull || ended[i].length != block_bytes ||
          ended[i].error != 0 || !holds(block, received_)) {
        ++wrong_;
      }
    }
    return {};
  }
  std::uint32_t sent() const { return sent_; }
  std::uint32_t received() const { return received_; }
  unsigned wrong() const { return wrong_; }

 private:
  const shared_area& area_;
  descriptor_driver& driver_;
  std::uint32_t sent_ = 0;
  std::uint32_t received_ = 0;
  unsigned wrong_ = 0;
};

TEST(TwoProcesses, ADescriptorRingMovesBytes) {
  peer_process child(ring_bytes(), [](const shared_area& a) { return run_device(a, UINT32_MAX); });
  const shared_area area = shared_area::make(ring_bytes());
  // The positions come round in the middle.
  auto driver =
      descriptor_driver::create(area.ring, {.entries = entries, .start = 0u - transfers()});
  ASSERT_TRUE(driver) << driver.error().message();
  child.start(area);
  sender s(area, *driver);
  while (s.received() < transfers()) {
    s.post(transfers());
    const auto r = s.receive();
    ASSERT_TRUE(r) << r.error().message();
  }
  EXPECT_EQ(s.wrong(), 0u);
  driver->close();
  EXPECT_EQ(child.process().wait(), 0);
  EXPECT_LE(driver->statistics().bells, driver->statistics().doorbells);
}

TEST(TwoProcesses, ADeviceThatDiesIsNoticed) {
  peer_process child(ring_bytes(), [](const shared_area& a) { return run_device(a, 5'003); });
  auto watch = peer_watch::of_process(child.process().pid());
  ASSERT_TRUE(watch);
  const shared_area area = shared_area::make(ring_bytes());
  auto driver =
      descriptor_driver::create(area.ring, {.entries = entries, .start = 0}, shared_futex(&*watch));
  ASSERT_TRUE(driver);
  child.start(area);
  sender s(area, *driver);
  result<> r;
  while (r) {
    s.post(UINT32_MAX);
    r = s.receive();
  }
  EXPECT_EQ(r.error(), ring_errc::peer_gone) << r.error().message();
  // What it completed before it died came in, in order and whole.
  EXPECT_EQ(s.received(), 5'003u);
  EXPECT_EQ(s.wrong(), 0u);
  EXPECT_EQ(driver->fault(), ring_errc::peer_gone);
  EXPECT_GT(driver->in_flight(), 0u);
  EXPECT_EQ(child.process().wait(), -SIGKILL);
}

// ---- The queue pair: reads of a made-up disk, some of them by a chain, ended in any order ----

std::size_t queue_bytes() { return shared_queue_pair::region_bytes(entries, entries); }
constexpr std::uint32_t indirect_every = 7;

int run_controller(const shared_area& area, std::uint32_t die_after) {
  auto controller = shared_queue_controller::attach(area.ring);
  if (!controller) return 1;
  std::array<taken_command, 24> taken;
  std::array<std::span<std::byte>, 8> pieces;
  for (std::uint32_t n = 0;;) {
    if (auto r = controller->wait(30 * second_ns); !r) {
      return r.error() == errc::end_of_stream && controller->in_flight() == 0 ? 0 : 2;
    }
    const auto count = controller->take(taken);
    if (!count) return 3;
    for (std::size_t i = 0; i < *count; ++i) {
      if (n++ == die_after) ::raise(SIGKILL);
      // Even ones first, then the odd ones backwards.
      const std::size_t half = (*count + 1) / 2;
      const taken_command& t = taken[i < half ? 2 * i : 2 * (*count - i) - 1];
      const auto to = memory_of(t.command, {}, area.regions, pieces);
      if (!to || to->size() != 1) return 4;
      fill((*to)[0], t.command.offset);
      const bool bad = t.command.opcode == 99;
      if (!controller->complete(t.id, bad ? -ENOTSUP : static_cast<int>(block_bytes))) return 5;
      if (n % 8 == 0) controller->notify();
    }
    controller->notify();
  }
}

class reader {
 public:
  reader(const shared_area& area, shared_queue_pair& queues) : area_(area), queues_(queues) {}

  void submit(std::uint32_t until) {
    for (std::uint32_t i = 0; i < entries && sent_ < until; ++i) {
      read& r = reads_[i];
      if (r.busy) continue;
      shared_command c{.opcode = static_cast<std::uint16_t>(sent_ % 1'000 == 5 ? 99 : 1),
                       .flags = command_write,
                       .address = area_.address_of(area_.block(i)),
                       .length = block_bytes,
                       .offset = sent_};
      if (sent_ % indirect_every == 0) use_chain(c, i);
      const auto done = queues_.submit(c, r.done);
      if (!done) {
        ASSERT_EQ(done.error().value(), EAGAIN);
        return;
      }
      r.busy = true;
      r.offset = sent_++;
    }
  }
  result<> receive() {
    if (auto r = queues_.ring_doorbell(30 * second_ns); !r) return r;
    while (completion* c = queues_.reap()) end(*c);
    return queues_.fault() ? fail(queues_.fault()) : result<>();
  }
  void end(completion& c) {
    for (std::uint32_t i = 0; i < entries; ++i) {
      read& r = reads_[i];
      if (&r.done != &c) continue;
      const int wanted = r.offset % 1'000 == 5 ? -ENOTSUP : static_cast<int>(block_bytes);
      if (!r.busy || c.status != wanted || !holds(area_.block(i), r.offset)) ++wrong_;
      r.busy = false;
      ++received_;
    }
  }
  std::uint32_t received() const { return received_; }
  unsigned wrong() const { return wrong_; }

 private:
  struct read {
    completion done;
    std::uint64_t offset = 0;
    bool busy = false;
  };

  // The same block by a chain of two descriptors.
  void use_chain(shared_command& c, std::uint32_t i) {
    const std::span<std::byte> memory = area_.table(i);
    const auto table = shared_descriptor_table::at(memory);
    table->write(0, {c.address, 100, descriptor_write | descriptor_next, 1});
    table->write(1, {c.address + 100, block_bytes - 100, descriptor_write, 0});
    c.address = area_.address_of(memory);
    c.argument = table->size();
    c.flags |= command_indirect;
  }

  const shared_area& area_;
  shared_queue_pair& queues_;
  std::array<read, entries> reads_;
  std::uint64_t sent_ = 0;
  std::uint32_t received_ = 0;
  unsigned wrong_ = 0;
};

TEST(TwoProcesses, AQueuePairReadsBlocks) {
  peer_process child(queue_bytes(),
                     [](const shared_area& a) { return run_controller(a, UINT32_MAX); });
  const shared_area area = shared_area::make(queue_bytes());
  auto queues = shared_queue_pair::create(
      area.ring, {.entries = entries, .completions = entries, .start = 0u - transfers() / 2});
  ASSERT_TRUE(queues) << queues.error().message();
  child.start(area);
  reader r(area, *queues);
  while (r.received() < transfers()) {
    r.submit(transfers());
    const auto done = r.receive();
    ASSERT_TRUE(done) << done.error().message();
  }
  EXPECT_EQ(r.received(), transfers());
  EXPECT_EQ(r.wrong(), 0u);
  queues->close();
  EXPECT_EQ(child.process().wait(), 0);
}

// Reads until the controller is gone; kills it itself once so many have come in. Every command
// comes back exactly once, with its data or given up.
void read_until_it_dies(peer_process& child, std::uint32_t kill_at, std::uint32_t& received) {
  // By its socket this time: it is closed when the last process that has it ends.
  auto watch = peer_watch::of_socket(child.socket());
  ASSERT_TRUE(watch);
  const shared_area area = shared_area::make(queue_bytes());
  auto queues = shared_queue_pair::create(area.ring, {.entries = entries, .completions = entries},
                                          shared_futex(&*watch));
  ASSERT_TRUE(queues);
  child.start(area);
  reader r(area, *queues);
  result<> done;
  for (bool killed = false; done;) {
    r.submit(UINT32_MAX);
    done = r.receive();
    if (!killed && r.received() >= kill_at) {
      child.process().kill();
      killed = true;
    }
  }
  EXPECT_EQ(done.error(), ring_errc::peer_gone) << done.error().message();
  EXPECT_EQ(child.process().wait(), -SIGKILL);
  EXPECT_EQ(r.wrong(), 0u);
  received = r.received();
  // Its mapping went with it: the commands that are left can be given back.
  const std::uint32_t left = queues->in_flight();
  queues->abandon(-ECONNRESET);
  std::uint32_t ended = 0;
  for (; completion* c = queues->reap(); ++ended) EXPECT_EQ(c->status, -ECONNRESET);
  EXPECT_EQ(ended, left);
}

TEST(TwoProcesses, AControllerThatDiesIsNoticed) {
  peer_process child(queue_bytes(), [](const shared_area& a) { return run_controller(a, 7'001); });
  std::uint32_t received = 0;
  read_until_it_dies(child, UINT32_MAX, received);
  EXPECT_EQ(received, 7'001u);
}

TEST(TwoProcesses, AControllerThatIsKilledAtAnyMomentLeavesNothingHalf) {
  const std::uint32_t rounds = long_run() ? 300 : 6;
  for (std::uint32_t i = 0; i < rounds; ++i) {
    peer_process child(queue_bytes(),
                       [](const shared_area& a) { return run_controller(a, UINT32_MAX); });
    std::uint32_t received = 0;
    read_until_it_dies(child, i * 977 % 5'000, received);
    EXPECT_GE(received, i * 977 % 5'000);
  }
}

TEST(TwoProcesses, APeerThatNeverAnswersIsATimeout) {
  const shared_area area = shared_area::make(queue_bytes());
  test_process child([] { return ::pause(); });
  auto watch = peer_watch::of_process(child.pid());
  ASSERT_TRUE(watch);
  auto queues =
      shared_queue_pair::create(area.ring, {.entries = 4, .completions = 4}, shared_futex(&*watch));
  ASSERT_TRUE(queues);
  completion done;
  ASSERT_TRUE(queues->submit({}, done));
  EXPECT_TRUE(queues->ring_doorbell(30'000'000));
  EXPECT_EQ(queues->wait(30'000'000).error(), std::errc::timed_out);
  EXPECT_EQ(queues->reap(), nullptr);
  EXPECT_FALSE(queues->fault());
}

// A child that writes into the ring without end, while this side goes on calling: it hangs nowhere,
// and what it believes is never more than it asked for.
int scribble(const shared_area& area) {
  auto* words = reinterpret_cast<std::atomic<std::uint32_t>*>(area.ring.data());
  const std::size_t count = area.ring.size() / 4;
  std::uint64_t seed = 12345;
  for (;;) {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    const auto value = static_cast<std::uint32_t>(seed >> 33);
    // Small values as well, which look like something.
    words[(seed >> 20) % count] = (seed & 1) != 0 ? value : value & 0x1003f;
  }
}

TEST(TwoProcesses, APeerThatScribblesHarmsNobody) {
  peer_process child(queue_bytes(), [](const shared_area& a) { return scribble(a); });
  const shared_area area = shared_area::make(queue_bytes());
  child.start(area);
  std::array<completion, entries> done;
  std::array<taken_command, 8> taken;
  unsigned faults = 0;
  const std::uint64_t start = monotonic_clock::now_ns();
  for (int round = 0; round < (long_run() ? 20'000 : 300) || faults == 0; ++round) {
    ASSERT_LT(monotonic_clock::now_ns() - start, 60 * second_ns) << "it does not get in the way";
    auto queues =
        shared_queue_pair::create(area.ring, {.entries = entries, .completions = entries});
    ASSERT_TRUE(queues);
    auto controller = shared_queue_controller::attach(area.ring);  // what it reads may be anything
    std::uint32_t ended = 0;
    std::uint32_t submitted = 0;
    for (int i = 0; i < 20; ++i) {
      while (submitted < entries && queues->submit({.length = 10}, done[submitted])) ++submitted;
      static_cast<void>(queues->ring_doorbell(1'000));
      if (controller) {
        const auto n = controller->take(taken);
        for (std::size_t t = 0; n && t < *n; ++t) {
          static_cast<void>(controller->complete(taken[t].id, 0));
        }
        controller->notify();
        static_cast<void>(controller->wait(1'000));
      }
      while (completion* c = queues->reap()) {
        ASSERT_GE(c, done.data());
        ASSERT_LT(c, done.data() + entries);
        ASSERT_LE(c->status, 10);
        ++ended;
      }
    }
    ASSERT_EQ(queues->in_flight(), submitted - ended);
    if (queues->fault() || !controller || controller->fault()) ++faults;
  }
  EXPECT_EQ(child.process().kill_and_wait(), -SIGKILL);
}

}  // namespace
}  // namespace forebay
