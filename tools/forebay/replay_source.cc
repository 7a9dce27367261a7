// Files as `forebay replay` reads them: as they are, or through liblzma or libzstd.

#include <fmt/format.h>
#include <lzma.h>
#include <zstd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "tools/forebay/replay_trace.h"

namespace forebay::tool {
namespace {

using read_result = std::expected<std::size_t, std::string>;

class plain_file final : public byte_source {
 public:
  plain_file(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}

  read_result read(std::span<char> out) override {
    const std::size_t n = std::fread(out.data(), 1, out.size(), file_.get());
    if (n == 0 && std::ferror(file_.get()) != 0) {
      return std::unexpected(fmt::format("{}: cannot be read: {}", path_, std::strerror(errno)));
    }
    return n;
  }

 private:
  struct closer {
    void operator()(std::FILE* f) const { static_cast<void>(std::fclose(f)); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, closer> file_;
};

// What both decompressors have: a buffer that is filled from below.
class decompressor : public byte_source {
 public:
  decompressor(std::string path, std::unique_ptr<byte_source> below)
      : path_(std::move(path)), below_(std::move(below)), in_(1u << 16) {}

 protected:
  read_result refill() { return below_->read(in_); }
  std::unexpected<std::string> broken(std::string_view what) const {
    return std::unexpected(fmt::format("{}: {}", path_, what));
  }

  std::string path_;
  std::unique_ptr<byte_source> below_;
  std::vector<char> in_;
};

class xz_file final : public decompressor {
 public:
  using decompressor::decompressor;
  ~xz_file() override { lzma_end(&stream_); }
  xz_file(const xz_file&) = delete;
  xz_file& operator=(const xz_file&) = delete;

  bool start() {
    return lzma_stream_decoder(&stream_, memory_limit_bytes, LZMA_CONCATENATED) == LZMA_OK;
  }

  read_result read(std::span<char> out) override {
    stream_.next_out = reinterpret_cast<std::uint8_t*>(out.data());
    stream_.avail_out = out.size();
    while (stream_.avail_out == out.size() && !done_) {
      if (stream_.avail_in == 0 && !input_ended_) {
        const read_result n = refill();
        if (!n) return n;
        stream_.next_in = reinterpret_cast<const std::uint8_t*>(in_.data());
        stream_.avail_in = *n;
        input_ended_ = *n == 0;
      }
      switch (lzma_code(&stream_, input_ended_ ? LZMA_FINISH : LZMA_RUN)) {
        case LZMA_OK:
          break;
        case LZMA_STREAM_END:
          done_ = true;
          break;
        case LZMA_BUF_ERROR:
          return broken("the compressed file ends too early");
        case LZMA_FORMAT_ERROR:
          return broken("is not compressed by xz, though its name says so");
        default:
          return broken("the compressed data is damaged");
      }
    }
    return out.size() - stream_.avail_out;
  }

 private:
  static constexpr std::uint64_t memory_limit_bytes = 1u << 30;

  lzma_stream stream_ = LZMA_STREAM_INIT;
  bool input_ended_ = false;
  bool done_ = false;
};

class zstd_file final : public decompressor {
 public:
  using decompressor::decompressor;

  bool start() {
    stream_.reset(ZSTD_createDStream());
    return stream_ != nullptr;
  }

  read_result read(std::span<char> out) override {
    ZSTD_outBuffer to{out.data(), out.size(), 0};
    while (to.pos == 0) {
      if (from_.pos == from_.size) {
        const read_result n = refill();
        if (!n) return n;
        if (*n == 0) {
          if (in_frame_) return broken("the compressed file ends too early");
          return std::size_t{0};
        }
        from_ = {in_.data(), *n, 0};
      }
      const std::size_t left = ZSTD_decompressStream(stream_.get(), &to, &from_);
      if (ZSTD_isError(left) != 0) {
        return broken(any_ ? "the compressed data is damaged"
                           : "is not compressed by zstd, though its name says so");
      }
      in_frame_ = left != 0;
      any_ = true;
    }
    return to.pos;
  }

 private:
  struct freer {
    void operator()(ZSTD_DStream* s) const { ZSTD_freeDStream(s); }
  };
  std::unique_ptr<ZSTD_DStream, freer> stream_;
  ZSTD_inBuffer from_{nullptr, 0, 0};
  bool in_frame_ = false;
  bool any_ = false;  // decompressed
};

template <typename File>
std::expected<std::unique_ptr<byte_source>, std::string> started(
    const std::string& path, std::unique_ptr<byte_source> below) {
  auto file = std::make_unique<File>(path, std::move(below));
  if (!file->start()) return std::unexpected(path + ": no memory to decompress it");
  return file;
}

}  // namespace

std::expected<std::unique_ptr<byte_source>, std::string> byte_source::open(
    const std::string& path) {
  std::FILE* const file = std::fopen(path.c_str(), "rbe");
  if (file == nullptr) {
    return std::unexpected(fmt::format("{}: cannot be opened: {}", path, std::strerror(errno)));
  }
  std::unique_ptr<byte_source> plain = std::make_unique<plain_file>(path, file);
  if (path.ends_with(".xz")) return started<xz_file>(path, std::move(plain));
  if (path.ends_with(".zst")) return started<zstd_file>(path, std::move(plain));
  return plain;
}

}  // namespace forebay::tool
