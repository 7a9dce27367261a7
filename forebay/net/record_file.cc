#include "forebay/net/record_file.h"

#include <algorithm>

#include "forebay/ring/loop.h"

namespace forebay {
namespace {

// log2 of the pages in the large pages that units are written in.
constexpr unsigned page_order = 4;

}  // namespace

result<std::unique_ptr<record_file>> record_file::create(const std::string& path, page_cache& cache,
                                                         const device_over& over) {
  auto dev = file_device::open(path, {.create = true, .grow_to_bytes = bytes_max});
  if (!dev) return fail(dev.error());
  if ((*dev)->geometry().is_block_device) return fail(errc::not_a_device);
  if (auto r = (*dev)->set_size(0); !r) return fail(r.error());
  std::unique_ptr<device> above = over ? over(**dev) : nullptr;
  return std::unique_ptr<record_file>(
      new record_file(path, std::move(*dev), std::move(above), cache));
}

record_file::record_file(std::string path, std::unique_ptr<file_device> dev,
                         std::unique_ptr<device> over, page_cache& cache)
    : path_(std::move(path)), device_(std::move(dev)), over_(std::move(over)) {
  space_.emplace(cache, over_ != nullptr ? *over_ : *device_,
                 address_space::options{.block_bytes = device_->limits().logical_block_bytes,
                                        .max_page_order = page_order});
  carried_.reserve(unit_bytes);
}

record_file::~record_file() = default;

result<> record_file::start() {
  if (!space_->run_flusher().spawn(flusher_)) return fail(ENOMEM);
  return {};
}

// Sees to it that there is room until there, and for the last block. Asks for less when there is
// not so much.
task<> record_file::allocate(std::uint64_t until) {
  until += last_block_bytes_max;
  if (until > bytes_max) co_return fail(EFBIG);
  std::uint64_t ahead = allocation_bytes;
  while (allocates_ && until > allocated_) {
    const std::uint64_t end =
        round_up(std::max(until, allocated_ + ahead), std::uint64_t{page_bytes});
    const std::int32_t r = co_await loop::io(uring_request::fallocate(
        device_->registrable_fd(), 0, allocated_, std::min(end, bytes_max) - allocated_));
    if (r == 0) {
      allocated_ = std::min(end, bytes_max);
    } else if (r == -EOPNOTSUPP || r == -ENOSYS || r == -ENODEV) {
      allocates_ = false;
    } else if (r != -EINTR) {
      if (r != -ENOSPC || ahead == 0) co_return fail(-r);
      ahead = ahead < std::uint64_t{page_bytes} ? 0 : ahead / 4;
    }
  }
  co_return result<>{};
}

// Into the space, as far as that is whole units; the rest is carried.
task<> record_file::put(std::span<const std::byte> data) {
  if (!carried_.empty()) {
    const std::size_t n = std::min(unit_bytes - carried_.size(), data.size());
    carried_.insert(carried_.end(), data.begin(), data.begin() + static_cast<std::ptrdiff_t>(n));
    data = data.subspan(n);
    if (carried_.size() < unit_bytes) co_return result<>{};
    if (auto r = co_await space_->write(written_, carried_); !r) co_return r;
    written_ += carried_.size();
    carried_.clear();
  }
  const std::size_t whole = data.size() / unit_bytes * unit_bytes;
  if (auto r = co_await space_->write(written_, data.first(whole)); !r) co_return r;
  written_ += whole;
  carried_.assign(data.begin() + static_cast<std::ptrdiff_t>(whole), data.end());
  co_return result<>{};
}

task<> record_file::append(std::span<const std::byte> blocks, std::uint64_t packets) {
  if (auto r = co_await allocate(bytes_ + blocks.size()); !r) co_return r;
  // What was there before is known to be whole, should this fail in the middle.
  boundaries_.push_back({bytes_, packets_});
  if (auto r = co_await put(blocks); !r) co_return r;
  bytes_ += blocks.size();
  packets_ += packets;
  co_return result<>{};
}

// What is carried, padded to a page: the padding is cut off with the file's size.
task<> record_file::write_rest() {
  if (carried_.empty()) co_return result<>{};
  carried_.resize(round_up(carried_.size(), page_bytes));
  co_return co_await space_->write(written_, carried_);
}

// The file ends with the last append() before the first page that has not been written.
void record_file::end_at_first_gap() {
  std::uint64_t whole = 0;
  for (;;) {
    const auto e = device_->extent_at(whole);
    if (!e || e->hole || e->end_bytes >= bytes_) {
      if (e && !e->hole) whole = bytes_;
      break;
    }
    whole = e->end_bytes;
  }
  if (whole >= bytes_) return;
  while (!boundaries_.empty() && boundaries_.back().bytes > whole) boundaries_.pop_back();
  const boundary last = boundaries_.empty() ? boundary{0, 0} : boundaries_.back();
  bytes_ = last.bytes;
  packets_ = last.packets;
}

task<> record_file::finish(std::span<const std::byte> last_block) {
  FOREBAY_DCHECK(last_block.size() <= last_block_bytes_max);
  // Of an append() that failed a part may be carried or written: it is behind the end.
  const std::uint64_t appended = bytes_;
  result<> r = fail(EIO);
  if (written_ + carried_.size() == appended) {
    boundaries_.push_back({bytes_, packets_});
    r = co_await put(last_block);
    if (r) bytes_ += last_block.size();
  } else {
    r = {};
  }
  if (r) r = co_await write_rest();
  if (const auto flushed = co_await space_->flush(); r) r = flushed;
  space_->stop_flusher();
  co_await flusher_.idle();
  if (!r) end_at_first_gap();
  space_.reset();
  if (auto cut = device_->set_size(bytes_); !cut && r) r = cut;
  co_return r;
}

}  // namespace forebay
