// What becomes of device errors, seen by a real client (libnbd): who is told, who goes on, and what
// is on the device once it works again.

#include <libnbd.h>

#include <atomic>

#include "forebay/serve/test_server.h"

namespace forebay {
namespace {

constexpr std::uint32_t mib = 1u << 20;
constexpr std::size_t block = 4096;

// libnbd keeps to the block size that it is told: one byte leaves it every request.
export_options bytewise(std::string name, bool write_through = false) {
  export_options o = named(std::move(name), write_through);
  o.min_block_bytes = 1;
  return o;
}

class client {
 public:
  client(const test_server& s, const char* name) : nbd_(nbd_create()) {
    FOREBAY_ASSERT(nbd_ != nullptr);
    nbd_set_export_name(nbd_, name);
    if (nbd_connect_unix(nbd_, s.socket_path().c_str()) != 0) {
      ADD_FAILURE() << nbd_get_error();
    }
  }
  ~client() {
    nbd_shutdown(nbd_, 0);
    nbd_close(nbd_);
  }
  client(const client&) = delete;
  client& operator=(const client&) = delete;

  // Each gives 0 or the errno.
  int write(std::uint64_t at, const bytes& data, std::uint32_t flags = 0) {
    return outcome(nbd_pwrite(nbd_, data.data(), data.size(), at, flags));
  }
  int flush() { return outcome(nbd_flush(nbd_, 0)); }
  int zero(std::uint64_t at, std::uint64_t n, std::uint32_t flags = 0) {
    return outcome(nbd_zero(nbd_, n, at, flags));
  }
  int trim(std::uint64_t at, std::uint64_t n, std::uint32_t flags = 0) {
    return outcome(nbd_trim(nbd_, n, at, flags));
  }
  int cache(std::uint64_t at, std::uint64_t n) { return outcome(nbd_cache(nbd_, n, at, 0)); }
  int read(std::uint64_t at, bytes& out) {
    return outcome(nbd_pread(nbd_, out.data(), out.size(), at, 0));
  }

 private:
  static int outcome(int r) { return r == 0 ? 0 : nbd_get_errno(); }
  nbd_handle* nbd_;
};

bytes block_of(unsigned v, std::size_t n = block) { return bytes(n, static_cast<std::byte>(v)); }

task<> read_device(device& d, std::uint64_t at, bytes& out) {
  for (std::size_t done = 0; done < out.size();) {
    bio b(bio_op::read, at + done);
    const std::size_t n = std::min<std::size_t>(out.size() - done, mib);
    b.add(out.data() + done, n);
    const std::int32_t status = co_await submit_and_wait(d, b);
    if (status != 0) co_return fail(-status);
    done += n;
  }
  co_return result<>{};
}

// Reads the device itself, beside the server.
bool device_has(test_disk& d, std::uint64_t at, const bytes& data) {
  const std::uint64_t start = at / block * block;
  bytes out((at + data.size() + block - 1) / block * block - start);
  if (!sync_wait(read_device(d.memory, start, out))) return false;
  return std::memcmp(out.data() + (at - start), data.data(), data.size()) == 0;
}

TEST(DeviceErrors, ReadErrorReachesTheReaderOnly) {
  test_server s({.threads = 2});
  test_disk& d = s.add(bytewise("disk"), 16 * mib);
  s.add(bytewise("other"));
  s.start();
  client a(s, "disk");
  client b(s, "other");
  d.faults.inject({.op = bio_op::read, .start_bytes = mib, .end_bytes = mib + block});
  bytes out(block);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(a.read(mib, out), EIO);
  bytes large(8 * mib);
  EXPECT_EQ(a.read(0, large), EIO);
  EXPECT_EQ(a.cache(mib, block), EIO);
  EXPECT_EQ(a.write(mib + 100, bytes(50)), EIO);  // has to read the rest of the block
  EXPECT_EQ(a.read(mib + block, out), 0);
  EXPECT_EQ(b.read(mib, out), 0);
  EXPECT_EQ(a.flush(), 0);
  EXPECT_EQ(a.write(mib, block_of(5)), 0);  // whole blocks need no read
  EXPECT_EQ(a.read(mib, out), 0);
  EXPECT_EQ(out, block_of(5));
  d.faults.heal();
  EXPECT_EQ(a.read(0, large), 0);
}

// A failing read in the middle of one that is answered in parts: structured clients get an error,
// and their connection lives.
TEST(DeviceErrors, ReadErrorInALaterPart) {
  test_server s;
  test_disk& d = s.add(bytewise("disk"), 16 * mib);
  s.start();
  client a(s, "disk");
  d.faults.inject({.op = bio_op::read, .start_bytes = 7 * mib, .end_bytes = 7 * mib + 512});
  bytes large(8 * mib);
  EXPECT_EQ(a.read(0, large), EIO);
  EXPECT_EQ(a.flush(), 0);
  raw_client simple(s);
  ASSERT_TRUE(simple.go("disk"));
  EXPECT_EQ(simple.call(nbd::command::read, 0, 8 * mib), 5u);
  EXPECT_EQ(simple.flush(), 0u);
}

TEST(DeviceErrors, WriteBackErrorFailsEveryFlushUntilItIsResolved) {
  for (const int error : {EIO, ENOSPC}) {
    test_server s;
    test_disk& d = s.add(bytewise("disk"));
    s.start();
    client a(s, "disk");
    client b(s, "disk");
    d.faults.inject({.op = bio_op::write, .error = error});
    EXPECT_EQ(a.write(0, block_of(1, 10 * block)), 0);
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(a.flush(), error);
      EXPECT_EQ(b.flush(), error);
    }
    bytes out(10 * block);
    EXPECT_EQ(b.read(0, out), 0);  // what was acknowledged is still there
    EXPECT_EQ(out, block_of(1, 10 * block));
    d.faults.heal();
    EXPECT_EQ(b.flush(), 0);
    EXPECT_EQ(a.flush(), 0);
    EXPECT_TRUE(device_has(d, 0, block_of(1, 10 * block)));
  }
}

TEST(DeviceErrors, PartialWritesAreDoneAgain) {
  test_server s;
  test_disk& d = s.add(bytewise("disk"));
  s.start();
  client a(s, "disk");
  std::mt19937_64 rng(9);
  const bytes data = random_bytes(rng, mib);
  d.faults.inject({.op = bio_op::write, .count = 3, .error = ENOSPC, .partial_bytes = 1536});
  EXPECT_EQ(a.write(777, data), 0);
  int last = ENOSPC;
  for (int i = 0; i < 4 && last != 0; ++i) last = a.flush();
  EXPECT_EQ(last, 0);
  EXPECT_GE(d.faults.injected(), 1u);
  EXPECT_TRUE(device_has(d, 777, data));
}

TEST(DeviceErrors, FuaTellsTheWriteItself) {
  test_server s;
  test_disk& d = s.add(bytewise("disk"));
  s.start();
  client a(s, "disk");
  d.faults.inject({.op = bio_op::write, .start_bytes = 0, .end_bytes = mib});
  EXPECT_EQ(a.write(0, block_of(2), LIBNBD_CMD_FLAG_FUA), EIO);
  EXPECT_EQ(a.write(300, bytes(5), LIBNBD_CMD_FLAG_FUA), EIO);
  EXPECT_EQ(a.zero(8192, 100, LIBNBD_CMD_FLAG_FUA), EIO);
  // Elsewhere nothing is wrong.
  EXPECT_EQ(a.write(2 * mib, block_of(3), LIBNBD_CMD_FLAG_FUA), 0);
  EXPECT_TRUE(device_has(d, 2 * mib, block_of(3)));
  d.faults.heal();
  EXPECT_EQ(a.write(0, block_of(4), LIBNBD_CMD_FLAG_FUA), 0);
  EXPECT_TRUE(device_has(d, 0, block_of(4)));
  EXPECT_EQ(a.flush(), 0);
}

TEST(DeviceErrors, WriteThroughTellsEveryWrite) {
  test_server s;
  test_disk& d = s.add(bytewise("disk", true));
  s.start();
  client a(s, "disk");
  d.faults.inject({.op = bio_op::write, .count = 1, .error = ENOSPC});
  EXPECT_EQ(a.write(0, block_of(2)), ENOSPC);
  EXPECT_EQ(a.write(0, block_of(3)), 0);
  EXPECT_TRUE(device_has(d, 0, block_of(3)));
  const bytes large = block_of(6, mib);
  EXPECT_EQ(a.write(mib + 3, large), 0);
  EXPECT_TRUE(device_has(d, mib + 3, large));
  EXPECT_EQ(a.zero(0, 100), 0);
  EXPECT_TRUE(device_has(d, 0, bytes(100)));
}

TEST(DeviceErrors, FlushOfTheDeviceFails) {
  test_server s;
  test_disk& d = s.add(bytewise("disk"));
  s.start();
  client a(s, "disk");
  EXPECT_EQ(a.write(0, block_of(1)), 0);
  d.faults.inject({.op = bio_op::flush, .count = 2});
  EXPECT_EQ(a.flush(), EIO);
  EXPECT_EQ(a.trim(mib, mib, LIBNBD_CMD_FLAG_FUA), EIO);
  EXPECT_EQ(a.flush(), 0);
  EXPECT_TRUE(device_has(d, 0, block_of(1)));
}

TEST(DeviceErrors, DiscardAndZeroErrors) {
  test_server s;
  test_disk& d = s.add(bytewise("disk"), 8 * mib);
  s.start();
  client a(s, "disk");
  EXPECT_EQ(a.write(0, block_of(1, mib)), 0);
  d.faults.inject({.op = bio_op::discard, .count = 1});
  d.faults.inject({.op = bio_op::write_zeroes, .count = 1});
  EXPECT_EQ(a.trim(0, mib), EIO);
  EXPECT_EQ(a.zero(0, mib), EIO);
  bytes out(mib);
  EXPECT_EQ(a.read(0, out), 0);
  EXPECT_EQ(out, block_of(1, mib));
  d.faults.inject({.op = bio_op::write_zeroes, .error = ENOTSUP});
  EXPECT_EQ(a.zero(0, mib, LIBNBD_CMD_FLAG_FAST_ZERO), ENOTSUP);
  EXPECT_EQ(a.zero(0, mib), 0);  // written instead
  EXPECT_EQ(a.read(0, out), 0);
  EXPECT_EQ(out, bytes(mib));
  EXPECT_EQ(a.flush(), 0);
  EXPECT_TRUE(device_has(d, 0, bytes(mib)));
}

TEST(DeviceErrors, OneExportFailsTheOthersDoNot) {
  test_server s({.cache_bytes = page_cache::min_bytes, .threads = 2});
  test_disk& bad = s.add(bytewise("bad"), 8 * mib);
  test_disk& good = s.add(bytewise("good"), 8 * mib);
  test_disk& fine = s.add(bytewise("fine"), 8 * mib);
  s.start();
  client a(s, "bad");
  client b(s, "good");
  client c(s, "fine");
  bad.faults.inject({.op = bio_op::write});
  // As much as the cache takes for a device that cannot be written: the others do not notice.
  std::uint64_t kept = 0;
  while (kept < 8 * mib && a.write(kept, block_of(1, 65536)) == 0) kept += 65536;
  EXPECT_GT(kept, 0u);
  EXPECT_LT(kept, 8 * mib);
  EXPECT_EQ(a.flush(), EIO);
  std::mt19937_64 rng(10);
  const bytes data = random_bytes(rng, 6 * mib);
  for (client* ok : {&b, &c}) {
    for (std::size_t at = 0; at < data.size(); at += mib) {
      ASSERT_EQ(ok->write(at, {data.begin() + at, data.begin() + at + mib}), 0);
    }
    EXPECT_EQ(ok->flush(), 0);
    bytes out(data.size());
    EXPECT_EQ(ok->read(0, out), 0);
    EXPECT_TRUE(out == data);
  }
  EXPECT_TRUE(device_has(good, 0, data));
  EXPECT_TRUE(device_has(fine, 0, data));
  EXPECT_EQ(a.flush(), EIO);
  bad.faults.heal();
  EXPECT_EQ(a.flush(), 0);
  EXPECT_TRUE(device_has(bad, 0, block_of(1, kept)));
}

// More than the cache may hold dirty: in the end the writer is told, and nothing is lost.
TEST(DeviceErrors, WriterIsToldWhenTheCacheIsFullOfWhatCannotBeWritten) {
  test_server s({.cache_bytes = page_cache::min_bytes});
  test_disk& d = s.add(bytewise("disk"), 8 * mib);
  s.start();
  client a(s, "disk");
  d.faults.inject({.op = bio_op::write});
  std::uint64_t acknowledged = 0;
  int told = 0;
  while (acknowledged < 8 * mib && told == 0) {
    told = a.write(acknowledged, block_of(1, 65536));
    if (told == 0) acknowledged += 65536;
  }
  EXPECT_EQ(told, EIO);
  EXPECT_GT(acknowledged, 0u);
  bytes out(65536);
  EXPECT_EQ(a.read(0, out), 0);
  EXPECT_EQ(out, block_of(1, 65536));
  EXPECT_EQ(a.flush(), EIO);
  d.faults.heal();
  EXPECT_EQ(a.flush(), 0);
  EXPECT_TRUE(device_has(d, 0, block_of(1, acknowledged)));
}

// Random writes and flushes over a device that fails now and then: what was acknowledged and then
// covered by a good flush is on the device, always.
class Durability : public ::testing::TestWithParam<unsigned> {};

INSTANTIATE_TEST_SUITE_P(, Durability, ::testing::Range(0u, 6u));

TEST_P(Durability, NothingFlushedIsLost) {
  std::mt19937_64 rng(GetParam());
  test_server s({.cache_bytes = page_cache::min_bytes, .threads = 2});
  test_disk& d = s.add(bytewise("disk"), 8 * mib);
  s.start();
  client a(s, "disk");
  client b(s, "disk");
  bytes expected(8 * mib);
  for (int round = 0; round < 30; ++round) {
    if (rng() % 2 == 0) {
      fault f{.op = rng() % 5 == 0 ? bio_op::flush : bio_op::write};
      f.skip = rng() % 5;
      f.count = 1 + rng() % 4;
      f.error = rng() % 2 == 0 ? EIO : ENOSPC;
      if (rng() % 2 == 0) f.partial_bytes = rng() % 20'000;
      d.faults.inject(f);
    }
    for (int i = 0; i < 20; ++i) {
      const bytes data = random_bytes(rng, 1 + rng() % 70'000);
      const std::uint64_t at = rng() % (8 * mib - data.size());
      const bool fua = rng() % 6 == 0;
      // A write that fails may have been done in part: done again until it is.
      int e = EIO;
      for (int tries = 0; tries < 60 && e != 0; ++tries) {
        e = (i % 2 == 0 ? a : b).write(at, data, fua ? LIBNBD_CMD_FLAG_FUA : 0);
      }
      ASSERT_EQ(e, 0);
      std::copy(data.begin(), data.end(), expected.begin() + static_cast<std::ptrdiff_t>(at));
      if (fua) {
        bytes out(data.size());
        ASSERT_EQ(b.read(at, out), 0);
        ASSERT_TRUE(out == data);
      }
    }
    int e = EIO;
    for (int tries = 0; tries < 60 && e != 0; ++tries) e = (rng() % 2 == 0 ? a : b).flush();
    ASSERT_EQ(e, 0);
    // Both clients are quiet, and a flusher has nothing to write.
    ASSERT_TRUE(device_has(d, 0, expected)) << "round " << round;
  }
  d.faults.heal();  // a fault that nothing has met yet is not for the server's last flush
}

// A second client works without an error while the first one's flushes fail.
TEST(DeviceErrors, ServingGoesOnBesideFailures) {
  test_server s({.threads = 2});
  test_disk& d = s.add(bytewise("disk"), 16 * mib);
  s.start();
  client a(s, "disk");
  d.faults.inject({.op = bio_op::write, .start_bytes = 0, .end_bytes = mib});
  std::atomic<bool> over{false};
  std::thread beside([&] {
    client b(s, "disk");
    std::mt19937_64 rng(11);
    while (!over) {
      const bytes data = random_bytes(rng, block);
      const std::uint64_t at = 8 * mib + rng() % 1000 * block;
      bytes out(block);
      ASSERT_EQ(b.write(at, data, rng() % 4 == 0 ? LIBNBD_CMD_FLAG_FUA : 0), 0);
      ASSERT_EQ(b.read(at, out), 0);
      ASSERT_TRUE(out == data);
    }
  });
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(a.write(i * block, block_of(7)), 0);
    EXPECT_EQ(a.flush(), EIO);
  }
  over = true;
  beside.join();
  d.faults.heal();
  EXPECT_EQ(a.flush(), 0);
  EXPECT_TRUE(device_has(d, 0, block_of(7, 50 * block)));
}

}  // namespace
}  // namespace forebay
