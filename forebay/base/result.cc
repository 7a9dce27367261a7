#include "forebay/base/result.h"

namespace forebay {
namespace {

class category final : public std::error_category {
 public:
  const char* name() const noexcept override { return "forebay"; }

  std::string message(int condition) const override {
    switch (static_cast<errc>(condition)) {
      case errc::empty_device:
        return "the image is empty";
      case errc::misaligned_size:
        return "the size is not a multiple of the block size";
      case errc::in_use:
        return "already in use by another process";
      case errc::too_small:
        return "too small";
      case errc::too_large:
        return "too large";
      case errc::not_a_device:
        return "not a regular file or block device";
      case errc::protocol:
        return "protocol violation";
      case errc::end_of_stream:
        return "connection closed by the peer";
      case errc::corrupt:
        return "internal structure is corrupt";
    }
    return "unknown error";
  }
};

}  // namespace

const std::error_category& error_category() noexcept {
  static const category instance;
  return instance;
}

std::error_code make_error_code(errc e) noexcept { return {static_cast<int>(e), error_category()}; }

int to_errno(std::error_code e) noexcept {
  if (!e) return 0;
  if (e.category() == std::generic_category() || e.category() == std::system_category()) {
    return e.value();
  }
  if (e.category() != error_category()) return EIO;
  switch (static_cast<errc>(e.value())) {
    case errc::in_use:
      return EBUSY;
    case errc::empty_device:
    case errc::misaligned_size:
    case errc::too_small:
    case errc::too_large:
    case errc::not_a_device:
      return EINVAL;
    case errc::protocol:
      return EPROTO;
    case errc::end_of_stream:
      return ECONNRESET;
    case errc::corrupt:
      return EIO;
  }
  return EIO;
}

}  // namespace forebay
