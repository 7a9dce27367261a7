// A directory of a test's own.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>

#include "forebay/base/assert.h"

namespace forebay {

// Made with a name of its own in `parent`; goes with all that is in it.
class test_directory {
 public:
  explicit test_directory(const std::filesystem::path& parent = testing::TempDir()) {
    std::string name = (parent / "forebay-XXXXXX").string();
    FOREBAY_ASSERT(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~test_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  test_directory(const test_directory&) = delete;
  test_directory& operator=(const test_directory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace forebay
