#include "forebay/os/xdp_filter.h"

#include <linux/bpf_common.h>

#include <algorithm>
#include <cstddef>
#include <limits>

namespace forebay {
namespace {

// Of the classic machine.
constexpr std::uint16_t class_mask = 0x07;
constexpr std::uint16_t size_mask = 0x18;
constexpr std::uint16_t mode_mask = 0xe0;
constexpr std::uint16_t op_mask = 0xf0;
constexpr std::uint16_t source_mask = 0x08;
constexpr std::uint16_t misc_txa = 0x80;
constexpr std::uint16_t misc_class = 0x07;  // its number is another class's in the new machine
constexpr std::uint16_t ret_class = 0x06;
constexpr std::uint16_t mode_len = 0x80;
constexpr std::uint16_t mode_msh = 0xa0;
constexpr std::uint16_t ret_a = 0x10;
constexpr std::uint32_t words = 16;  // of its memory
// No packet is as long, and the checks of the kernel know no larger distances.
constexpr std::uint32_t offset_max = 0x7ff0;

// Registers: the classic machine's two, the packet's ends, the context, and two for addresses.
constexpr std::uint8_t a = BPF_REG_2;
constexpr std::uint8_t x = BPF_REG_3;
constexpr std::uint8_t address = BPF_REG_4;
constexpr std::uint8_t end = BPF_REG_5;
constexpr std::uint8_t context = BPF_REG_6;
constexpr std::uint8_t data = BPF_REG_7;
constexpr std::uint8_t data_end = BPF_REG_8;
constexpr std::uint8_t stack = BPF_REG_10;

// BPF_ADD and BPF_K are both 0.
constexpr int add_constant = BPF_ALU64 | BPF_ADD;
constexpr int add_constant_32 = BPF_ALU | BPF_ADD;

// What the kernel takes for an instruction of the classic machine (chk_code_allowed() in its
// net/core/filter.c): the others have no meaning there, and could get one here.
constexpr bool is_classic(std::uint16_t code) noexcept {
  switch (code) {
    case BPF_LD | BPF_W | BPF_ABS:
    case BPF_LD | BPF_H | BPF_ABS:
    case BPF_LD | BPF_B | BPF_ABS:
    case BPF_LD | BPF_W | BPF_IND:
    case BPF_LD | BPF_H | BPF_IND:
    case BPF_LD | BPF_B | BPF_IND:
    case BPF_LD | BPF_W | mode_len:
    case BPF_LD | BPF_IMM:
    case BPF_LD | BPF_MEM:
    case BPF_LDX | BPF_W | mode_len:
    case BPF_LDX | BPF_B | mode_msh:
    case BPF_LDX | BPF_IMM:
    case BPF_LDX | BPF_MEM:
    case BPF_ST:
    case BPF_STX:
    case BPF_ALU | BPF_NEG:
    case BPF_JMP | BPF_JA:
    case ret_class:
    case ret_class | ret_a:
    case misc_class:
    case misc_class | misc_txa:
      return true;
    default:
      break;
  }
  const int op = code & op_mask;
  if ((code & ~(class_mask | op_mask | source_mask)) != 0) return false;
  switch (code & class_mask) {
    case BPF_ALU:
      return op <= BPF_XOR && op != BPF_NEG;
    case BPF_JMP:
      return op >= BPF_JEQ && op <= BPF_JSET;
    default:
      return false;
  }
}

// Targets of jumps that are no instruction of the filter.
constexpr std::size_t to_pass = SIZE_MAX;
constexpr std::size_t to_taken = SIZE_MAX - 1;

class translator {
 public:
  explicit translator(std::span<const filter_instruction> filter) : filter_(filter) {}

  result<std::vector<bpf_insn>> run(std::span<const bpf_insn> taken) {
    begin();
    for (at_ = 0; at_ < filter_.size(); ++at_) {
      starts_.push_back(out_.size());
      if (const auto r = translate(filter_[at_]); !r) return fail(r.error());
    }
    // The kernel refuses what is never reached.
    const std::size_t taken_at = out_.size();
    if (leads_to(to_taken)) out_.insert(out_.end(), taken.begin(), taken.end());
    const std::size_t pass_at = out_.size();
    if (leads_to(to_pass)) {
      emit(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, XDP_PASS);
      emit(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    }
    for (const fixup& f : fixups_) {
      if (f.target < to_taken && f.target >= starts_.size()) return fail(EINVAL);
      const std::size_t to = f.target == to_pass    ? pass_at
                             : f.target == to_taken ? taken_at
                                                    : starts_[f.target];
      const std::size_t distance = to - f.at - 1;
      if (distance > std::size_t{std::numeric_limits<std::int16_t>::max()}) return fail(EINVAL);
      out_[f.at].off = static_cast<std::int16_t>(distance);
    }
    return std::move(out_);
  }

 private:
  struct fixup {
    std::size_t at;
    std::size_t target;
  };

  bool leads_to(std::size_t target) const {
    return std::ranges::any_of(fixups_, [&](const fixup& f) { return f.target == target; });
  }

  void emit(int code, std::uint8_t to, std::uint8_t from, int offset, std::int64_t immediate) {
    bpf_insn i{};
    i.code = static_cast<std::uint8_t>(code);
    i.dst_reg = to & 0xf;
    i.src_reg = from & 0xf;
    i.off = static_cast<std::int16_t>(offset);
    i.imm = static_cast<std::int32_t>(immediate);
    out_.push_back(i);
  }
  void jump(int code, std::uint8_t left, std::uint8_t right, std::int64_t k, std::size_t target) {
    fixups_.push_back({out_.size(), target});
    emit(code, left, right, 0, k);
  }
  void move(std::uint8_t to, std::uint8_t from) {
    emit(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
  }

  void begin() {
    move(context, BPF_REG_1);
    emit(BPF_LDX | BPF_W | BPF_MEM, data, BPF_REG_1, offsetof(xdp_md, data), 0);
    emit(BPF_LDX | BPF_W | BPF_MEM, data_end, BPF_REG_1, offsetof(xdp_md, data_end), 0);
    emit(BPF_ALU64 | BPF_MOV | BPF_K, a, 0, 0, 0);
    emit(BPF_ALU64 | BPF_MOV | BPF_K, x, 0, 0, 0);
    for (std::uint32_t i = 0; i < words; ++i) emit(BPF_ST | BPF_W | BPF_MEM, stack, 0, slot(i), 0);
  }
  static int slot(std::uint32_t word) { return -4 * static_cast<int>(word + 1); }

  result<> translate(const filter_instruction& i) {
    if (!is_classic(i.code)) return fail(EINVAL);
    switch (i.code & class_mask) {
      case BPF_LD:
        return load(i, a);
      case BPF_LDX:
        return load(i, x);
      case BPF_ST:
      case BPF_STX:
        if (i.k >= words) return fail(EINVAL);
        emit(BPF_STX | BPF_W | BPF_MEM, stack, (i.code & class_mask) == BPF_ST ? a : x, slot(i.k),
             0);
        return {};
      case BPF_ALU:
        return compute(i);
      case BPF_JMP:
        return branch(i);
      case ret_class:
        return answer(i);
      case misc_class:
        if ((i.code & 0xf8) == misc_txa) {
          move(a, x);
        } else {
          move(x, a);
        }
        return {};
      default:
        return fail(EINVAL);
    }
  }

  // --- loads ---

  result<> load(const filter_instruction& i, std::uint8_t to) {
    const int size = i.code & size_mask;
    const int bytes = size == BPF_W ? 4 : size == BPF_H ? 2 : 1;
    switch (i.code & mode_mask) {
      case BPF_IMM:
        emit(BPF_ALU | BPF_MOV | BPF_K, to, 0, 0, i.k);
        return {};
      case BPF_MEM:
        if (i.k >= words) return fail(EINVAL);
        emit(BPF_LDX | BPF_W | BPF_MEM, to, stack, slot(i.k), 0);
        return {};
      case mode_len:
        move(to, data_end);
        emit(BPF_ALU64 | BPF_SUB | BPF_X, to, data, 0, 0);
        return {};
      case BPF_ABS:
        if (i.k > offset_max) return fail(ENOTSUP);  // an extension, or beyond any packet
        at_fixed_place(i.k, bytes);
        load_from(data, static_cast<int>(i.k), size, to);
        return {};
      case BPF_IND:
        at_place_by_x(i.k, bytes);
        load_from(address, 0, size, to);
        return {};
      case mode_msh:  // four times the lower half of a byte: the length of an IPv4 header
        if (i.k > offset_max) return fail(ENOTSUP);
        at_fixed_place(i.k, 1);
        load_from(data, static_cast<int>(i.k), BPF_B, to);
        emit(BPF_ALU | BPF_AND | BPF_K, to, 0, 0, 0xf);
        emit(BPF_ALU | BPF_LSH | BPF_K, to, 0, 0, 2);
        return {};
      default:
        return fail(EINVAL);
    }
  }
  // Goes on if the packet has so many bytes there.
  void at_fixed_place(std::uint32_t k, int bytes) {
    move(end, data);
    emit(add_constant, end, 0, 0, std::int64_t{k} + bytes);
    jump(BPF_JMP | BPF_JGT | BPF_X, end, data_end, 0, to_pass);
  }
  // The same for x + k, modulo 2^32.
  void at_place_by_x(std::uint32_t k, int bytes) {
    emit(BPF_ALU | BPF_MOV | BPF_X, end, x, 0, 0);
    emit(add_constant_32, end, 0, 0, k);
    jump(BPF_JMP | BPF_JGT | BPF_K, end, 0, offset_max, to_pass);
    move(address, data);
    emit(BPF_ALU64 | BPF_ADD | BPF_X, address, end, 0, 0);
    move(end, address);
    emit(add_constant, end, 0, 0, bytes);
    jump(BPF_JMP | BPF_JGT | BPF_X, end, data_end, 0, to_pass);
  }
  void load_from(std::uint8_t base, int offset, int size, std::uint8_t to) {
    emit(BPF_LDX | size | BPF_MEM, to, base, offset, 0);
    if (size != BPF_B) emit(BPF_ALU | BPF_END | BPF_TO_BE, to, 0, 0, size == BPF_W ? 32 : 16);
  }

  // --- the rest ---

  result<> compute(const filter_instruction& i) {
    const int op = i.code & op_mask;
    if (op > BPF_XOR) return fail(EINVAL);
    const bool by_x = (i.code & source_mask) != 0;
    const bool divides = op == BPF_DIV || op == BPF_MOD;
    const bool shifts = op == BPF_LSH || op == BPF_RSH;
    if (divides && by_x) jump(BPF_JMP32 | BPF_JEQ | BPF_K, x, 0, 0, to_pass);
    if (divides && !by_x && i.k == 0) return fail(EINVAL);
    if (shifts && !by_x && i.k > 31) return fail(EINVAL);
    if (shifts && by_x) {
      // By more than there are bits: nothing is left.
      emit(BPF_JMP32 | BPF_JLE | BPF_K, x, 0, 2, 31);
      emit(BPF_ALU | BPF_MOV | BPF_K, a, 0, 0, 0);
      emit(BPF_JMP | BPF_JA, 0, 0, 1, 0);
    }
    if (op == BPF_NEG) {
      emit(BPF_ALU | BPF_NEG, a, 0, 0, 0);
    } else {
      emit(BPF_ALU | op | (by_x ? BPF_X : BPF_K), a, by_x ? x : 0, 0, by_x ? 0 : i.k);
    }
    return {};
  }

  result<> branch(const filter_instruction& i) {
    const int op = i.code & op_mask;
    if (op == BPF_JA) {
      jump(BPF_JMP | BPF_JA, 0, 0, 0, at_ + 1 + i.k);
      return {};
    }
    if (op > BPF_JSET) return fail(EINVAL);
    const bool by_x = (i.code & source_mask) != 0;
    jump(BPF_JMP32 | op | (by_x ? BPF_X : BPF_K), a, by_x ? x : 0, by_x ? 0 : i.k,
         at_ + 1 + i.jump_true);
    if (i.jump_false != 0) jump(BPF_JMP | BPF_JA, 0, 0, 0, at_ + 1 + i.jump_false);
    return {};
  }

  result<> answer(const filter_instruction& i) {
    if ((i.code & 0x18) == ret_a) {
      jump(BPF_JMP32 | BPF_JEQ | BPF_K, a, 0, 0, to_pass);
      jump(BPF_JMP | BPF_JA, 0, 0, 0, to_taken);
    } else {
      jump(BPF_JMP | BPF_JA, 0, 0, 0, i.k != 0 ? to_taken : to_pass);
    }
    return {};
  }

  const std::span<const filter_instruction> filter_;
  std::size_t at_ = 0;
  std::vector<bpf_insn> out_;
  std::vector<std::size_t> starts_;  // of each instruction of the filter
  std::vector<fixup> fixups_;
};

}  // namespace

result<std::vector<bpf_insn>> translate_filter(std::span<const filter_instruction> filter,
                                               std::span<const bpf_insn> taken) {
  if (filter.empty() || filter.size() > 4096) return fail(EINVAL);
  if ((filter.back().code & class_mask) != ret_class) return fail(EINVAL);
  return translator(filter).run(taken);
}

}  // namespace forebay
