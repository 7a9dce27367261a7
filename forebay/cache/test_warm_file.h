// What must hold of a warm store whatever its file says: for the tests, and for fuzz/warm_file.cc.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "forebay/cache/test_space.h"
#include "forebay/cache/warm_parts.h"

namespace forebay {

// A file in memory with pages of an image, clean and dirty, as a process leaves it that is killed;
// and, again and again, the same with other words in its head. One thread.
class hostile_warm_file {
 public:
  enum class fate { refused, unrecovered, served };

  hostile_warm_file()
      : base_("/dev/shm/forebay-hostile-" + std::to_string(::getpid())),
        image_(base_ + ".img"),
        file_(base_ + ".warm") {
    const int image = ::open(image_.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    FOREBAY_ASSERT(image >= 0 && ::ftruncate(image, image_bytes) == 0 && ::close(image) == 0);
    std::remove(file_.c_str());
    FOREBAY_ASSERT(live(true) == fate::served);
    fd_ = ::open(file_.c_str(), O_RDWR | O_CLOEXEC);
    struct stat s{};
    FOREBAY_ASSERT(fd_ >= 0 && ::fstat(fd_, &s) == 0);
    size_ = static_cast<std::size_t>(s.st_size);
    head_ = head(head_bytes);
  }
  ~hostile_warm_file() {
    ::close(fd_);
    for (const std::string& path : {image_, file_}) std::remove(path.c_str());
  }
  hostile_warm_file(const hostile_warm_file&) = delete;
  hostile_warm_file& operator=(const hostile_warm_file&) = delete;

  // Changes the head as the input says, and has a process take the file over, which must serve what
  // it has made of it, or refuse it and leave it as it was. That is asserted.
  fate serve(std::span<const std::uint8_t> input) {
    input_ = input;
    changed_ = head_;
    std::size_t size = size_;
    while (!input_.empty()) change(size);
    FOREBAY_ASSERT(::ftruncate(fd_, static_cast<off_t>(size)) == 0);
    changed_.resize(std::min(changed_.size(), size));
    const auto bytes = static_cast<ssize_t>(changed_.size());
    FOREBAY_ASSERT(::pwrite(fd_, changed_.data(), changed_.size(), 0) == bytes);
    const fate f = live(false);
    if (f == fate::refused) FOREBAY_ASSERT(head(changed_.size()) == changed_);
    return f;
  }

 private:
  static constexpr std::size_t image_bytes = (1u << 20) + 512;
  static constexpr std::size_t cache_bytes = page_cache::min_bytes;
  static constexpr std::size_t records_at = 73 * page_bytes;
  static constexpr std::size_t frames = arena::frames_of(cache_bytes);
  static constexpr std::size_t head_bytes = records_at + frames * sizeof(std::uint64_t);

  std::vector<std::byte> head(std::size_t bytes) const {
    std::vector<std::byte> out(bytes);
    FOREBAY_ASSERT(::pread(fd_, out.data(), bytes, 0) == static_cast<ssize_t>(bytes));
    return out;
  }

  // The next of the input's words; zeros behind its end.
  template <typename T>
  T take() {
    T value{};
    const std::size_t n = std::min(input_.size(), sizeof value);
    std::memcpy(&value, input_.data(), n);
    input_ = input_.subspan(n);
    return value;
  }

  void put(std::size_t at, std::uint64_t word) {
    std::memcpy(changed_.data() + at, &word, sizeof word);
  }
  static std::size_t record(std::size_t frame) { return records_at + frame % frames * 8; }
  static std::size_t entry(std::size_t slot) {
    return page_bytes + slot % warm_store::images_max * sizeof(warm_store::image_entry);
  }

  void change(std::size_t& size) {
    switch (take<std::uint8_t>() % 9) {
      case 0:
        changed_[take<std::uint32_t>() % head_bytes] = std::byte{take<std::uint8_t>()};
        break;
      case 1:
        put(record(take<std::uint16_t>()), take<std::uint64_t>());
        break;
      case 2: {
        const std::size_t at = record(take<std::uint16_t>());
        const auto index = take<std::uint16_t>() % (image_bytes / page_bytes + 2);
        const auto valid = take<std::uint8_t>();
        const auto dirty = take<std::uint8_t>();
        const auto image = take<std::uint8_t>();
        put(at, warm_record{index, valid, dirty, image % 4u, image >= 128}.word());
        break;
      }
      case 3:
        change_header();
        break;
      case 4: {  // the identity, or a discard
        const std::size_t at = entry(take<std::uint8_t>() % 4);
        put(at + take<std::uint8_t>() % 40 * 8, take<std::uint64_t>());
        break;
      }
      case 5: {
        const std::size_t to = entry(take<std::uint8_t>());
        std::memcpy(changed_.data() + to, changed_.data() + entry(take<std::uint8_t>()),
                    sizeof(warm_store::image_entry));
        break;
      }
      case 6: {
        const std::size_t to = record(take<std::uint16_t>());
        std::memcpy(changed_.data() + to, changed_.data() + record(take<std::uint16_t>()), 8);
        break;
      }
      case 7:
        changed_[entry(0) + offsetof(warm_store::image_entry, path) +
                 take<std::uint16_t>() % 4096] = std::byte{take<std::uint8_t>()};
        break;
      default:
        size = take<std::uint32_t>() % (2 * size_);
    }
  }

  void change_header() {
    warm_store::header h{};
    std::memcpy(static_cast<void*>(&h), changed_.data(), sizeof h);
    const unsigned field = take<std::uint8_t>() % 8;
    const auto value = take<std::uint64_t>();
    const auto small = static_cast<std::uint32_t>(value);
    switch (field) {
      case 0:
        h.version = small;
        break;
      case 1:
        h.page_bytes = small;
        break;
      case 2:
        h.frames = small;
        break;
      case 3:
        h.images = small;
        break;
      case 4:
        h.records_offset = value;
        break;
      case 5:
        h.data_offset = value;
        break;
      case 6:
        h.magic = value;
        break;
      default:
        h.state = warm_state{small % 4};
    }
    h.check = h.sum();
    std::memcpy(changed_.data(), static_cast<const void*>(&h), sizeof h);
  }

  // A process that serves the image from the file until it is killed.
  fate live(bool first) {
    auto opened = warm_store::open({.path = file_,
                                    .cache_bytes = cache_bytes,
                                    .images = {{image_, 512, false}},
                                    .wait_ns = 0});
    if (!opened) return fate::refused;
    const std::shared_ptr<warm_store> store = std::move(*opened);
    auto made = page_cache::create({.bytes = cache_bytes, .huge_pages = false, .warm = store});
    FOREBAY_ASSERT(made.has_value());
    page_cache& cache = **made;
    fate f = fate::unrecovered;
    {
      const unsigned slot = store->slot_of(0);
      address_space space(cache, device_, {.block_bytes = 512, .warm_slot = slot});
      std::vector<address_space*> by_slot(slot + 1, nullptr);
      by_slot.back() = &space;
      if (cache.recover(by_slot)) {
        f = fate::served;
        std::vector<std::byte> all(image_bytes);
        FOREBAY_ASSERT(sync_wait(space.read(0, all)).has_value());
        if (first) {
          for (const std::size_t at : {std::size_t{0}, std::size_t{40960}, image_bytes - 1024}) {
            FOREBAY_ASSERT(sync_wait(space.write(at, filled(1024, 0x77))).has_value());
          }
        } else {
          FOREBAY_ASSERT(sync_wait(space.flush()).has_value());
          FOREBAY_ASSERT(cache.statistics().dirty_pages == 0);
        }
      }
      store->close(false);
    }
    FOREBAY_ASSERT(cache.statistics().resident_pages == 0);
    return f;
  }

  const std::string base_;
  const std::string image_;
  const std::string file_;
  memory_device device_{image_bytes};
  int fd_ = -1;
  std::size_t size_ = 0;
  std::vector<std::byte> head_;
  std::vector<std::byte> changed_;
  std::span<const std::uint8_t> input_;
};

}  // namespace forebay
