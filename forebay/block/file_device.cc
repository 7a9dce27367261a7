#include "forebay/block/file_device.h"

#include <algorithm>

#include "forebay/base/cache_line.h"
#include "forebay/dma/sg_segments.h"
#include "forebay/ring/loop.h"

namespace forebay {
namespace {

bool is_fua(const bio& b) noexcept { return b.op == bio_op::write && (b.flags & bio_fua) != 0; }

zero_mode zero_mode_of(const bio& b) noexcept {
  return b.op == bio_op::write_zeroes && (b.flags & bio_no_unmap) != 0 ? zero_mode::keep_allocated
                                                                       : zero_mode::deallocate;
}

dma_direction direction_of(const bio& b) noexcept {
  return b.op == bio_op::write ? dma_direction::to_device : dma_direction::from_device;
}

// What is left of a transfer of which the front has been done.
uring_request transfer_of(const bio& b, int fd, bool dsync) noexcept {
  std::span<const dma_segment> left(b.lower.mapped.data(), b.lower.mapped_count);
  std::uint64_t skip = b.lower.done_bytes;
  for (; skip >= left.front().length; left = left.subspan(1)) skip -= left.front().length;
  const auto skip_bytes = static_cast<std::uint32_t>(skip);
  const std::uint64_t offset = b.offset_bytes + b.lower.done_bytes;
  if (b.op == bio_op::read) return uring_request::read(fd, left, offset, skip_bytes);
  return uring_request::write(fd, left, offset, dsync ? rwf_dsync : 0, skip_bytes);
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

result<std::uint64_t> file_device::follow_size() noexcept {
  const auto bytes = file_.follow_size();
  if (!bytes) return fail(bytes.error());
  const std::uint64_t whole = round_down(*bytes, std::uint64_t{limits_.logical_block_bytes});
  if (whole > limits_.size_bytes) limits_.size_bytes = whole;
  return *bytes;
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
  b.lower.mapped_count = 0;
  b.lower.run = [](completion& c) noexcept {
    auto& lower = static_cast<bio::lower_operation&>(c);
    static_cast<file_device*>(lower.worker)->ended(*lower.upper, c.status);
  };
  loop* const on = loop::current();
  if (on == nullptr) {
    const result<> r = do_now(b);
    return finish(b, r ? 0 : -to_errno(r.error()));
  }
  if (b.is_transfer()) {
    const auto mapped =
        map_segments(on->registered(), b.used_segments(), direction_of(b), b.lower.mapped);
    if (!mapped) return finish(b, -to_errno(mapped.error()));
    b.lower.mapped_count = static_cast<std::uint16_t>(*mapped);
  }
  start(*on, b);
}

void file_device::start(loop& on, bio& b) noexcept {
  const int fd = file_.fd();
  switch (b.op) {
    case bio_op::read:
    case bio_op::write:
      if (b.lower.syncing) break;
      return on.submit(transfer_of(b, fd, is_fua(b) && limits_.direct), b.lower);
    case bio_op::flush:
      break;
    case bio_op::discard:
    case bio_op::write_zeroes:
      return on.submit(
          uring_request::fallocate(fd,
                                   zero_mode_of(b) == zero_mode::deallocate ? fallocate_punch_hole
                                                                            : fallocate_zero_range,
                                   b.offset_bytes, b.length_bytes),
          b.lower);
  }
  on.submit(uring_request::fdatasync(fd), b.lower);
}

// The ring's word on a lower operation: done, to be carried on, or failed.
void file_device::ended(bio& b, std::int32_t status) noexcept {
  loop& on = *loop::current();
  if (status == -EINTR || status == -EAGAIN) return start(on, b);
  if (status < 0 || !b.is_transfer() || b.lower.syncing) return finish(b, std::min(status, 0));
  b.lower.done_bytes += static_cast<std::uint32_t>(status);
  if (b.lower.done_bytes == b.length_bytes) {
    if (!is_fua(b) || limits_.direct) return finish(b, 0);
    b.lower.syncing = true;
    return start(on, b);
  }
  // Nothing at all was moved: the end of the file, which lies inside the device's size only if
  // somebody shrank it.
  if (status == 0) return finish(b, -EIO);
  start(on, b);
}

void file_device::finish(bio& b, std::int32_t status) noexcept {
  if (b.lower.mapped_count != 0) {
    unmap_segments(loop::current()->registered(), b.used_segments(), direction_of(b),
                   std::span(b.lower.mapped).first(b.lower.mapped_count));
    b.lower.mapped_count = 0;
  }
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
