// Works on one file in every way that a file system has, and compares all it reads with a model in
// memory. In the manner of Apple's fsx; for the guests of tests/guest_load.py, so statically
// linked.
//
//   forebay_fsx FILE OPERATIONS SEED
//
// Exit status 1, and a line that says what and where, if anything reads as it should not, or fails.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace {

constexpr std::size_t most_bytes = std::size_t{1} << 20;
constexpr std::size_t longest = std::size_t{96} << 10;

class exerciser {
 public:
  exerciser(const char* path, std::uint64_t seed) : random_(seed) {
    fd_ = ::open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd_ >= 0, "open");
  }

  void run(unsigned long operations) {
    for (step_ = 0; step_ < operations; ++step_) one();
    must(::fsync(fd_) == 0, "fsync");
    forget();
    check_all();
  }

 private:
  std::size_t below(std::size_t n) { return n == 0 ? 0 : static_cast<std::size_t>(random_() % n); }
  // A stretch that lies in the first `bytes`, often at a page's or a sector's edge.
  void choose(std::size_t bytes) {
    at_ = below(bytes);
    n_ = 1 + below(below(4) == 0 ? longest : 5000);
    const std::size_t unit = below(3) == 0 ? 4096 : below(2) == 0 ? 512 : 1;
    at_ -= at_ % unit;
    n_ = std::min((n_ + unit - 1) / unit * unit, bytes - at_);
  }

  [[noreturn]] void fail(const char* what) const {
    std::printf("fsx: step %lu: %s at %zu, %zu bytes: %s\n", step_, what, at_, n_,
                std::strerror(errno));
    std::exit(1);
  }
  void must(bool good, const char* what) const {
    if (!good) fail(what);
  }

  void compare(const char* what, const std::uint8_t* got) const {
    const auto wrong = std::mismatch(got, got + n_, model_.begin() + static_cast<long>(at_));
    if (wrong.first == got + n_) return;
    std::printf("fsx: step %lu: %s at %zu, %zu bytes: byte %zu is %u, not %u\n", step_, what, at_,
                n_, static_cast<std::size_t>(wrong.second - model_.begin()), *wrong.first,
                *wrong.second);
    std::exit(1);
  }

  void fill() {
    const auto first = static_cast<std::uint8_t>(random_());
    for (std::size_t i = 0; i < n_; ++i)
      model_[at_ + i] = static_cast<std::uint8_t>(first + i * 7 + (i >> 9));
  }
  void grow_to(std::size_t bytes) {
    if (model_.size() < bytes) model_.resize(bytes);
  }

  void write() {
    choose(most_bytes);
    grow_to(at_ + n_);
    fill();
    must(
        ::pwrite(fd_, model_.data() + at_, n_, static_cast<off_t>(at_)) == static_cast<ssize_t>(n_),
        "write");
  }
  void read() {
    choose(model_.size());
    std::vector<std::uint8_t> got(n_);
    must(::pread(fd_, got.data(), n_, static_cast<off_t>(at_)) == static_cast<ssize_t>(n_), "read");
    compare("read", got.data());
  }
  void map(bool write) {
    if (model_.empty()) return;
    choose(model_.size());
    const std::size_t from = at_ / 4096 * 4096;
    const std::size_t bytes = at_ + n_ - from;
    void* const p = ::mmap(nullptr, bytes, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED, fd_,
                           static_cast<off_t>(from));
    must(p != MAP_FAILED, "mmap");
    auto* const data = static_cast<std::uint8_t*>(p) + (at_ - from);
    if (write) {
      fill();
      std::memcpy(data, model_.data() + at_, n_);
      if (below(2) == 0) must(::msync(p, bytes, MS_SYNC) == 0, "msync");
    } else {
      compare("mapped read", data);
    }
    ::munmap(p, bytes);
  }
  void truncate() {
    at_ = below(most_bytes);
    n_ = 0;
    must(::ftruncate(fd_, static_cast<off_t>(at_)) == 0, "truncate");
    model_.resize(at_);
  }
  void zero(bool punch) {
    if (model_.empty()) return;
    choose(model_.size());
    const int mode = FALLOC_FL_KEEP_SIZE | (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
    const int done = ::fallocate(fd_, mode, static_cast<off_t>(at_), static_cast<off_t>(n_));
    if (done != 0 && errno == EOPNOTSUPP) return;
    must(done == 0, punch ? "punch hole" : "zero range");
    std::fill_n(model_.begin() + static_cast<long>(at_), n_, std::uint8_t{0});
  }
  // What is clean leaves the kernel's cache, so that what follows reads the disk.
  void forget() {
    must(::fdatasync(fd_) == 0, "fdatasync");
    must(::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED) == 0, "fadvise");
  }
  void check_all() {
    struct stat st{};
    must(::fstat(fd_, &st) == 0, "fstat");
    at_ = 0;
    n_ = model_.size();
    must(static_cast<std::size_t>(st.st_size) == n_, "size");
    std::vector<std::uint8_t> got(n_);
    must(::pread(fd_, got.data(), n_, 0) == static_cast<ssize_t>(n_), "read of all");
    compare("read of all", got.data());
  }

  void one() {
    switch (below(16)) {
      case 0:
        truncate();
        break;
      case 1:
        zero(true);
        break;
      case 2:
        zero(false);
        break;
      case 3:
        map(true);
        break;
      case 4:
        map(false);
        break;
      case 5:
        below(4) == 0 ? forget() : read();
        break;
      case 6:
        below(8) == 0 ? check_all() : read();
        break;
      case 7:
      case 8:
      case 9:
      case 10:
        read();
        break;
      default:
        write();
        break;
    }
  }

  std::mt19937_64 random_;
  int fd_ = -1;
  std::vector<std::uint8_t> model_;
  unsigned long step_ = 0;
  std::size_t at_ = 0;  // of the operation under way
  std::size_t n_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: forebay_fsx FILE OPERATIONS SEED\n");
    return 2;
  }
  exerciser e(argv[1], std::strtoull(argv[3], nullptr, 0));
  e.run(std::strtoul(argv[2], nullptr, 0));
  return 0;
}
