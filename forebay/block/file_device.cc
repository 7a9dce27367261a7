#include "forebay/block/file_device.h"

#include <algorithm>

#include "forebay/ring/loop.h"

namespace forebay {
namespace {

bool is_transfer(const bio& b) noexcept { return b.op == bio_op::read || b.op == bio_op::write; }

bool is_fua(const bio& b) noexcept { return b.op == bio_op::write && (b.flags & bio_fua) != 0; }

zero_mode zero_mode_of(const bio& b) noexcept {
  return b.op == bio_op::write_zeroes && (b.flags & bio_no_unmap) != 0 ? zero_mode::keep_allocated
                                                                       : zero_mode::deallocate;
}

// Gives a bio that was cut short its segments back.
void make_whole(bio& b) noexcept {
  if (b.lower.whole.iov_len != 0) b.segments[b.lower.first_segment] = b.lower.whole;
  b.lower.first_segment = 0;
  b.lower.whole = {};
}

// Takes what has been done off the front of a bio's segments; some is left.
void cut(bio& b) noexcept {
  make_whole(b);
  std::uint64_t done = b.lower.done_bytes;
  std::uint16_t i = 0;
  for (; done >= b.segments[i].iov_len; ++i) done -= b.segments[i].iov_len;
  iovec& s = b.segments[i];
  b.lower.first_segment = i;
  b.lower.whole = s;
  s = {static_cast<std::byte*>(s.iov_base) + done, s.iov_len - done};
}

uring_submission transfer_of(const bio& b, int fd, bool dsync) noexcept {
  uring_submission s;
  const std::span<const iovec> segments = b.used_segments().subspan(b.lower.first_segment);
  const bool write = b.op == bio_op::write;
  s.fd = fd;
  s.offset_bytes = b.offset_bytes + b.lower.done_bytes;
  s.flags = dsync ? rwf_dsync : 0;
  if (segments.size() == 1) {
    s.opcode = write ? uring_opcode::write : uring_opcode::read;
    s.address = segments.front().iov_base;
    s.length = static_cast<std::uint32_t>(segments.front().iov_len);
  } else {
    s.opcode = write ? uring_opcode::writev : uring_opcode::readv;
    s.address = segments.data();
    s.length = static_cast<std::uint32_t>(segments.size());
  }
  return s;
}

}  // namespace

result<std::unique_ptr<file_device>> file_device::open(const std::string& path,
                                                       block_file::options opts) {
  auto file = block_file::open(path, opts);
  if (!file) return fail(file.error());
  return std::unique_ptr<file_device>(new file_device(std::move(*file), opts.read_only));
}

file_device::file_device(block_file file, bool read_only) : file_(std::move(file)) {
  const file_geometry& g = file_.geometry();
  limits_.size_bytes = g.size_bytes;
  limits_.logical_block_bytes = g.logical_block_bytes;
  limits_.physical_block_bytes = std::max(g.physical_block_bytes, g.logical_block_bytes);
  limits_.read_only = read_only;
  limits_.direct = g.direct;
  limits_.may_have_holes = g.is_sparse;
}

result<file_extent> file_device::extent_at(std::uint64_t offset_bytes) const {
  return file_.extent_at(offset_bytes);
}

void file_device::submit(bio& b) noexcept {
  if (const std::int32_t bad = check_bio(b, limits_); bad != 0) return complete(b, bad);
  b.lower.upper = &b;
  b.lower.worker = this;
  b.lower.done_bytes = 0;
  b.lower.syncing = false;
  b.lower.first_segment = 0;
  b.lower.whole = {};
  b.lower.run = [](completion& c) noexcept {
    auto& lower = static_cast<bio::lower_operation&>(c);
    static_cast<file_device*>(lower.worker)->ended(*lower.upper, c.status);
  };
  if (loop* on = loop::current(); on != nullptr) {
    start(*on, b);
  } else {
    const result<> r = do_now(b);
    finish(b, r ? 0 : -to_errno(r.error()));
  }
}

void file_device::start(loop& on, bio& b) noexcept {
  uring_submission s;
  s.fd = file_.fd();
  switch (b.op) {
    case bio_op::read:
    case bio_op::write:
      if (b.lower.syncing) {
        s.opcode = uring_opcode::fdatasync;
        break;
      }
      s = transfer_of(b, file_.fd(), is_fua(b) && limits_.direct);
      break;
    case bio_op::flush:
      s.opcode = uring_opcode::fdatasync;
      break;
    case bio_op::discard:
    case bio_op::write_zeroes:
      s.opcode = uring_opcode::fallocate;
      s.offset_bytes = b.offset_bytes;
      s.extent_bytes = b.length_bytes;
      s.flags =
          zero_mode_of(b) == zero_mode::deallocate ? fallocate_punch_hole : fallocate_zero_range;
      break;
  }
  on.submit(s, b.lower);
}

// The ring's word on a lower operation: done, to be carried on, or failed.
void file_device::ended(bio& b, std::int32_t status) noexcept {
  loop& on = *loop::current();
  if (status == -EINTR || status == -EAGAIN) return start(on, b);
  if (status < 0 || !is_transfer(b) || b.lower.syncing) return finish(b, std::min(status, 0));
  b.lower.done_bytes += static_cast<std::uint32_t>(status);
  if (b.lower.done_bytes == b.length_bytes) {
    if (!is_fua(b) || limits_.direct) return finish(b, 0);
    b.lower.syncing = true;
    return start(on, b);
  }
  // Nothing at all was moved: the end of the file, which lies inside the device's size only if
  // somebody shrank it.
  if (status == 0) return finish(b, -EIO);
  cut(b);
  start(on, b);
}

void file_device::finish(bio& b, std::int32_t status) noexcept {
  make_whole(b);
  if ((b.op == bio_op::discard || b.op == bio_op::write_zeroes) &&
      (status == -EOPNOTSUPP || status == -ENOSYS || status == -ENODEV)) {
    status = -ENOTSUP;
  }
  if ((b.op == bio_op::flush || b.lower.syncing) && !limits_.direct) {
    // relaxed: one word that says everything itself.
    if (status != 0) lost_sync_.store(status, std::memory_order_relaxed);
    // A write that has been synced is durable, whatever was lost before.
    if (b.op == bio_op::flush) status = lost_sync_.load(std::memory_order_relaxed);  // relaxed
  }
  complete(b, status);
}

result<> file_device::do_now(bio& b) noexcept {
  std::array<iovec, bio::max_segments> copy = b.segments;
  const std::span<iovec> segments(copy.data(), b.segment_count);
  switch (b.op) {
    case bio_op::read:
      return file_.read(segments, b.offset_bytes);
    case bio_op::write: {
      const bool dsync = is_fua(b) && limits_.direct;
      const result<> r =
          file_.write(segments, b.offset_bytes, dsync ? static_cast<int>(rwf_dsync) : 0);
      if (!r || !is_fua(b) || dsync) return r;
      b.lower.syncing = true;
      return file_.sync();
    }
    case bio_op::flush:
      return file_.sync();
    case bio_op::discard:
    case bio_op::write_zeroes:
      return file_.zero(b.offset_bytes, b.length_bytes, zero_mode_of(b));
  }
  return fail(EINVAL);
}

}  // namespace forebay
