// The recorder over a simulated network controller: what comes in bursts, in simulated time, and a
// CPU that keeps up or does not.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "forebay/net/capture_reader.h"
#include "forebay/net/recorder.h"
#include "forebay/net/test_packets.h"
#include "forebay/os/poll.h"
#include "sim/iommu_domain.h"
#include "sim/nic_port.h"

namespace forebay {
namespace {

constexpr std::uint64_t ms = 1'000'000;
constexpr std::size_t frame_bytes = 300;
constexpr std::uint64_t frame_ns = 86'400;  // at 30 Mb/s

struct recording {
  port_statistics port;
  nic_statistics nic;
  std::uint64_t written = 0;
  std::uint64_t in_file = 0;
  std::uint64_t last = 0;  // number of the last packet in the file

  bool operator==(const recording& other) const {
    return nic == other.nic && written == other.written && in_file == other.in_file &&
           last == other.last;
  }
};

wire_frame frame_of(std::uint64_t number) {
  wire_frame f{std::vector<std::byte>(frame_bytes, static_cast<std::byte>(number)), 0};
  std::memcpy(f.data.data(), &number, sizeof number);
  f.check = frame_check(f.data);
  return f;
}

// Frames come for the first 200 ms of each of three seconds; then the device is pulled out. The CPU
// needs so long for a packet.
recording record_bursts(const std::string& path, std::uint64_t cpu_ns) {
  simulated_clock clock;
  const test_packets packets({.buffer_bytes = 2048, .count = 600});
  auto rings = std::move(*arena::create({.bytes = 1u << 20, .huge_pages = false}));
  iommu_domain domain({});
  simulated_nic nic(clock, domain, {.rx_fifo_bytes = 32 * frame_bytes});
  auto port = std::move(*nic_port::open(
      nic, *rings, *packets, {.rx_entries = 128, .receive_ns = cpu_ns, .check_ownership = false}));
  nic.set_carrier(true);
  std::uint64_t number = 0;
  std::function<void()> next = [&] {
    nic.arrive(frame_of(number++));
    const std::uint64_t in_second = clock.now_ns() % (1000 * ms);
    const std::uint64_t pause = in_second < 200 * ms ? frame_ns : 1000 * ms - in_second;
    clock.after(pause, next);
  };
  clock.at(1, next);
  clock.at(2999 * ms, [&] { nic.remove(); });

  recorder_options o;
  o.path = path;
  o.snap_bytes = 1514;
  o.buffer.bytes = 1 << 20;
  o.buffer.when_full = exhaustion_policy::block;
  o.cache_bytes = page_cache::min_bytes;
  auto r = std::move(*recorder::create(*port, o));
  EXPECT_TRUE(r->start());
  const int ended = r->ended_fd();
  EXPECT_EQ(wait_readable({&ended, 1}, 60'000), 1u);
  EXPECT_TRUE(r->finish());
  const recorder_statistics s = r->statistics();
  recording seen{s.port, nic.stats(), s.written};
  EXPECT_EQ(number, s.port.received);
  EXPECT_EQ(s.port.received, s.written + s.port.dropped_full + s.port.dropped_memory);

  auto in = capture_reader::open(path);
  EXPECT_TRUE(in);
  capture_reader::record record;
  for (auto more = in->next(record); more && *more; more = in->next(record), ++seen.in_file) {
    std::uint64_t n = 0;
    std::memcpy(&n, record.data.data(), sizeof n);
    EXPECT_EQ(record.data.size(), frame_bytes);
    EXPECT_EQ(record.data[frame_bytes - 1], static_cast<std::byte>(n));
    EXPECT_TRUE(seen.in_file == 0 || n > seen.last);
    seen.last = n;
  }
  EXPECT_EQ(seen.in_file, s.written);
  return seen;
}

TEST(NicRecorder, BurstsAreRecordedAndWhatTheCpuIsTooSlowForIsCounted) {
  char name[] = "/dev/shm/forebay-nic-XXXXXX";  // the disk is of no interest
  const int fd = ::mkstemp(name);
  ASSERT_GE(fd, 0);
  ::close(fd);
  const recording all = record_bursts(name, 40'000);
  EXPECT_EQ(all.written, all.nic.rx_frames);
  EXPECT_GT(all.written, 6900u);
  EXPECT_EQ(all.port.dropped_full, 0u);
  EXPECT_LE(all.nic.rx_fifo_bytes_max, 2 * frame_bytes);
  // At 200 us a packet a CPU takes 1,000 of the 2,315 of a burst while it comes; the ring holds 128
  // and the FIFO 32 of the others.
  const recording some = record_bursts(name, 200'000);
  EXPECT_NEAR(static_cast<double>(some.written), 3 * (1000 + 128 + 32), 3 * 70);
  EXPECT_EQ(some.port.dropped_full, some.nic.rx_fifo_full);
  EXPECT_EQ(some.nic.rx_fifo_bytes_max, 32 * frame_bytes);
  EXPECT_EQ(some, record_bursts(name, 200'000));
  ::unlink(name);
}

}  // namespace
}  // namespace forebay
