#include "forebay/serve/nbd_protocol.h"

#include <cerrno>

namespace forebay::nbd {

std::uint32_t wire_error(int error) noexcept {
  switch (error) {
    case 0:
      return 0;
    case EPERM:
    case EROFS:
    case EACCES:
      return 1;
    case ENOMEM:
      return 12;
    case EINVAL:
      return 22;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return 28;
    case EOVERFLOW:
      return 75;
    case EOPNOTSUPP:
      return 95;
    case ESHUTDOWN:
      return 108;
    default:
      return 5;
  }
}

}  // namespace forebay::nbd
