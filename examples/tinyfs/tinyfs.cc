#include "examples/tinyfs/tinyfs.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace tinyfs {
namespace {

using namespace forebay;

static_assert(std::endian::native == std::endian::little, "as it lies on the device");

constexpr std::uint64_t super_magic = 0x3173'6679'6e69'74;
constexpr std::uint64_t journal_magic = 0x6c6e'726a'796e'69;
constexpr std::uint32_t inode_magic = 0x646f'6e69;
constexpr std::uint64_t size_max = std::uint64_t{UINT32_MAX} * block_bytes;
constexpr std::uint64_t bits_of_block = std::uint64_t{block_bytes} * 8;

struct disk_super {
  std::uint64_t magic;
  std::uint64_t checksum;  // with 0 here
  std::uint32_t blocks, journal_blocks, bitmap_blocks, inodes;
};
struct disk_journal {
  std::uint64_t magic;
  std::uint64_t checksum;  // of this block, with 0 here, and the images behind it
  std::uint64_t sequence;
  std::uint32_t count;
  std::array<std::uint32_t, 1000> home;
};
struct disk_run {
  std::uint32_t first, block, count;
};
struct disk_inode {
  std::uint32_t magic;
  std::uint32_t run_count;
  std::uint64_t size_bytes;
  std::array<char, name_max + 1> name;
  std::array<disk_run, runs_max> runs;
};
static_assert(sizeof(disk_inode) <= block_bytes && sizeof(disk_journal) <= block_bytes);

// FNV-1a.
std::uint64_t checksum(std::span<const std::byte> bytes,
                       std::uint64_t sum = 0xcbf2'9ce4'8422'2325) {
  for (const std::byte b : bytes) sum = (sum ^ std::to_integer<std::uint64_t>(b)) * 0x100'0000'01b3;
  return sum;
}

template <typename T>
T take(std::span<const std::byte> bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}
template <typename T>
std::vector<std::byte> block_of(const T& value) {
  std::vector<std::byte> bytes(block_bytes);
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

bool is_name(std::string_view name) {
  return !name.empty() && name.find('/') == name.npos && name.find('\0') == name.npos;
}

}  // namespace

// ---- Runs ----

run run_map::find(std::uint64_t block) const {
  const auto next = runs_.upper_bound(block);
  if (next != runs_.begin()) {
    const auto& [first, r] = *std::prev(next);
    if (const std::uint64_t in = block - first; in < r.count) {
      return {r.count - in, r.block + in, r.state};
    }
  }
  return {next == runs_.end() ? UINT64_MAX / block_bytes - block : next->first - block};
}

void run_map::set(std::uint64_t first, const run& r) {
  const std::uint64_t end = first + r.count;
  auto at = runs_.upper_bound(first);
  if (at != runs_.begin()) --at;
  while (at != runs_.end() && at->first < end) {
    const auto [was_first, was] = *at;
    if (was_first + was.count <= first) {
      ++at;
      continue;
    }
    at = runs_.erase(at);
    if (was_first < first) runs_[was_first] = {first - was_first, was.block, was.state};
    if (was_first + was.count > end) {
      runs_[end] = {was_first + was.count - end, was.block + (end - was_first), was.state};
    }
  }
  if (r.state == extent_state::hole) return;
  const auto joins = [](std::uint64_t a_first, const run& a, std::uint64_t b_first, const run& b) {
    return a_first + a.count == b_first && a.state == b.state &&
           (a.state == extent_state::delayed || a.block + a.count == b.block);
  };
  auto here = runs_.insert_or_assign(first, r).first;
  if (const auto next = std::next(here);
      next != runs_.end() && joins(first, here->second, next->first, next->second)) {
    here->second.count += next->second.count;
    runs_.erase(next);
  }
  if (here == runs_.begin()) return;
  if (const auto before = std::prev(here);
      joins(before->first, before->second, first, here->second)) {
    before->second.count += here->second.count;
    runs_.erase(here);
  }
}

// ---- Blocks ----

task<std::vector<std::byte>> file_system::read_block(std::uint64_t block) {
  const result<bh_ref> b = co_await bread_async(space_, block, block_bytes);
  if (!b) co_return fail(b.error());
  co_return std::vector<std::byte>((*b)->bytes().begin(), (*b)->bytes().end());
}

task<> file_system::write_block(std::uint64_t block, std::span<const std::byte> bytes,
                                associated_buffers& with) {
  const result<bh_ref> b = co_await getblk_async(space_, block, block_bytes);
  if (!b) co_return fail(b.error());
  // Write-back may be waiting for us: this is no time to wait for it.
  if (const result<> r = co_await lock_buffer_unlimited_async(**b); !r) co_return r;
  std::ranges::copy(bytes, (*b)->data);
  set_buffer_uptodate(**b);
  mark_buffer_dirty_inode(**b, with);
  unlock_buffer(**b);
  co_return result<>{};
}

void file_system::set_busy(std::uint64_t block, std::uint64_t count, bool busy) {
  for (std::uint64_t b = block; b < block + count; ++b) {
    if (busy_[b] == busy) continue;
    busy_[b] = busy;
    free_ += busy ? std::uint64_t(-1) : 1;
  }
}

run file_system::allocate(std::uint64_t goal, std::uint64_t count) {
  run best{0, 0, extent_state::unwritten};
  if (goal < data_ || goal >= blocks_) goal = data_;
  // From the goal to the end, then from the beginning.
  for (const auto& [from, to] :
       {std::pair<std::uint64_t, std::uint64_t>{goal, blocks_}, {data_, goal}}) {
    for (std::uint64_t b = from; b < to && best.count < count;) {
      std::uint64_t n = 0;
      while (b + n < to && n < count && !busy_[b + n]) ++n;
      if (n > best.count) best = {n, b, extent_state::unwritten};
      b += n + 1;
    }
  }
  set_busy(best.block, best.count, true);
  return best;
}

// Nobody has a use for the blocks of these runs any more, but those that the inode on the device
// has stay busy.
void file_system::let_go(const runs& all, const inode& kept) {
  for (const auto& [first, r] : all) set_busy(r.block, r.count, false);
  for (const auto& [first, r] : kept.runs) set_busy(r.block, r.count, true);
}

// ---- Making and opening ----

result<> file_system::make(std::uint32_t inodes) {
  const std::uint64_t blocks = std::min<std::uint64_t>(space_.size_bytes() / block_bytes, 1u << 24);
  disk_super s{};
  s.magic = super_magic;
  s.blocks = static_cast<std::uint32_t>(blocks);
  s.bitmap_blocks = static_cast<std::uint32_t>((blocks + bits_of_block - 1) / bits_of_block);
  s.journal_blocks = s.bitmap_blocks + 2;
  s.inodes = inodes;
  const std::uint64_t data = 1ull + s.journal_blocks + s.bitmap_blocks + inodes;
  if (inodes == 0 || data >= blocks) return fail(ENOSPC);
  associated_buffers all(space_);
  const std::vector<std::byte> zeros(block_bytes);
  for (std::uint64_t b = 1; b < data; ++b) {
    if (const result<> r = sync_wait(write_block(b, zeros, all)); !r) return r;
    if (b % 128 != 0) continue;
    if (const result<> r = sync_mapping_buffers(all); !r) return r;
  }
  if (const result<> r = sync_mapping_buffers(all); !r) return r;
  s.checksum = checksum(block_of(s));
  if (const result<> r = sync_wait(write_block(0, block_of(s), all)); !r) return r;
  return sync_mapping_buffers(all);
}

result<> file_system::read_super() {
  const auto bytes = sync_wait(read_block(0));
  if (!bytes) return fail(bytes.error());
  auto s = take<disk_super>(*bytes);
  const std::uint64_t sum = std::exchange(s.checksum, 0);
  const std::uint64_t data = 1ull + s.journal_blocks + s.bitmap_blocks + s.inodes;
  if (s.magic != super_magic || sum != checksum(block_of(s)) || data >= s.blocks ||
      s.blocks > space_.size_bytes() / block_bytes ||
      s.bitmap_blocks != (s.blocks + bits_of_block - 1) / bits_of_block ||
      s.journal_blocks != s.bitmap_blocks + 2 || s.journal_blocks > 1000) {
    return fail(errc::corrupt);
  }
  blocks_ = s.blocks;
  journal_blocks_ = s.journal_blocks;
  bitmap_ = journal_ + journal_blocks_;
  bitmap_blocks_ = s.bitmap_blocks;
  inodes_ = bitmap_ + bitmap_blocks_;
  data_ = inodes_ + s.inodes;
  table_.assign(s.inodes, {});
  return {};
}

// A commit that is whole in the journal is put into its places, whether it is there already or not;
// one that is not whole had not ended, and the one before is in its places.
result<> file_system::recover() {
  auto head = sync_wait(read_block(journal_));
  if (!head) return fail(head.error());
  auto j = take<disk_journal>(*head);
  if (j.magic != journal_magic || j.count >= journal_blocks_) return {};
  const std::uint64_t sum = std::exchange(j.checksum, 0);
  std::uint64_t is = checksum(block_of(j));
  std::vector<image> images;
  for (std::uint32_t i = 0; i < j.count; ++i) {
    auto bytes = sync_wait(read_block(journal_ + 1 + i));
    if (!bytes) return fail(bytes.error());
    is = checksum(*bytes, is);
    if (j.home[i] < bitmap_ || j.home[i] >= data_) return {};
    images.push_back({j.home[i], std::move(*bytes)});
  }
  sequence_ = j.sequence;
  return is == sum ? sync_wait(write_home(images)) : result<>{};
}

bool file_system::is_data(const run& r) const noexcept {
  return r.count != 0 && r.block >= data_ && r.block < blocks_ && r.count <= blocks_ - r.block;
}

result<file_system::inode> file_system::parse(std::span<const std::byte> bytes) {
  const auto d = take<disk_inode>(bytes);
  inode i;
  if (d.magic == 0) return i;
  i.name.assign(d.name.data(), strnlen(d.name.data(), d.name.size()));
  i.size_bytes = d.size_bytes;
  if (d.magic != inode_magic || i.name.size() > name_max || !is_name(i.name) ||
      d.run_count > runs_max || d.size_bytes > size_max) {
    return fail(errc::corrupt);
  }
  std::uint64_t end = 0;
  for (const disk_run& r : std::span(d.runs).first(d.run_count)) {
    if (r.first < end) return fail(errc::corrupt);
    end = std::uint64_t{r.first} + r.count;
    i.runs.push_back({r.first, {r.count, r.block, extent_state::mapped}});
  }
  if (end > (d.size_bytes + block_bytes - 1) / block_bytes) return fail(errc::corrupt);
  return i;
}

std::vector<std::byte> file_system::format(const inode& i) const {
  disk_inode d{};
  if (!i.name.empty()) {
    d.magic = inode_magic;
    d.size_bytes = i.size_bytes;
    std::ranges::copy(i.name, d.name.begin());
    for (const auto& [first, r] : i.runs) {
      d.runs[d.run_count++] = {static_cast<std::uint32_t>(first),
                               static_cast<std::uint32_t>(r.block),
                               static_cast<std::uint32_t>(r.count)};
    }
  }
  return block_of(d);
}

task<> file_system::load() {
  busy_.assign(blocks_, false);
  free_ = blocks_;
  set_busy(0, data_, true);
  for (std::uint32_t n = 0; n < table_.size(); ++n) {
    const auto bytes = co_await read_block(inodes_ + n);
    if (!bytes) co_return fail(bytes.error());
    result<inode> i = parse(*bytes);
    if (!i) co_return fail(i.error());
    for (const auto& [first, r] : i->runs) {
      if (!is_data(r)) co_return fail(errc::corrupt);
      for (std::uint64_t b = r.block; b < r.block + r.count; ++b) {
        if (busy_[b]) co_return fail(errc::corrupt);
      }
      set_busy(r.block, r.count, true);
    }
    i->stored = !i->name.empty();
    if (i->stored && !names_.emplace(i->name, n).second) co_return fail(errc::corrupt);
    table_[n] = std::move(*i);
  }
  co_return result<>{};
}

result<> file_system::open() {
  if (const result<> r = read_super(); !r) return r;
  if (const result<> r = recover(); !r) return r;
  return sync_wait(load());
}

std::vector<std::string> file_system::check() {
  std::vector<std::string> wrong;
  names_.clear();
  table_.assign(table_.size(), {});
  if (const result<> r = sync_wait(load()); !r) wrong.push_back("inodes: " + r.error().message());
  for (std::uint32_t n = 0; n < bitmap_blocks_ && wrong.empty(); ++n) {
    const auto bits = sync_wait(read_block(bitmap_ + n));
    if (!bits) return {"bitmap: " + bits.error().message()};
    for (std::uint64_t i = 0; i < bits_of_block; ++i) {
      const std::uint64_t b = n * bits_of_block + i;
      const bool used = (std::to_integer<unsigned>((*bits)[i / 8]) >> i % 8 & 1) != 0;
      const bool is = b >= data_ && b < blocks_ && busy_[b];
      if (used != is) {
        wrong.push_back("block " + std::to_string(b) +
                        (used ? " is lost" : " is not marked as used"));
      }
    }
  }
  return wrong;
}

// ---- Files ----

std::vector<entry> file_system::list() const {
  std::vector<entry> all;
  for (const auto& [name, n] : names_) all.push_back({name, table_[n].size_bytes});
  return all;
}

std::uint32_t* file_system::find(std::string_view name) {
  const auto at = names_.find(name);
  return at == names_.end() ? nullptr : &at->second;
}

result<std::unique_ptr<file>> file_system::open_file(std::string_view name, bool create) {
  if (!is_name(name)) return fail(EINVAL);
  if (name.size() > name_max) return fail(ENAMETOOLONG);
  const std::uint32_t* known = find(name);
  if (known == nullptr) {
    if (!create) return fail(ENOENT);
    const auto at =
        std::ranges::find_if(table_, [](const inode& i) { return i.name.empty() && !i.open; });
    if (at == table_.end()) return fail(ENOSPC);
    at->name = name;
    known = &names_.emplace(at->name, at - table_.begin()).first->second;
  }
  if (table_[*known].open) return fail(EBUSY);
  return std::unique_ptr<file>(new file(*this, *known));
}

result<> file_system::remove(std::string_view name) {
  const std::uint32_t* const n = find(name);
  if (n == nullptr) return fail(ENOENT);
  if (table_[*n].open) return fail(EBUSY);
  if (const result<> r = sync_wait(commit(*n, {})); !r) return r;
  names_.erase(names_.find(name));
  return {};
}

// Makes an inode what it is `now`, on the device, and the bitmap with it.
task<> file_system::commit(std::uint32_t number, inode now) {
  inode& was = table_[number];
  now.open = was.open;
  std::vector<image> images;
  images.push_back({inodes_ + number, format(now)});
  const auto mark = [&](const inode& i, bool used) -> task<> {
    for (const auto& [first, r] : i.runs) {
      for (std::uint64_t b = r.block; b < r.block + r.count; ++b) {
        const std::uint64_t home = bitmap_ + b / bits_of_block;
        auto at = std::ranges::find(images, home, &image::block);
        if (at == images.end()) {
          auto bits = co_await read_block(home);
          if (!bits) co_return fail(bits.error());
          at = images.insert(images.end(), {home, std::move(*bits)});
        }
        const auto bit = static_cast<std::byte>(1u << b % 8);
        std::byte& byte = at->bytes[b % bits_of_block / 8];
        byte = used ? byte | bit : byte & ~bit;
      }
    }
    co_return result<>{};
  };
  if (const result<> r = co_await mark(was, false); !r) co_return r;
  if (const result<> r = co_await mark(now, true); !r) co_return r;
  result<> r = co_await write_journal(images);
  if (r) r = co_await write_home(images);
  if (!r) {
    // It may be on the device or not, until a commit tells: the blocks of both stay busy.
    was.runs.insert(was.runs.end(), now.runs.begin(), now.runs.end());
    co_return r;
  }
  now.stored = !now.name.empty();
  const inode before = std::exchange(was, std::move(now));
  let_go(before.runs, was);
  co_return r;
}

task<> file_system::write_journal(const std::vector<image>& images) {
  // What it holds must be in its places before.
  if (!home_.empty()) {
    if (const result<> r = co_await sync_mapping_buffers_async(home_); !r) co_return r;
  }
  // And the data on the medium, before an inode says that it is there.
  bio flush(bio_op::flush, 0);
  if (const int status = co_await submit_and_wait(space_.dev(), flush); status != 0) {
    co_return fail(-status);
  }
  disk_journal j{};
  j.magic = journal_magic;
  j.sequence = ++sequence_;
  for (const image& i : images) j.home[j.count++] = static_cast<std::uint32_t>(i.block);
  std::uint64_t sum = checksum(block_of(j));
  associated_buffers journal(space_);
  for (std::size_t i = 0; i < images.size(); ++i) {
    sum = checksum(images[i].bytes, sum);
    const result<> r = co_await write_block(journal_ + 1 + i, images[i].bytes, journal);
    if (!r) co_return r;
  }
  j.checksum = sum;
  if (const result<> r = co_await write_block(journal_, block_of(j), journal); !r) co_return r;
  co_return co_await sync_mapping_buffers_async(journal);
}

task<> file_system::write_home(const std::vector<image>& images) {
  for (const image& i : images) {
    if (const result<> r = co_await write_block(i.block, i.bytes, home_); !r) co_return r;
  }
  co_return co_await sync_mapping_buffers_async(home_);
}

// ---- One file ----

file::file(file_system& fs, std::uint32_t number) : fs_(fs), number_(number) {
  file_system::inode& i = fs_.table_[number];
  i.open = true;
  for (const auto& [first, r] : i.runs) runs_.set(first, r);
  object_.emplace(fs_.cache_, fs_.space_.dev(), *this,
                  mapped_object::options{.size_bytes = i.size_bytes,
                                         .max_bytes = size_max,
                                         .readahead_bytes = 1u << 20,
                                         .device_space = &fs_.space_});
}

file::~file() {
  object_.reset();
  release(0, UINT32_MAX);
  file_system::inode& i = fs_.table_[number_];
  i.open = false;
  if (i.stored) return;
  fs_.names_.erase(fs_.names_.find(i.name));
  i.name.clear();
}

result<std::size_t> file::read(std::uint64_t offset, std::span<std::byte> out) {
  return sync_wait(object_->read(offset, out));
}
result<> file::write(std::uint64_t offset, std::span<const std::byte> data) {
  return sync_wait(object_->write(offset, data));
}
result<> file::truncate(std::uint64_t size_bytes) {
  return sync_wait(object_->truncate(size_bytes));
}
result<> file::sync() { return sync_wait(object_->flush()); }

task<mapped_extent> file::map(std::uint64_t offset, std::uint64_t length, map_purpose why) {
  const std::uint64_t first = offset / block_bytes;
  const std::uint64_t wanted = (length + block_bytes - 1) / block_bytes;
  run r = runs_.find(first);
  if (why == map_purpose::reserve && r.state == extent_state::hole) {
    r = {std::min({r.count, wanted, fs_.free_blocks()}), 0, extent_state::delayed};
    if (r.count == 0) co_return fail(ENOSPC);
    fs_.reserved_ += r.count;
    runs_.set(first, r);
  }
  bool is_new = false;
  if (why == map_purpose::write_back && r.state == extent_state::delayed) {
    if (runs_.all().size() >= runs_max) co_return fail(EFBIG);
    const run before = first == 0 ? run{} : runs_.find(first - 1);
    r = fs_.allocate(before.block + 1, std::min(r.count, wanted));
    fs_.reserved_ -= r.count;
    runs_.set(first, r);
    is_new = true;
  }
  co_return mapped_extent{.offset_bytes = first * block_bytes,
                          .length_bytes = r.count * block_bytes,
                          .device_offset_bytes = r.block * block_bytes,
                          .state = r.state,
                          .is_new = is_new};
}

task<> file::written(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t first = offset / block_bytes;
  runs_.set(first, {length / block_bytes, runs_.find(first).block, extent_state::mapped});
  changed_ = true;
  co_return result<>{};
}

task<> file::unmap(std::uint64_t offset, std::uint64_t length) {
  release(offset / block_bytes, (offset + length) / block_bytes);
  changed_ = true;
  co_return result<>{};
}

// The blocks of a range are given back.
void file::release(std::uint64_t first, std::uint64_t end) {
  file_system::runs gone;
  while (first < end) {
    run r = runs_.find(first);
    r.count = std::min(r.count, end - first);
    if (r.state == extent_state::delayed) fs_.reserved_ -= r.count;
    runs_.set(first, {r.count});
    if (r.state == extent_state::mapped || r.state == extent_state::unwritten) {
      gone.push_back({first, r});
    }
    first += r.count;
  }
  fs_.let_go(gone, fs_.table_[number_]);
}

task<> file::commit(std::uint64_t size_bytes) {
  const file_system::inode& was = fs_.table_[number_];
  if (!changed_ && was.stored && was.size_bytes == size_bytes) co_return result<>{};
  file_system::inode now;
  now.name = was.name;
  now.size_bytes = size_bytes;
  for (const auto& [first, r] : runs_.all()) {
    if (r.state == extent_state::mapped) now.runs.push_back({first, r});
  }
  if (now.runs.size() > runs_max) co_return fail(EFBIG);
  changed_ = false;
  const result<> r = co_await fs_.commit(number_, std::move(now));
  changed_ = changed_ || !r;
  co_return r;
}

}  // namespace tinyfs
