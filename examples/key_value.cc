// A storage engine in a hundred lines: a hash table of 16-byte keys and 48-byte values in a file,
// behind a page cache. docs/embedding.md goes through it.
//   key_value FILE [KEY [VALUE]]
// The file must exist; its size, a multiple of 4096 bytes, is the table's.

#include <array>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>

#include "forebay/block/file_device.h"
#include "forebay/cache/address_space.h"

using namespace forebay;

// 64 bytes: a page of the cache is a bucket of 64 records, and no record lies on two pages.
struct record {
  std::array<char, 16> key;  // no character: free
  std::array<char, 48> value;
};
constexpr std::size_t bucket_records = page_bytes / sizeof(record);

class table {
 public:
  explicit table(address_space& space) : space_(space), buckets_(space.size_bytes() / page_bytes) {}

  // The value, empty if there is none. Error: the device's.
  task<std::string> get(std::string_view key) {
    std::array<page_ref, 1> pin;
    for (std::uint64_t n = 0; n < buckets_; ++n) {
      const std::uint64_t offset = bucket(key, n) * page_bytes;
      // A hit is pinned without a lock and without a copy; a miss reads the page.
      if (!space_.try_pin(offset, page_bytes, pin)) {
        const result<std::size_t> pinned = co_await space_.pin(offset, page_bytes, pin);
        if (!pinned) co_return fail(pinned.error());
      }
      // A page may be larger than a bucket.
      const std::byte* data = pin[0]->data() + (offset - pin[0]->offset_bytes());
      const auto* records = reinterpret_cast<const record*>(data);
      for (std::size_t i = 0; i < bucket_records; ++i) {
        if (is(records[i], key)) co_return std::string(records[i].value.data());
        if (is(records[i], "")) co_return std::string();
      }
    }
    co_return std::string();
  }

  // In the cache when it returns; durable after sync(). Errors: the device's; ENOSPC.
  task<> put(std::string_view key, std::string_view value) {
    record wanted{};
    if (key.empty() || key.size() >= wanted.key.size() || value.size() >= wanted.value.size()) {
      co_return fail(EINVAL);
    }
    std::memcpy(wanted.key.data(), key.data(), key.size());
    std::memcpy(wanted.value.data(), value.data(), value.size());
    std::array<record, bucket_records> records;
    for (std::uint64_t n = 0; n < buckets_; ++n) {
      const std::uint64_t offset = bucket(key, n) * page_bytes;
      const auto bytes = std::as_writable_bytes(std::span(records));
      if (auto r = co_await space_.read(offset, bytes); !r) co_return r;
      for (std::size_t i = 0; i < bucket_records; ++i) {
        if (!is(records[i], key) && !is(records[i], "")) continue;
        // 64 bytes of the page become dirty with their block; write-back takes it from there.
        co_return co_await space_.write(offset + i * sizeof(record),
                                        std::as_bytes(std::span(&wanted, 1)));
      }
    }
    co_return fail(ENOSPC);
  }

  // Everything that was put before is on the medium. Error: what could not be written is kept in
  // the cache, and tried again by the next one.
  task<> sync() { return space_.flush(); }

 private:
  static bool is(const record& r, std::string_view key) {
    return std::string_view(r.key.data(), ::strnlen(r.key.data(), r.key.size())) == key;
  }
  // The n-th bucket to look for a key in. FNV-1a: the same on every machine.
  std::uint64_t bucket(std::string_view key, std::uint64_t n) const {
    std::uint64_t hash = 0xcbf29ce484222325;
    for (const char c : key) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    return (hash + n) % buckets_;
  }

  address_space& space_;
  const std::uint64_t buckets_;
};

// With a key: what it has; with a key and a value: puts that. Without: a thousand pairs there and
// back.
static task<> run(table& t, std::span<char*> words) {
  if (words.size() == 2) {
    if (auto r = co_await t.put(words[0], words[1]); !r) co_return r;
    co_return co_await t.sync();
  }
  if (words.size() == 1) {
    const result<std::string> value = co_await t.get(words[0]);
    if (!value) co_return fail(value.error());
    std::puts(value->c_str());
    co_return result<>{};
  }
  for (int i = 0; i < 1000; ++i) {
    const std::string number = std::to_string(i);
    if (auto r = co_await t.put("key" + number, number); !r) co_return r;
  }
  if (auto r = co_await t.sync(); !r) co_return r;
  for (int i = 0; i < 1000; ++i) {
    const std::string number = std::to_string(i);
    const result<std::string> value = co_await t.get("key" + number);
    if (!value) co_return fail(value.error());
    if (*value != number) co_return fail(EIO);
  }
  co_return result<>{};
}

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    return std::fputs("usage: key_value FILE [KEY [VALUE]]\n", stderr), 2;
  }
  auto cache = page_cache::create({.bytes = 16 << 20});
  auto file = file_device::open(argv[1], {});
  if (!cache || !file) return std::fprintf(stderr, "%s: cannot be opened\n", argv[1]), 1;
  address_space space(**cache, **file, {.block_bytes = (*file)->limits().logical_block_bytes});
  table t(space);
  const auto words = std::span(argv, static_cast<std::size_t>(argc)).subspan(2);
  const result<> done = sync_wait(run(t, words));
  if (!done) return std::fprintf(stderr, "%s\n", done.error().message().c_str()), 1;
}
