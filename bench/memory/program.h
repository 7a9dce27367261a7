// The program around a set of subjects: bench/memory/run starts one for each allocator and asks
// them in turn.
//
//   memory_NAME --cpus 0,1                         commands on standard input, one a line:
//     sample SUBJECT PATTERN THREADS BYTES         -> ok NANOSECONDS WINDOWS DISTURBED
//     overhead SUBJECT BYTES COUNT                 -> ok BYTES      beside each object
//     about                                        -> ok TEXT       what is measured
//     subjects                                     -> ok NAME...
//   anything that cannot be done                   -> error TEXT
//
// Subjects are made at the first command that names them and live until the program ends.
#pragma once

#include <expected>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/memory/patterns.h"

namespace forebay::bench {

// A subject, whatever its type.
class any_subject {
 public:
  virtual ~any_subject() = default;
  virtual sample run(crew& threads, const sample_request& request) = 0;
  // Bytes of memory used beside the bytes asked for, for each of `count` objects; none if the
  // subject ran dry.
  virtual std::optional<double> overhead(std::size_t bytes, std::size_t count) = 0;

 protected:
  any_subject() = default;
  any_subject(const any_subject&) = default;
  any_subject& operator=(const any_subject&) = default;
};

using made_subject = std::expected<std::unique_ptr<any_subject>, std::string>;

struct subject_entry {
  std::string name;
  std::function<made_subject(std::size_t bytes)> make;
};

struct program_parts {
  std::string name;
  std::function<std::string()> about;
  std::vector<subject_entry> subjects;
  std::function<std::string()> on_thread_start = {};  // see crew
};

int run_program(int argc, char** argv, const program_parts& parts);

// Bytes of this process in memory now.
std::size_t resident_bytes();

template <Subject S>
class subject_runner final : public any_subject {
 public:
  template <typename... Args>
  explicit subject_runner(Args&&... args) : subject_(std::forward<Args>(args)...) {}

  sample run(crew& threads, const sample_request& request) override {
    return measure(threads, subject_, request);
  }

  // By the subject's own account if it gives one, else by what the process grows when the objects
  // are filled.
  std::optional<double> overhead(std::size_t bytes, std::size_t count) override {
    if constexpr (requires { subject_.overhead(bytes, count); }) {
      return subject_.overhead(bytes, count);
    } else if constexpr (std::is_pointer_v<typename S::item>) {
      std::vector<typename S::item> items(count);
      const std::size_t before = resident_bytes();
      for (auto& item : items) {
        item = subject_.allocate();
        if (S::is_none(item)) return std::nullopt;
        std::memset(static_cast<void*>(item), 1, bytes);
      }
      const auto used = static_cast<double>(resident_bytes() - before);
      for (auto& item : items) subject_.free(item);
      return used / static_cast<double>(count) - static_cast<double>(bytes);
    } else {
      return std::nullopt;
    }
  }

 private:
  S subject_;
};

}  // namespace forebay::bench
