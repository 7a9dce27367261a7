// result<T>: a value or an error code, for every path that can fail at run time.
//
// Errors are std::error_code: operating-system errors keep their errno value
// (std::generic_category), Forebay's own conditions have a category of their own (forebay::errc). A
// function that fails leaves its object as it was, unless its comment says otherwise. Values of
// these types are plain data and need no lock.
#pragma once

#include <cerrno>
#include <expected>
#include <string>
#include <system_error>

namespace forebay {

template <typename T = void>
using result = std::expected<T, std::error_code>;

// Conditions that errno has no precise word for.
enum class errc {
  empty_device = 1,  // an image of zero bytes
  misaligned_size,   // a size that is no multiple of the block size
  in_use,            // another process serves this image
  too_small,         // below the documented minimum
  too_large,         // above the documented maximum or what the machine has
  not_a_device,      // neither a regular file nor a block device
  protocol,          // the peer broke the protocol; the connection cannot go on
  end_of_stream,     // the peer closed the connection
  corrupt,           // an internal structure fails its check
};

const std::error_category& error_category() noexcept;
std::error_code make_error_code(errc e) noexcept;

// The failed result for an errno value, as in `return fail(EINVAL)`.
inline std::unexpected<std::error_code> fail(int error) {
  return std::unexpected(std::error_code(error, std::generic_category()));
}
inline std::unexpected<std::error_code> fail(errc e) { return std::unexpected(make_error_code(e)); }
inline std::unexpected<std::error_code> fail(std::error_code e) { return std::unexpected(e); }
inline std::unexpected<std::error_code> fail_errno() { return fail(errno); }

// The errno value that stands for `e` on a wire or in a completion: errno codes as they are,
// Forebay's own as EIO and such. Never 0 for a set error.
int to_errno(std::error_code e) noexcept;

}  // namespace forebay

template <>
struct std::is_error_code_enum<forebay::errc> : std::true_type {};
