// A small file system: an example of mapped objects, with its metadata in the block API.
//
//   super │ journal …… │ bitmap …… │ inodes, a block each …… │ data ……            blocks of 4 KiB
//
//   file ── mapped_object: pages, sizes, holes, delayed allocation
//    └ map(), written(), unmap(), commit() ── runs of the file's blocks ── file_system: free
//    blocks,
//                                                                          journal
//
// One flat directory: an inode has its name. A file's runs of blocks are in memory while it is
// open, and on the device in its inode as of its last sync(). What is not synced is in no inode: so
// after a crash a file is as it was synced last, but for bytes that were written over since then,
// and no file has bytes of another one or of none.
//
//   write    reserves blocks, delayed
//   sync     data to newly allocated blocks or over the old ones │ device flush │ inode and bitmap
//   to
//            the journal, with a checksum │ device flush │ the same to their places │ device flush
//   open     what the journal holds, if it is whole, to its places
//
// The journal holds one commit, and is written again when that is in its places. Blocks that a file
// has let go are free when that is committed, so nobody writes over what an inode on the device
// says.
//
// Nothing that the image says is believed: errc::corrupt for one that contradicts itself. Other
// errors: the device's; ENOENT, EEXIST, EBUSY, ENAMETOOLONG, EINVAL for names; ENOSPC; EFBIG for a
// file of more runs than an inode has room for.
//
// One thread, without a loop.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "forebay/cache/block_api.h"
#include "forebay/cache/mapped_object.h"

namespace tinyfs {

using forebay::result;
using forebay::task;

inline constexpr std::uint32_t block_bytes = 4096;
inline constexpr std::size_t name_max = 103;
inline constexpr std::size_t runs_max = 330;  // of one file

// Blocks of a file in a row, all in one state.
struct run {
  std::uint64_t count = 0;
  std::uint64_t block = 0;  // of the device, if it has any
  forebay::extent_state state = forebay::extent_state::hole;
};

// A file's runs that are not holes, by their first block in the file; neighbours that are one are
// joined.
class run_map {
 public:
  // The run that a block of the file lies in, from there on; a hole, to the next one, if in none.
  run find(std::uint64_t block) const;
  // Replaces what there is of a range.
  void set(std::uint64_t first, const run& r);
  const std::map<std::uint64_t, run>& all() const noexcept { return runs_; }

 private:
  std::map<std::uint64_t, run> runs_;
};

struct entry {
  std::string name;
  std::uint64_t size_bytes = 0;
};

class file;

class file_system {
 public:
  // The device's own space; files have spaces of their own in the same cache.
  file_system(forebay::page_cache& cache, forebay::address_space& space) noexcept
      : cache_(cache), space_(space) {}
  file_system(const file_system&) = delete;
  file_system& operator=(const file_system&) = delete;

  // Makes an empty one. ENOSPC if the device is too small.
  result<> make(std::uint32_t inodes);
  // Recovers and reads it. Before everything else.
  result<> open();

  std::vector<entry> list() const;
  // Opens a file, or makes an empty one, which is on the device from its first sync() on. It is
  // open once at a time, and goes before the file system.
  result<std::unique_ptr<file>> open_file(std::string_view name, bool create);
  result<> remove(std::string_view name);

  // What is wrong with what is on the device: nothing, after any crash. No file is open.
  std::vector<std::string> check();

  std::uint64_t free_blocks() const noexcept { return free_ - reserved_; }

 private:
  friend class file;

  // A block that is to be changed by a commit.
  struct image {
    std::uint64_t block;
    std::vector<std::byte> bytes;
  };
  using runs = std::vector<std::pair<std::uint64_t, run>>;
  // As it is on the device.
  struct inode {
    std::string name;  // empty: free
    std::uint64_t size_bytes = 0;
    file_system::runs runs;
    bool stored = false;  // it is there
    bool open = false;
  };

  result<> read_super();
  result<> recover();
  task<> load();
  task<std::vector<std::byte>> read_block(std::uint64_t block);
  task<> write_block(std::uint64_t block, std::span<const std::byte> bytes,
                     forebay::associated_buffers& with);
  task<> commit(std::uint32_t number, inode now);
  task<> write_journal(const std::vector<image>& images);
  task<> write_home(const std::vector<image>& images);
  std::uint32_t* find(std::string_view name);
  static result<inode> parse(std::span<const std::byte> bytes);
  bool is_data(const run& r) const noexcept;
  std::vector<std::byte> format(const inode& i) const;

  // At most so many free blocks in a row, at least one, near `goal`. Somebody has reserved them.
  run allocate(std::uint64_t goal, std::uint64_t count);
  void set_busy(std::uint64_t block, std::uint64_t count, bool busy);
  void let_go(const runs& all, const inode& kept);

  forebay::page_cache& cache_;
  forebay::address_space& space_;
  std::uint32_t blocks_ = 0;  // of the device, as are the next six
  std::uint32_t journal_ = 1;
  std::uint32_t journal_blocks_ = 0;
  std::uint32_t bitmap_ = 0;
  std::uint32_t bitmap_blocks_ = 0;
  std::uint32_t inodes_ = 0;
  std::uint32_t data_ = 0;
  std::uint64_t sequence_ = 0;
  std::vector<inode> table_;
  std::map<std::string, std::uint32_t, std::less<>> names_;
  std::vector<bool> busy_;      // in an inode on the device, or in a run of an open file
  std::uint64_t free_ = 0;      // not busy
  std::uint64_t reserved_ = 0;  // of these, those that delayed runs will need
  forebay::associated_buffers home_{space_};  // committed, perhaps not in their places yet
};

// An open file. What was not synced when it goes is as after a crash.
class file final : public forebay::extent_mapping {
 public:
  ~file() override;

  std::uint64_t size_bytes() const noexcept { return object_->size_bytes(); }
  result<std::size_t> read(std::uint64_t offset, std::span<std::byte> out);
  result<> write(std::uint64_t offset, std::span<const std::byte> data);
  result<> truncate(std::uint64_t size_bytes);
  result<> sync();

  // For the mapped object.
  task<forebay::mapped_extent> map(std::uint64_t offset, std::uint64_t length,
                                   forebay::map_purpose why) override;
  task<> written(std::uint64_t offset, std::uint64_t length) override;
  task<> unmap(std::uint64_t offset, std::uint64_t length) override;
  task<> commit(std::uint64_t size_bytes) override;

 private:
  friend class file_system;

  file(file_system& fs, std::uint32_t number);
  void release(std::uint64_t first, std::uint64_t end);

  file_system& fs_;
  const std::uint32_t number_;
  run_map runs_;
  bool changed_ = false;  // not as it is on the device
  std::optional<forebay::mapped_object> object_;
};

}  // namespace tinyfs
