#include "examples/ext4ls/ext4.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace ext4ls {
namespace {

using forebay::bh_ref;
using forebay::errc;
using forebay::fail;
using bytes = std::span<const std::byte>;

constexpr std::uint32_t inode_uses_extents = 0x80000;
constexpr std::uint32_t inode_has_inline_data = 0x10000000;

// Features that change where things are. Those of them that this reader knows, or need not know.
constexpr std::uint32_t has_file_types = 0x2;
constexpr std::uint32_t needs_recovery = 0x4;
constexpr std::uint32_t is_64bit = 0x80;
constexpr std::uint32_t known_features = has_file_types | 0x40 /* extents */ | is_64bit |
                                         0x100 /* multiple mounts */ | 0x200 /* flexible groups */ |
                                         0x400 /* large attributes */ | 0x2000 /* checksum seed */ |
                                         0x4000 /* large directories */ | 0x8000 /* inline data */;

constexpr std::size_t block_map_at = 0x28;  // of an inode
constexpr std::size_t block_map_bytes = 60;
constexpr std::size_t symlink_bytes_max = 4096;
constexpr std::size_t part_bytes_max = 256u << 10;
constexpr std::uint64_t window_bytes = 64u << 10;

// Little-endian numbers; the caller knows that they lie inside.
template <typename T>
T number(bytes data, std::size_t at) noexcept {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    value = static_cast<T>(value | static_cast<T>(std::to_integer<T>(data[at + i]) << (8 * i)));
  }
  return value;
}
std::uint16_t u16(bytes data, std::size_t at) noexcept { return number<std::uint16_t>(data, at); }
std::uint32_t u32(bytes data, std::size_t at) noexcept { return number<std::uint32_t>(data, at); }

bytes block_map(const inode& file) noexcept {
  return bytes(file.raw).subspan(block_map_at, block_map_bytes);
}

}  // namespace

kind inode::type() const noexcept {
  switch (mode >> 12) {
    case 4:
      return kind::directory;
    case 8:
      return kind::regular;
    case 10:
      return kind::symlink;
    default:
      return kind::other;
  }
}

std::unexpected<std::error_code> file_system::corrupt(std::string what) {
  remark_ = std::move(what);
  return fail(errc::corrupt);
}

std::unexpected<std::error_code> file_system::unsupported(std::string what) {
  remark_ = std::move(what);
  return fail(ENOTSUP);
}

// One read for a block and its neighbours, which are likely to be wanted next. That it fails says
// nothing of the one that is wanted.
void file_system::read_ahead(std::uint64_t number) {
  if (forebay::block_api::find(space_, number, block_bytes_)) return;
  const std::uint64_t window = window_bytes / block_bytes_;
  const std::uint64_t first = number / window * window;
  const std::uint64_t count = std::min(window, block_count_ - first);
  static_cast<void>(forebay::breadahead(space_, first, block_bytes_, count));
}

result<bh_ref> file_system::block(std::uint64_t number, const char* what) {
  if (number < first_block_ || number >= block_count_) {
    return corrupt(fmt::format("{}: block {} is outside of the file system", what, number));
  }
  read_ahead(number);
  result<bh_ref> b = forebay::bread(space_, number, block_bytes_);
  if (!b) remark_ = fmt::format("{}: block {}", what, number);
  return b;
}

result<> file_system::open() {
  // It lies at 1,024 whatever the block size, which it tells.
  const std::uint32_t at_bytes = std::max(1024u, space_.dev().limits().logical_block_bytes);
  const result<bh_ref> b = forebay::bread(space_, 1024 / at_bytes, at_bytes);
  if (!b) {
    remark_ = "the superblock";
    return fail(b.error());
  }
  const bytes sb = bytes((*b)->bytes()).subspan(1024 % at_bytes, 1024);
  if (u16(sb, 0x38) != 0xef53) return corrupt("no ext2, ext3 or ext4 file system");
  const std::uint32_t features = u32(sb, 0x4c) == 0 ? 0 : u32(sb, 0x60);
  if ((features & needs_recovery) != 0) return unsupported("its journal has to be replayed first");
  if ((features & ~known_features) != 0) {
    return unsupported(fmt::format("features {:#x}", features & ~known_features));
  }
  has_file_types_ = (features & has_file_types) != 0;
  const std::uint32_t log_bytes = u32(sb, 0x18);
  if (log_bytes > 2) return unsupported(fmt::format("blocks of 2^{} bytes", 10ull + log_bytes));
  block_bytes_ = 1024u << log_bytes;
  block_count_ = u32(sb, 0x4);
  if ((features & is_64bit) != 0) block_count_ |= std::uint64_t{u32(sb, 0x150)} << 32;
  first_block_ = u32(sb, 0x14);
  inode_count_ = u32(sb, 0x0);
  inodes_per_group_ = u32(sb, 0x28);
  inode_bytes_ = u32(sb, 0x4c) == 0 ? 128 : u16(sb, 0x58);
  descriptor_bytes_ = (features & is_64bit) != 0 ? u16(sb, 0xfe) : 32;
  if (block_count_ > space_.size_bytes() / block_bytes_) {
    return corrupt(fmt::format("{} blocks do not fit the image", block_count_));
  }
  if (first_block_ != (block_bytes_ == 1024 ? 1u : 0u) || inodes_per_group_ == 0 ||
      !std::has_single_bit(inode_bytes_) || inode_bytes_ < 128 || inode_bytes_ > block_bytes_ ||
      !std::has_single_bit(descriptor_bytes_) || descriptor_bytes_ < 32 ||
      descriptor_bytes_ > block_bytes_ || ((features & is_64bit) != 0 && descriptor_bytes_ < 64)) {
    return corrupt("the superblock contradicts itself");
  }
  return {};
}

result<inode> file_system::read_inode(std::uint32_t n) {
  if (n == 0 || n > inode_count_) return corrupt(fmt::format("there is no inode {}", n));
  const std::uint32_t group = (n - 1) / inodes_per_group_;
  const std::uint64_t descriptor_at = std::uint64_t{group} * descriptor_bytes_;
  std::uint64_t table = 0;
  {
    const result<bh_ref> b =
        block(first_block_ + 1ull + descriptor_at / block_bytes_, "group descriptors");
    if (!b) return fail(b.error());
    const bytes d = bytes((*b)->bytes()).subspan(descriptor_at % block_bytes_, descriptor_bytes_);
    table = u32(d, 0x8);
    if (descriptor_bytes_ >= 64) table |= std::uint64_t{u32(d, 0x28)} << 32;
  }
  const std::uint64_t at = std::uint64_t{(n - 1) % inodes_per_group_} * inode_bytes_;
  if (table >= block_count_) return corrupt(fmt::format("inode table of group {}", group));
  const result<bh_ref> b = block(table + at / block_bytes_, "inode table");
  if (!b) return fail(b.error());
  const bytes raw = bytes((*b)->bytes()).subspan(at % block_bytes_, inode_bytes_);
  inode found;
  found.number = n;
  found.raw.assign(raw.begin(), raw.end());
  found.mode = u16(raw, 0x0);
  found.flags = u32(raw, 0x20);
  found.size_bytes = u32(raw, 0x4) | std::uint64_t{u32(raw, 0x6c)} << 32;
  return found;
}

// ---- Where the blocks of a file are ----

result<file_system::run> file_system::find_run(const inode& file, std::uint64_t logical) {
  result<run> r = (file.flags & inode_uses_extents) != 0 ? find_extent(file, logical)
                                                         : find_indirect(file, logical);
  if (r && r->block != 0 && (r->block >= block_count_ || r->count > block_count_ - r->block)) {
    return corrupt(
        fmt::format("inode {}: block {} is outside of the file system", file.number, r->block));
  }
  return r;
}

// The extent tree: nodes of a header and entries of 12 bytes, in the order of their first block.
result<file_system::run> file_system::find_extent(const inode& file, std::uint64_t logical) {
  bytes node = block_map(file);
  bh_ref holder;
  std::uint64_t end = UINT64_MAX;  // the next subtree begins here
  for (unsigned depth_left = u16(node, 6);; --depth_left) {
    const std::size_t count = u16(node, 2);
    if (u16(node, 0) != 0xf30a || depth_left > 5 || u16(node, 6) != depth_left ||
        count > node.size() / 12 - 1) {
      return corrupt(fmt::format("inode {}: extent tree", file.number));
    }
    // The last entry that begins at or before the block.
    std::size_t at = 0;
    while (at < count && u32(node, 12 * (at + 1)) <= logical) ++at;
    if (at < count) end = std::min<std::uint64_t>(end, u32(node, 12 * (at + 1)));
    if (at == 0) return run{0, end - logical};
    const bytes e = node.subspan(12 * at, 12);
    if (depth_left == 0) {
      const std::uint64_t offset = logical - u32(e, 0);
      const bool unwritten = u16(e, 4) > 32768;
      const std::uint64_t length = unwritten ? u16(e, 4) - 32768u : u16(e, 4);
      if (offset >= length) return run{0, end - logical};
      const std::uint64_t start = u32(e, 8) | std::uint64_t{u16(e, 6)} << 32;
      if (!unwritten && start == 0) return corrupt(fmt::format("inode {}: extent", file.number));
      const std::uint64_t left = std::min(length - offset, end - logical);
      return run{unwritten ? 0 : start + offset, left};
    }
    result<bh_ref> below = block(u32(e, 4) | std::uint64_t{u16(e, 8)} << 32, "extent tree");
    if (!below) return fail(below.error());
    holder = std::move(*below);
    node = holder->bytes();
  }
}

// 12 blocks, then one block of numbers, one of such blocks, and one of those.
result<file_system::run> file_system::find_indirect(const inode& file, std::uint64_t logical) {
  const bytes map = block_map(file);
  if (logical < 12) return run{u32(map, 4 * logical), 1};
  logical -= 12;
  const std::uint64_t fanout = block_bytes_ / 4;
  std::uint64_t covered = fanout;  // by the number at this level
  unsigned level = 1;
  while (level <= 3 && logical >= covered) {
    logical -= covered;
    covered *= fanout;
    ++level;
  }
  if (level > 3) return corrupt(fmt::format("inode {}: too large", file.number));
  std::uint64_t at = u32(map, 4 * (11 + level));
  for (; level != 0; --level) {
    if (at == 0) return run{0, covered - logical % covered};
    const result<bh_ref> b = block(at, "indirect block");
    if (!b) return fail(b.error());
    covered /= fanout;
    at = u32((*b)->bytes(), 4 * (logical / covered % fanout));
  }
  return run{at, 1};
}

// ---- What is in a file ----

result<> file_system::read_run(
    const run& r, std::uint64_t offset, std::uint64_t end,
    const std::function<result<>(std::uint64_t, std::span<const std::byte>)>& f) {
  std::vector<std::byte> part;
  read_ahead(r.block);
  for (std::uint64_t done = 0; offset + done < end && done < r.count * block_bytes_;) {
    const std::uint64_t left = std::min(end - offset, r.count * block_bytes_) - done;
    part.resize(std::min<std::uint64_t>(left, part_bytes_max));
    const result<> read = forebay::sync_wait(space_.read(r.block * block_bytes_ + done, part));
    if (!read) {
      remark_ = fmt::format("block {}", r.block + done / block_bytes_);
      return read;
    }
    const result<> taken = f(offset + done, part);
    if (!taken) return taken;
    done += part.size();
  }
  return {};
}

result<> file_system::for_each_part(
    const inode& file,
    const std::function<result<>(std::uint64_t, std::span<const std::byte>)>& f) {
  if ((file.flags & inode_has_inline_data) != 0) {
    const result<std::vector<std::byte>> all = inline_data(file);
    if (!all) return fail(all.error());
    return f(0, *all);
  }
  std::uint64_t blocks_read = 0;
  for (std::uint64_t offset = 0; offset < file.size_bytes;) {
    result<run> r = find_run(file, offset / block_bytes_);
    if (!r) return fail(r.error());
    // Neighbours in a map of single blocks become one run as well.
    while (r->block != 0 && r->count * block_bytes_ < part_bytes_max &&
           offset + r->count * block_bytes_ < file.size_bytes) {
      const result<run> next = find_run(file, offset / block_bytes_ + r->count);
      if (!next) return fail(next.error());
      if (next->block != r->block + r->count) break;
      r->count += next->count;
    }
    if (r->block != 0) {
      blocks_read += r->count;
      if (blocks_read > block_count_) {
        return corrupt(fmt::format("inode {}: more blocks than there are", file.number));
      }
      const result<> read = read_run(*r, offset, file.size_bytes, f);
      if (!read) return read;
    }
    if (r->count > (file.size_bytes - offset) / block_bytes_) break;
    offset += r->count * block_bytes_;
  }
  return {};
}

// The block map's place holds the first 60 bytes; an extended attribute in the inode,
// "system.data", the others.
result<std::vector<std::byte>> file_system::inline_data(const inode& file) {
  const bytes map = block_map(file);
  std::vector<std::byte> all(map.begin(), map.end());
  const bytes raw(file.raw);
  const std::size_t header = raw.size() > 0x82 ? 128u + u16(raw, 0x80) : raw.size();
  if (header + 4 <= raw.size() && u32(raw, header) == 0xea020000) {
    const bytes attributes = raw.subspan(header + 4);
    for (std::size_t at = 0; at + 16 <= attributes.size() && u32(attributes, at) != 0;) {
      const std::size_t name_bytes = std::to_integer<std::size_t>(attributes[at]);
      const std::size_t value_at = u16(attributes, at + 2);
      const std::size_t value_bytes = u32(attributes, at + 8);
      if (at + 16 + name_bytes > attributes.size()) break;
      const bytes name = attributes.subspan(at + 16, name_bytes);
      if (attributes[at + 1] == std::byte{7} && name_bytes == 4 &&
          std::memcmp(name.data(), "data", 4) == 0) {
        if (value_at > attributes.size() || value_bytes > attributes.size() - value_at) break;
        const bytes value = attributes.subspan(value_at, value_bytes);
        all.insert(all.end(), value.begin(), value.end());
      }
      at += (16 + name_bytes + 3) / 4 * 4;
    }
  }
  if (file.size_bytes > all.size()) {
    return corrupt(fmt::format("inode {}: inline data", file.number));
  }
  all.resize(file.size_bytes);
  return all;
}

result<std::string> file_system::read_link(const inode& link) {
  if (link.size_bytes > symlink_bytes_max) {
    return corrupt(
        fmt::format("inode {}: symbolic link of {} bytes", link.number, link.size_bytes));
  }
  std::string target;
  const auto append = [&target](bytes part) {
    target.append(reinterpret_cast<const char*>(part.data()), part.size());
  };
  if (link.size_bytes < block_map_bytes &&
      (link.flags & (inode_uses_extents | inode_has_inline_data)) == 0) {
    append(block_map(link).first(link.size_bytes));
    return target;
  }
  const result<> read = for_each_part(link, [&](std::uint64_t, bytes part) -> result<> {
    append(part);
    return {};
  });
  if (!read) return fail(read.error());
  return target;
}

// ---- Directories ----

result<> file_system::parse_entries(bytes block, const inode& directory,
                                    const std::function<result<>(const entry&)>& f) {
  for (std::size_t at = 0; at < block.size();) {
    const std::size_t left = block.size() - at;
    const std::size_t length = left >= 8 ? u16(block, at + 4) : 0;
    const std::size_t name_bytes =
        left >= 8
            ? (has_file_types_ ? std::to_integer<std::size_t>(block[at + 6]) : u16(block, at + 6))
            : 0;
    if (length < 8 || length % 4 != 0 || length > left || name_bytes > length - 8) {
      return corrupt(fmt::format("inode {}: directory entry", directory.number));
    }
    entry e;
    e.inode = u32(block, at);
    e.name = {reinterpret_cast<const char*>(block.data() + at + 8), name_bytes};
    // Without an inode it is free, or what indexes and checksums hide behind.
    if (e.inode != 0) {
      if (name_bytes == 0 || e.name.find('/') != e.name.npos || e.name.find('\0') != e.name.npos) {
        return corrupt(fmt::format("inode {}: name of an entry", directory.number));
      }
      const result<> taken = f(e);
      if (!taken) return taken;
    }
    at += length;
  }
  return {};
}

result<> file_system::for_each_entry(const inode& directory,
                                     const std::function<result<>(const entry&)>& f) {
  if (directory.type() != kind::directory) return fail(ENOTDIR);
  if ((directory.flags & inode_has_inline_data) != 0) {
    // The number of the parent, then the entries but for the two of every directory: up to the 60th
    // byte, and behind it.
    const result<std::vector<std::byte>> all = inline_data(directory);
    if (!all) return fail(all.error());
    const bytes data(*all);
    if (data.size() < block_map_bytes) {
      return corrupt(fmt::format("inode {}: inline data", directory.number));
    }
    for (const entry& e : {entry{directory.number, "."}, entry{u32(data, 0), ".."}}) {
      const result<> taken = f(e);
      if (!taken) return taken;
    }
    const result<> first = parse_entries(data.subspan(4, block_map_bytes - 4), directory, f);
    return first ? parse_entries(data.subspan(block_map_bytes), directory, f) : first;
  }
  const std::uint64_t count = directory.size_bytes / block_bytes_;
  if (count > block_count_) {
    return corrupt(fmt::format("inode {}: directory of {} blocks", directory.number, count));
  }
  for (std::uint64_t logical = 0; logical < count; ++logical) {
    const result<run> r = find_run(directory, logical);
    if (!r) return fail(r.error());
    if (r->block == 0) {
      return corrupt(fmt::format("inode {}: a hole in a directory", directory.number));
    }
    const result<bh_ref> b = block(r->block, "directory");
    if (!b) return fail(b.error());
    const result<> parsed = parse_entries((*b)->bytes(), directory, f);
    if (!parsed) return parsed;
  }
  return {};
}

result<inode> file_system::find(std::string_view path) {
  result<inode> at = read_inode(root);
  while (at) {
    path.remove_prefix(std::min(path.find_first_not_of('/'), path.size()));
    if (path.empty()) break;
    const std::string_view name = path.substr(0, path.find('/'));
    path.remove_prefix(name.size());
    std::uint32_t next = 0;
    const result<> looked = for_each_entry(*at, [&](const entry& e) -> result<> {
      if (e.name == name) next = e.inode;
      return {};
    });
    remark_ = looked ? std::string(name) : remark_.empty() ? std::string(name) : remark_;
    if (!looked) return fail(looked.error());
    if (next == 0) return fail(ENOENT);
    at = read_inode(next);
  }
  return at;
}

}  // namespace ext4ls
