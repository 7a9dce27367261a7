// The page table of an IOMMU: I/O virtual addresses of 39 bits to memory in pages of 4 KiB and
// 2 MiB, with permissions, in three levels of 512 entries, as Intel's VT-d has it for second-stage
// translation (Virtualization Technology for Directed I/O, section 3.7).
//
//    38     30 29     21 20     12 11       0
//    | level 3 | level 2 | level 1 | offset |      an entry of level 2 may be a page of 2 MiB
//
//    entry:    address of the next table or the page | 7: a page of 2 MiB | 1: write | 0: read
//
// Tables that become empty are freed. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "forebay/base/result.h"
#include "forebay/dma/segment.h"

namespace forebay {

class io_page_table {
 public:
  static constexpr std::uint64_t address_limit = std::uint64_t{1} << 39;
  static constexpr std::size_t page_bytes = 4096;
  static constexpr std::size_t huge_bytes = std::size_t{2} << 20;

  io_page_table() noexcept;
  io_page_table(const io_page_table&) = delete;
  io_page_table& operator=(const io_page_table&) = delete;
  ~io_page_table();

  // Translates the pages from `iova` on to `pages`, both multiples of 4 KiB; as 2 MiB where both
  // are multiples of that and `huge` allows it. Nothing there may be mapped. Error, nothing is
  // mapped then: ENOMEM.
  [[nodiscard]] result<> map(std::uint64_t iova, std::span<std::byte> pages, dma_direction d,
                             bool huge = true) noexcept;
  // Takes off the pages from `iova` on; pages of 2 MiB only as a whole.
  void unmap(std::uint64_t iova, std::size_t bytes) noexcept;

  struct translation {
    std::span<std::byte> memory;  // from the address on to the page's end
    bool reads = false;           // by the device
    bool writes = false;
  };
  std::optional<translation> find(std::uint64_t iova) const noexcept;

  std::size_t pages() const noexcept { return pages_; }
  std::size_t huge_pages() const noexcept { return huge_pages_; }
  std::size_t tables() const noexcept { return tables_; }  // without the root

 private:
  struct table;

  static std::uint64_t* entry(table& t, std::uint64_t iova, unsigned level) noexcept;
  static table* next(std::uint64_t entry) noexcept;
  bool set(std::uint64_t iova, unsigned level, std::uint64_t value) noexcept;
  std::size_t clear(table& t, unsigned level, std::uint64_t iova) noexcept;
  void free(table& t, unsigned level) noexcept;

  std::unique_ptr<table> root_;  // made with the first mapping
  std::size_t pages_ = 0;        // of 4 KiB
  std::size_t huge_pages_ = 0;
  std::size_t tables_ = 0;
};

}  // namespace forebay
