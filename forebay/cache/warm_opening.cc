// What happens to what a warm store's file holds before this run takes it over.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "forebay/cache/warm_parts.h"
#include "forebay/os/file.h"

namespace forebay {
namespace {

constexpr std::uint64_t records_at = 73 * page_bytes;

constexpr std::uint64_t data_at(std::uint32_t frames) noexcept {
  return round_up(records_at + std::uint64_t{frames} * sizeof(std::uint64_t),
                  std::uint64_t{kept_memory::alignment});
}

std::string pages_text(std::uint64_t n) { return fmt::format("{} page{}", n, n == 1 ? "" : "s"); }

constexpr const char* put_back_or_discard =
    "put it back as it was, or give up what was written to it with --warm-discard";

}  // namespace

// Works on a copy of what the file says until it is all judged. A member that returns a text has
// failed, and that is why.
class warm_store::opening {
 public:
  using problem = std::optional<std::string>;

  opening(const options& opts, kept_memory file) : opts_(opts), file_(std::move(file)) {}

  std::expected<std::unique_ptr<warm_store>, std::string> run() {
    bool fresh = false;
    if (auto p = read_header(fresh)) return std::unexpected(*p);
    fresh = fresh || opts_.discard;
    const std::uint32_t frames = arena::frames_of(opts_.cache_bytes);
    if (!fresh) {
      if (auto p = read_all()) return std::unexpected(*p);
      was_clean_ = has_.state == warm_state::clean;
      identify_images();
      if (auto p = judge_images(frames)) return std::unexpected(*p);
      for (unsigned slot = 0; slot < images_max; ++slot) {
        if (auto p = write_back_if_due(slot)) return std::unexpected(*p);
      }
      fresh = frames != has_.frames;
    }
    if (fresh) return make(frames);
    return take_over();
  }

 private:
  enum class verdict { none, keep, forget, write_back };

  // The header as it was read; plain, unlike the one in the mapping.
  struct header_copy {
    std::uint64_t magic = 0;
    std::uint32_t frames = 0;
    std::uint64_t data_offset = 0;
    warm_state state{};
  };

  struct held {
    std::uint32_t frame;
    warm_record r;
  };

  std::string damaged(std::string_view what) const {
    return fmt::format(
        "{}: damaged ({}); nothing was changed, --warm-discard forgets what it holds", opts_.path,
        what);
  }

  problem read_header(bool& fresh) {
    const auto size = file_.size_bytes();
    if (!size) return fmt::format("{}: {}", opts_.path, size.error().message());
    size_ = *size;
    fresh = size_ == 0;
    if (fresh) return std::nullopt;
    std::string foreign = fmt::format(
        "{}: not a warm cache of forebay; choose another file, or remove it", opts_.path);
    std::array<std::byte, page_bytes> raw{};
    if (size_ < raw.size() || !file_.read(0, raw)) return foreign;
    // One that was being made.
    if (std::all_of(raw.begin(), raw.end(), [](std::byte b) { return b == std::byte{0}; })) {
      fresh = size_ % kept_memory::alignment == 0;
      return fresh ? std::nullopt : problem(foreign);
    }
    header h{};
    std::memcpy(static_cast<void*>(&h), raw.data(), sizeof h);
    // relaxed: a copy
    if (h.magic.load(std::memory_order_relaxed) != header::magic_value) return foreign;
    if (opts_.discard) return std::nullopt;
    if (h.version != header::version_value) {
      return fmt::format(
          "{}: made by another version of forebay (format {}, this one knows {}); start and stop "
          "that one once, so that it writes everything back, and remove the file, or give up what "
          "it holds with --warm-discard",
          opts_.path, h.version, header::version_value);
    }
    if (h.check != h.sum() || h.page_bytes != page_bytes || h.images != images_max ||
        h.records_offset != records_at || h.data_offset != data_at(h.frames)) {
      return damaged("its header makes no sense");
    }
    if (size_ < h.data_offset + std::uint64_t{h.frames} * page_bytes) {
      return damaged("it is shorter than it was");
    }
    has_ = {h.magic.load(std::memory_order_relaxed), h.frames, h.data_offset,  // relaxed: a copy
            h.state.load(std::memory_order_relaxed)};                          // relaxed: a copy
    if (has_.state != warm_state::clean && has_.state != warm_state::in_use) {
      return damaged("its header makes no sense");
    }
    return std::nullopt;
  }

  problem read_all() {
    entries_.resize(images_max);
    words_.resize(has_.frames);
    if (!file_.read(page_bytes, std::as_writable_bytes(std::span(entries_))) ||
        !file_.read(records_at, std::as_writable_bytes(std::span(words_)))) {
      return damaged("it cannot be read");
    }
    for (const image_entry& e : entries_) {
      if (e.in_use > 1 || (e.in_use == 1 && (e.path[0] == '\0' || e.path[path_max] != '\0'))) {
        return damaged("its list of images makes no sense");
      }
    }
    for (std::uint32_t frame = 0; frame < has_.frames; ++frame) {
      if (words_[frame] == 0) continue;
      const warm_record r = warm_record::of(words_[frame]);
      const bool known = r.image < images_max && entries_[r.image].in_use == 1;
      if (r.word() != words_[frame] || !known || r.valid == 0 || (r.dirty & ~r.valid) != 0 ||
          (allowed(entries_[r.image].identity, r.index) & r.valid) != r.valid) {
        return damaged(fmt::format("the record of frame {} makes no sense", frame));
      }
      believe_dirty_only(frame, r);
      if (words_[frame] == 0) continue;
      counts_[r.image].pages += 1;
      counts_[r.image].dirty += r.dirty != 0 ? 1 : 0;
    }
    return std::nullopt;
  }

  // Blocks of a page that an image has.
  static unsigned allowed(const file_identity& of, std::uint64_t index) noexcept {
    if (of.size_bytes == 0) return warm_record::all_blocks;  // a block device: the space knows
    const std::uint64_t at = index << page_shift;
    if (at >= of.size_bytes) return 0;
    return warm_record::blocks(0, std::min<std::uint64_t>(page_bytes, of.size_bytes - at));
  }

  // Where a discard was under way the device may have changed below what is clean.
  void believe_dirty_only(std::uint32_t frame, warm_record r) noexcept {
    const std::uint64_t at = r.index << page_shift;
    for (const auto& d : entries_[r.image].discards) {
      if (d.end <= at || d.from >= at + page_bytes) continue;
      r.valid = r.dirty;
    }
    words_[frame] = r.valid == 0 ? 0 : r.word();
  }

  void identify_images() {
    slots_.assign(opts_.images.size(), images_max);
    for (std::size_t i = 0; i < opts_.images.size(); ++i) {
      const auto id = identity_of(opts_.images[i].path);
      if (!id) continue;  // whoever opens it says why
      for (unsigned slot = 0; slot < images_max; ++slot) {
        if (entries_[slot].in_use == 0 || !entries_[slot].identity.same_file(*id)) continue;
        slots_[i] = slot;
        now_[slot] = *id;
        served_as_[slot] = &opts_.images[i];
      }
    }
  }

  problem judge_images(std::uint32_t frames) {
    for (unsigned slot = 0; slot < images_max; ++slot) {
      const image_entry& e = entries_[slot];
      if (e.in_use == 0) continue;
      const bool dirty = counts_[slot].dirty != 0;
      const std::string path = e.path_text();
      const std::string unwritten = fmt::format("{}: {} of {} not written back yet", opts_.path,
                                                pages_text(counts_[slot].dirty), path);
      const image_options* const served = served_as_[slot];
      if (served == nullptr) {
        const auto id = identity_of(path);
        if (dirty && (!id || !id->same_file(e.identity))) {
          return fmt::format("{}, and {}; {}", unwritten,
                             id ? "that is another file now" : id.error().message(),
                             put_back_or_discard);
        }
        if (id) now_[slot] = *id;
        verdicts_[slot] = dirty ? verdict::write_back : verdict::forget;
      } else if (dirty && served->read_only) {
        return fmt::format("{}; serve it without --read-only", unwritten);
      } else {
        const bool same = frames == has_.frames && served->block_bytes == e.block_bytes;
        verdicts_[slot] = same ? verdict::keep : dirty ? verdict::write_back : verdict::forget;
      }
      if (auto p = judge_size(slot, unwritten)) return p;
      if (auto p = judge_time(slot, unwritten)) return p;
    }
    return std::nullopt;
  }

  // What lies beyond the end of an image that has become shorter.
  problem judge_size(unsigned slot, const std::string& unwritten) {
    if (now_[slot].size_bytes >= entries_[slot].identity.size_bytes) return std::nullopt;
    if (verdicts_[slot] == verdict::forget) return std::nullopt;
    for (std::uint64_t& word : words_) {
      warm_record r = warm_record::of(word);
      if (word == 0 || r.image != slot) continue;
      const unsigned inside = allowed(now_[slot], r.index);
      if ((r.dirty & ~inside) != 0) {
        return fmt::format("{}, and it is shorter now than some of them; {}", unwritten,
                           put_back_or_discard);
      }
      r.valid &= inside;
      word = r.valid == 0 ? 0 : r.word();
    }
    return std::nullopt;
  }

  // An image that was left in order and is not as it was left has been somebody else's meanwhile.
  problem judge_time(unsigned slot, const std::string& unwritten) {
    const bool touched =
        was_clean_ && now_[slot].modified_ns != entries_[slot].identity.modified_ns;
    if (!touched || verdicts_[slot] == verdict::forget) return std::nullopt;
    if (counts_[slot].dirty != 0) {
      return fmt::format("{}, and it was changed by somebody else since; {}", unwritten,
                         put_back_or_discard);
    }
    remarks_.push_back(fmt::format("{} was changed by somebody else since: {} of it forgotten",
                                   entries_[slot].path_text(), pages_text(counts_[slot].pages)));
    verdicts_[slot] = verdict::forget;
    return std::nullopt;
  }

  // The pages of an image in order; two of one place must be the same.
  std::expected<std::vector<held>, std::string> pages_of(unsigned slot) {
    std::vector<held> all;
    for (std::uint32_t frame = 0; frame < has_.frames; ++frame) {
      const warm_record r = warm_record::of(words_[frame]);
      if (words_[frame] != 0 && r.image == slot) all.push_back({frame, r});
    }
    std::sort(all.begin(), all.end(),
              [](const held& a, const held& b) { return a.r.index < b.r.index; });
    for (std::size_t i = 1; i < all.size(); ++i) {
      const held& a = all[i - 1];
      const held& b = all[i];
      if (a.r.index != b.r.index) continue;
      std::array<std::byte, page_bytes> x{};
      std::array<std::byte, page_bytes> y{};
      if (((a.r.word() ^ b.r.word()) & ~warm_record::hot_bit) != 0 ||
          !file_.read(offset_of(a.frame), x) || !file_.read(offset_of(b.frame), y) || x != y) {
        return std::unexpected(
            damaged(fmt::format("frames {} and {} claim to be the same page", a.frame, b.frame)));
      }
    }
    return all;
  }

  std::uint64_t offset_of(std::uint32_t frame) const noexcept {
    return has_.data_offset + (std::uint64_t{frame} << page_shift);
  }

  problem write_back_if_due(unsigned slot) {
    if (verdicts_[slot] != verdict::write_back) return std::nullopt;
    const std::string path =
        served_as_[slot] != nullptr ? served_as_[slot]->path : entries_[slot].path_text();
    const auto pages = pages_of(slot);
    if (!pages) return pages.error();
    const auto failed = [&](std::error_code e) {
      return fmt::format("{}: {} of {} cannot be written back ({}); nothing is lost, try again",
                         opts_.path, pages_text(counts_[slot].dirty), path, e.message());
    };
    auto image = block_file::open(path, {.direct = false});
    if (!image) return failed(image.error());
    for (const held& h : *pages) {
      if (h.r.dirty == 0) continue;
      if (auto r = write_page(*image, h); !r) return failed(r.error());
      ++written_back_;
    }
    if (auto r = image->sync(); !r) return failed(r.error());
    remarks_.push_back(fmt::format("{} of {} written back from the run before this one",
                                   pages_text(counts_[slot].dirty), path));
    verdicts_[slot] = verdict::forget;
    return std::nullopt;
  }

  result<> write_page(const block_file& image, const held& h) const {
    std::array<std::byte, page_bytes> data{};
    if (auto r = file_.read(offset_of(h.frame), data); !r) return r;
    constexpr unsigned blocks = page_bytes / warm_record::block_bytes;
    for (unsigned first = 0; first < blocks;) {
      unsigned end = first;
      while (end < blocks && (h.r.dirty >> end & 1) != 0) ++end;
      if (end == first) {
        ++first;
        continue;
      }
      const std::size_t from = std::size_t{first} * warm_record::block_bytes;
      iovec part{data.data() + from, std::size_t{end - first} * warm_record::block_bytes};
      if (auto r = image.write({&part, 1}, (h.r.index << page_shift) + from, 0); !r) return r;
      first = end;
    }
    return {};
  }

  std::string no_room(std::error_code e) const {
    if (e == std::errc::no_space_on_device) {
      return fmt::format(
          "{}: its file system has no room for a cache of {} MiB; choose a smaller "
          "--cache or make it larger (mount -o remount,size=)",
          opts_.path, opts_.cache_bytes >> 20);
    }
    return fmt::format("{}: {}", opts_.path, e.message());
  }

  std::expected<std::unique_ptr<warm_store>, std::string> make(std::uint32_t frames) {
    const std::uint64_t offset = data_at(frames);
    if (auto r = file_.make(offset + std::uint64_t{frames} * page_bytes); !r) {
      return std::unexpected(no_room(r.error()));
    }
    entries_.assign(images_max, image_entry{});
    slots_.assign(opts_.images.size(), images_max);
    words_.assign(frames, 0);
    has_ = {.frames = frames, .data_offset = offset};
    auto store = mapped();
    if (!store) return store;
    header& h = *(*store)->header_;
    h.version = header::version_value;
    h.page_bytes = page_bytes;
    h.frames = frames;
    h.images = images_max;
    h.records_offset = records_at;
    h.data_offset = offset;
    h.check = h.sum();
    h.state.store(warm_state::in_use);
    if (auto p = name_images(**store)) return std::unexpected(*p);
    h.magic.store(header::magic_value);
    return store;
  }

  std::expected<std::unique_ptr<warm_store>, std::string> take_over() {
    auto store = mapped();
    if (!store) return store;
    warm_store& s = **store;
    for (std::uint32_t frame = 0; frame < has_.frames; ++frame) {
      const std::uint64_t word = words_[frame];
      const bool kept = word != 0 && verdicts_[warm_record::of(word).image] == verdict::keep;
      if (word != 0 && !kept) ++s.statistics_.dropped_pages;
      const std::uint64_t now = kept ? word : 0;
      // relaxed, both: nobody else is there yet
      if (s.records_[frame].load(std::memory_order_relaxed) == now) continue;
      s.records_[frame].store(now, std::memory_order_relaxed);  // relaxed: as above
    }
    // What no record names any more.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    for (unsigned slot = 0; slot < images_max; ++slot) {
      if (verdicts_[slot] == verdict::forget) s.entries_[slot].in_use = 0;
      for (auto& d : s.entries_[slot].discards) d = {};
    }
    for (unsigned& slot : slots_) {
      if (slot != images_max && verdicts_[slot] != verdict::keep) slot = images_max;
    }
    s.statistics_.was_clean = was_clean_;
    if (auto p = name_images(s)) return std::unexpected(*p);
    return store;
  }

  std::expected<std::unique_ptr<warm_store>, std::string> mapped() {
    std::unique_ptr<warm_store> s(new warm_store(std::move(file_), opts_.path, has_.data_offset));
    const auto head = s->file_.map_head(has_.data_offset);
    if (!head) return std::unexpected(no_room(head.error()));
    s->header_ = reinterpret_cast<header*>(head->data());
    s->entries_ = reinterpret_cast<image_entry*>(head->data() + page_bytes);
    s->records_ = {reinterpret_cast<std::atomic<std::uint64_t>*>(head->data() + records_at),
                   has_.frames};
    s->remarks_ = std::move(remarks_);
    s->statistics_.written_back_pages = written_back_;
    return s;
  }

  // Gives each image of this run its entry.
  problem name_images(warm_store& s) {
    s.slots_ = slots_;
    for (std::size_t i = 0; i < opts_.images.size(); ++i) {
      const image_options& o = opts_.images[i];
      const auto id = identity_of(o.path);
      if (!id) return fmt::format("{}: {}", o.path, id.error().message());
      if (id->size_bytes > (warm_record::index_max << page_shift) || o.path.size() > path_max) {
        return fmt::format("{}: too large an image for --warm, or too long a path", o.path);
      }
      unsigned& slot = s.slots_[i];
      if (slot == images_max) {
        slot = 0;
        while (slot < images_max && s.entries_[slot].in_use != 0) ++slot;
        if (slot == images_max) {
          return fmt::format("--warm: at most {} images; serve the others without", images_max);
        }
      }
      image_entry& e = s.entries_[slot];
      e.identity = *id;
      e.block_bytes = o.block_bytes;
      std::memcpy(e.path.data(), o.path.c_str(), o.path.size() + 1);
      std::atomic_signal_fence(std::memory_order_seq_cst);
      e.in_use = 1;
    }
    return std::nullopt;
  }

  const options& opts_;
  kept_memory file_;
  std::uint64_t size_ = 0;
  header_copy has_;
  bool was_clean_ = false;
  std::vector<image_entry> entries_;
  std::vector<std::uint64_t> words_;
  struct count {
    std::uint64_t pages = 0;
    std::uint64_t dirty = 0;
  };
  std::array<count, images_max> counts_{};
  std::array<verdict, images_max> verdicts_{};
  std::array<file_identity, images_max> now_{};
  std::array<const image_options*, images_max> served_as_{};
  std::vector<unsigned> slots_;  // images_max: none yet
  std::vector<std::string> remarks_;
  std::uint64_t written_back_ = 0;
};

std::expected<std::unique_ptr<warm_store>, std::string> warm_store::open(const options& opts) {
  static_assert(page_bytes + sizeof(image_entry) * images_max <= records_at);
  static_assert(sizeof(header) <= page_bytes);
  auto file = kept_memory::open(opts.path, opts.wait_ns);
  if (file) return opening(opts, std::move(*file)).run();
  if (file.error() == errc::in_use) {
    return std::unexpected(fmt::format(
        "{}: in use by another server; stop that one or choose another file", opts.path));
  }
  if (file.error() == std::errc::not_supported) {
    return std::unexpected(
        fmt::format("{}: must be a file in memory, on tmpfs or hugetlbfs with 2 MiB pages, such as "
                    "/dev/shm/forebay",
                    opts.path));
  }
  return std::unexpected(fmt::format("{}: {}", opts.path, file.error().message()));
}

}  // namespace forebay
