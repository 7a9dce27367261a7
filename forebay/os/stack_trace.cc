#include "forebay/os/stack_trace.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unwind.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <unordered_map>

#include "forebay/os/fd.h"

namespace forebay {
namespace {

struct capture_state {
  stack_trace* trace;
  unsigned skip;
};

_Unwind_Reason_Code take_frame(_Unwind_Context* context, void* argument) {
  auto& state = *static_cast<capture_state*>(argument);
  const auto address = _Unwind_GetIP(context);
  if (address == 0) return _URC_END_OF_STACK;
  if (state.skip > 0) {
    --state.skip;
    return _URC_NO_REASON;
  }
  stack_trace& trace = *state.trace;
  if (trace.depth == stack_trace::depth_max) return _URC_END_OF_STACK;
  trace.frames[trace.depth++] = reinterpret_cast<const void*>(address);
  return _URC_NO_REASON;
}

// A whole file, mapped for reading; empty if that fails.
class file_image {
 public:
  explicit file_image(const char* path) noexcept {
    const unique_fd file(::open(path, O_RDONLY | O_CLOEXEC));
    struct stat status{};
    if (!file || ::fstat(file.get(), &status) != 0 || status.st_size <= 0) return;
    const auto bytes = static_cast<std::size_t>(status.st_size);
    void* const at = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (at != MAP_FAILED) image_ = {static_cast<const std::byte*>(at), bytes};
  }
  ~file_image() {
    if (!image_.empty()) ::munmap(const_cast<std::byte*>(image_.data()), image_.size());
  }
  file_image(const file_image&) = delete;
  file_image& operator=(const file_image&) = delete;

  std::span<const std::byte> bytes() const noexcept { return image_; }

 private:
  std::span<const std::byte> image_;
};

std::string demangled(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(
      abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), &std::free);
  return status == 0 && text != nullptr ? std::string(text.get()) : name;
}

std::string_view base_name(std::string_view path) noexcept {
  return path.substr(path.find_last_of('/') + 1);  // npos + 1 is 0
}

// The record of type T at `offset`, by value since a file promises no alignment; false if it does
// not lie in the image.
template <typename T>
bool read_at(std::span<const std::byte> image, std::uint64_t offset, T& value) noexcept {
  if (offset > image.size() || image.size() - offset < sizeof(T)) return false;
  std::memcpy(&value, image.data() + offset, sizeof(T));
  return true;
}

// The text at `offset`, up to its end mark; empty if it does not end inside the image.
std::string_view text_at(std::span<const std::byte> image, std::uint64_t offset) noexcept {
  if (offset >= image.size()) return {};
  const auto* const start = reinterpret_cast<const char*>(image.data() + offset);
  const void* const end = std::memchr(start, 0, image.size() - offset);
  if (end == nullptr) return {};
  return {start, static_cast<std::size_t>(static_cast<const char*>(end) - start)};
}

bool is_elf64(const Elf64_Ehdr& header) noexcept {
  return std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 &&
         header.e_ident[EI_CLASS] == ELFCLASS64 && header.e_shentsize == sizeof(Elf64_Shdr);
}

bool holds(const Elf64_Sym& symbol, std::uint64_t address) noexcept {
  return ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && symbol.st_shndx != SHN_UNDEF &&
         address >= symbol.st_value && address - symbol.st_value < symbol.st_size;
}

// Looks through one symbol table whose names are in the section `strings`.
detail::elf_function find_in(std::span<const std::byte> image, const Elf64_Shdr& table,
                             const Elf64_Shdr& strings, std::uint64_t address) noexcept {
  Elf64_Sym symbol;
  for (std::uint64_t at = 0; at < table.sh_size; at += sizeof(symbol)) {
    if (!read_at(image, table.sh_offset + at, symbol)) return {};
    if (!holds(symbol, address) || symbol.st_name >= strings.sh_size) continue;
    const std::string_view name = text_at(image, strings.sh_offset + symbol.st_name);
    if (!name.empty()) return {name, address - symbol.st_value};
  }
  return {};
}

}  // namespace

stack_trace stack_trace::capture(unsigned skip) noexcept {
  stack_trace trace;
  capture_state state{&trace, skip + 1};  // and this function's own frame
  _Unwind_Backtrace(&take_frame, &state);
  return trace;
}

// FNV-1a over the addresses.
std::uint64_t stack_trace::hash() const noexcept {
  std::uint64_t h = 0xcbf2'9ce4'8422'2325;
  for (std::uint32_t i = 0; i < depth; ++i) {
    h = (h ^ reinterpret_cast<std::uintptr_t>(frames[i])) * 0x100'0000'01b3;
  }
  return h ^ (h >> 32);
}

namespace detail {

elf_function elf_function_at(std::span<const std::byte> image, std::uint64_t address) noexcept {
  Elf64_Ehdr header;
  if (!read_at(image, 0, header) || !is_elf64(header)) return {};
  const auto section = [&](std::uint32_t index, Elf64_Shdr& into) {
    return index < header.e_shnum &&
           read_at(image, header.e_shoff + index * sizeof(Elf64_Shdr), into);
  };
  for (const std::uint32_t kind : {SHT_SYMTAB, SHT_DYNSYM}) {
    Elf64_Shdr table;
    for (std::uint32_t i = 0; section(i, table); ++i) {
      if (Elf64_Shdr strings; table.sh_type == kind && section(table.sh_link, strings)) {
        const elf_function found = find_in(image, table, strings, address);
        if (!found.name.empty()) return found;
      }
    }
  }
  return {};
}

}  // namespace detail

struct symbolizer::state {
  std::map<std::string, std::unique_ptr<file_image>, std::less<>> files;
  std::unordered_map<const void*, std::string> names;

  std::span<const std::byte> image_of(const std::string& path) {
    std::unique_ptr<file_image>& file = files[path];
    if (file == nullptr) file = std::make_unique<file_image>(path.c_str());
    return file->bytes();
  }

  std::string look_up(const void* return_address);
};

std::string symbolizer::state::look_up(const void* return_address) {
  // The call lies before the address that it returns to, which may belong to the next function.
  const void* const call = static_cast<const char*>(return_address) - 1;
  Dl_info info{};
  void* map = nullptr;
  if (::dladdr1(call, &info, &map, RTLD_DL_LINKMAP) == 0 || map == nullptr) {
    return fmt::format("{}", return_address);
  }
  const auto* const module = static_cast<const link_map*>(map);
  const auto address = reinterpret_cast<std::uintptr_t>(call) - module->l_addr;
  // The program's own entry has no name in the loader's list.
  const std::string path = module->l_name[0] != '\0' ? module->l_name : "/proc/self/exe";
  const std::string_view file =
      base_name(info.dli_fname != nullptr ? info.dli_fname : path.c_str());

  const detail::elf_function found = detail::elf_function_at(image_of(path), address);
  if (!found.name.empty()) {
    return fmt::format("{}+{:#x} ({})", demangled(std::string(found.name)), found.offset + 1, file);
  }
  return fmt::format("{}+{:#x}", file, address + 1);
}

symbolizer::symbolizer() : state_(std::make_unique<state>()) {}
symbolizer::~symbolizer() = default;

std::string symbolizer::name(const void* return_address) {
  const auto known = state_->names.find(return_address);
  if (known != state_->names.end()) return known->second;
  return state_->names.emplace(return_address, state_->look_up(return_address)).first->second;
}

std::string symbolizer::describe(const stack_trace& trace, std::string_view indent) {
  std::string text;
  for (std::uint32_t i = 0; i < trace.depth; ++i) {
    text += fmt::format("{}#{} {}\n", indent, i, name(trace.frames[i]));
  }
  return text;
}

}  // namespace forebay
