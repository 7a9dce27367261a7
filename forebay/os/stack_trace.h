// Where a thread is: return addresses taken now, names found later.
//
// Taking a trace is cheap enough for debug modes (a microsecond or two: the unwinder reads the
// tables that every program carries, it needs no frame pointers, takes no lock and allocates
// nothing). Naming an address is slow (it maps the file that the code came from and looks through
// its symbol table) and is left to a `symbolizer` when a report is written.
//
// Names come from the file's full symbol table, so that static functions and those of the program
// itself have theirs without -rdynamic; from the dynamic one if the file is stripped; and otherwise
// an address is shown as file+offset, which addr2line(1) understands. A function that the compiler
// inlined, or left by a tail call, has no frame.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace forebay {

// The innermost return addresses of a thread. Plain data.
struct stack_trace {
  static constexpr unsigned depth_max = 16;

  std::array<const void*, depth_max> frames{};  // innermost first; null from `depth` on
  std::uint32_t depth = 0;

  // The caller's stack, without the `skip` innermost frames (0: the caller itself comes first).
  // Any thread.
  [[gnu::noinline]] static stack_trace capture(unsigned skip = 0) noexcept;

  std::uint64_t hash() const noexcept;
  bool operator==(const stack_trace&) const noexcept = default;
};

// Finds the names of code addresses; keeps what it has looked up. One thread at a time. Make one
// for each report: it holds maps of the files it has read.
class symbolizer {
 public:
  symbolizer();
  ~symbolizer();
  symbolizer(const symbolizer&) = delete;
  symbolizer& operator=(const symbolizer&) = delete;

  // "function(arguments)+0x1c (file)", or "file+0x12ab" or "0x7f00..." if that is all that is
  // known. `return_address` is one of a stack_trace: the name is that of the call before it.
  std::string name(const void* return_address);

  // One line for each frame: "<indent>#0 name\n".
  std::string describe(const stack_trace& trace, std::string_view indent = "    ");

 private:
  struct state;
  std::unique_ptr<state> state_;
};

namespace detail {

struct elf_function {
  std::string_view name;     // as the linker knows it (mangled); empty if there is none
  std::uint64_t offset = 0;  // of the address from the function's start
};

// The function that holds `address` (as linked, without load bias) in the image of a 64-bit ELF
// file. `image` may be any bytes: what is damaged is not found.
elf_function elf_function_at(std::span<const std::byte> image, std::uint64_t address) noexcept;

}  // namespace detail
}  // namespace forebay
