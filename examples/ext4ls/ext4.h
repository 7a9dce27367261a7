// A reader of ext2, ext3 and ext4 images over the block API: an example of a file system that keeps
// its metadata in buffer heads.
//
//   superblock ──> group descriptors ──> inodes ──> extents, or indirect blocks ──> blocks
//
// All metadata is read by bread() in the image's own blocks of 1, 2 or 4 KiB, and is used in place:
// a bh_ref keeps a block while it is looked at. What is in a file is read through the page view of
// the same cache.
//
// Nothing that the image says is believed: block numbers, sizes, depths and lengths are checked
// where they are used, a tree is no deeper than it may be, and no file has more blocks than the
// file system. Errors: the device's; errc::corrupt for an image that contradicts itself and ENOTSUP
// for one that needs what is not here (remark() says what); ENOENT, ENOTDIR for paths.
//
// One thread, without a loop.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "forebay/cache/block_api.h"

namespace ext4ls {

using forebay::result;

enum class kind : std::uint8_t { other, regular, directory, symlink };

struct inode {
  std::uint32_t number = 0;
  std::uint16_t mode = 0;
  std::uint32_t flags = 0;
  std::uint64_t size_bytes = 0;
  std::vector<std::byte> raw;  // as it lies in its table

  kind type() const noexcept;
};

struct entry {
  std::uint32_t inode = 0;
  std::string_view name;  // until the callback returns
};

class file_system {
 public:
  static constexpr std::uint32_t root = 2;

  explicit file_system(forebay::address_space& space) noexcept : space_(space) {}

  // Reads the superblock. Before everything else.
  result<> open();

  std::uint32_t block_bytes() const noexcept { return block_bytes_; }
  // What the last error was about.
  const std::string& remark() const noexcept { return remark_; }

  result<inode> read_inode(std::uint32_t number);

  // Calls f for each entry of a directory until it returns an error.
  result<> for_each_entry(const inode& directory, const std::function<result<>(const entry&)>& f);

  // The inode of a path from the root on; symbolic links are not followed.
  result<inode> find(std::string_view path);

  // Calls f(offset, bytes) for the parts of a file that are not holes, in order.
  result<> for_each_part(
      const inode& file,
      const std::function<result<>(std::uint64_t, std::span<const std::byte>)>& f);

  result<std::string> read_link(const inode& link);

 private:
  // Blocks of a file that lie together on the device, or are a hole together.
  struct run {
    std::uint64_t block = 0;  // of the device; 0: a hole
    std::uint64_t count = 0;
  };

  std::unexpected<std::error_code> corrupt(std::string what);
  std::unexpected<std::error_code> unsupported(std::string what);
  void read_ahead(std::uint64_t number);
  result<forebay::bh_ref> block(std::uint64_t number, const char* what);
  result<run> find_run(const inode& file, std::uint64_t logical);
  result<run> find_extent(const inode& file, std::uint64_t logical);
  result<run> find_indirect(const inode& file, std::uint64_t logical);
  result<> read_run(const run& r, std::uint64_t offset, std::uint64_t end,
                    const std::function<result<>(std::uint64_t, std::span<const std::byte>)>& f);
  result<> parse_entries(std::span<const std::byte> block, const inode& directory,
                         const std::function<result<>(const entry&)>& f);
  // What lies in the inode itself: the parts of its data, one after the other.
  result<std::vector<std::byte>> inline_data(const inode& file);

  forebay::address_space& space_;
  std::uint32_t block_bytes_ = 0;
  std::uint64_t block_count_ = 0;
  std::uint32_t first_block_ = 0;
  std::uint32_t inode_count_ = 0;
  std::uint32_t inodes_per_group_ = 0;
  std::uint32_t inode_bytes_ = 0;
  std::uint32_t descriptor_bytes_ = 0;
  bool has_file_types_ = false;
  std::string remark_;
};

}  // namespace ext4ls
