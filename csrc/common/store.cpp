#include "store.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <new>

namespace curriculum {
namespace {

constexpr std::size_t fewest_sort_rows = 16;
constexpr std::size_t huge_page = std::size_t{1} << 21;

}  // namespace

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Buffer::~Buffer() { std::free(data_); }

void Buffer::resize(std::size_t bytes) {
  void* moved = std::realloc(data_, std::max<std::size_t>(bytes, 1));
  if (!moved) throw std::bad_alloc();
  data_ = moved;
  bytes_ = bytes;
#ifdef MADV_HUGEPAGE
  if (bytes > 8 * huge_page) {  // a partition writes to thousands of places in turn: fewer pages, fewer misses
    const auto first = (reinterpret_cast<std::uintptr_t>(data_) + huge_page - 1) / huge_page * huge_page;
    const auto last = reinterpret_cast<std::uintptr_t>(data_) + bytes;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
}

std::size_t Memory::sort_rows(std::size_t row_bytes) const {
  return std::max(fewest_sort_rows, static_cast<std::size_t>(free() / 8 * 7) / row_bytes);
}

std::uint64_t ScratchFile::append(const void* data, std::size_t bytes) {
  if (!file_) {
    file_.emplace(corpus_index::File::create(path_));
    if (::unlink(path_.c_str()) != 0) throw corpus_index::FileError(errno, path_);
  }
  const std::uint64_t offset = end_;
  file_->write(data, bytes, offset);
  end_ += bytes;
  return offset;
}

Store::Store(Memory& memory, ScratchFile& scratch, std::uint64_t expected)
    : memory_(memory), scratch_(scratch), resident_(memory.fits(expected * sizeof(Entry))) {
  const std::uint64_t capacity = resident_ ? expected : std::min<std::uint64_t>(expected, piece_rows);
  tail_capacity_ = std::max<std::size_t>(1, static_cast<std::size_t>(capacity));
  accounted_ = tail_capacity_ * sizeof(Entry);
  buffer_ = memory_.take(accounted_);
  tail_ = buffer_.as<Entry>();
  offset_ = scratch_.size();
}

Store::Store(Memory& memory, ScratchFile& scratch, Buffer rows, std::uint64_t size)
    : memory_(memory),
      scratch_(scratch),
      resident_(memory.fits(size * sizeof(Entry))),
      buffer_(std::move(rows)),
      tail_(buffer_.as<Entry>()),
      tail_rows_(static_cast<std::size_t>(size)),
      offset_(scratch.size()) {
  finish();
}

Store::~Store() { memory_.give_back(std::move(buffer_)); }

void Store::account() {
  memory_.release(accounted_);
  accounted_ = buffer_.bytes();
  memory_.hold(accounted_);
}

void Store::make_room() {
  if (resident_) {
    tail_capacity_ += tail_capacity_ / 4 + 1024;
    buffer_.resize(tail_capacity_ * sizeof(Entry));
    tail_ = buffer_.as<Entry>();
    account();
    return;
  }
  scratch_.append(tail_, tail_rows_ * sizeof(Entry));
  written_ += tail_rows_;
  tail_rows_ = 0;
}

void Store::finish() {
  if (!resident_ && tail_rows_) make_room();
  buffer_.resize(resident_ ? tail_rows_ * sizeof(Entry) : 0);
  tail_ = nullptr;
  account();
}

void Store::read(std::uint64_t first, std::size_t count, Entry* rows) const {
  if (resident_)
    std::copy_n(buffer_.as<Entry>() + first, count, rows);
  else
    scratch_.read(rows, count * sizeof(Entry), offset_ + first * sizeof(Entry));
}

std::pair<const Entry*, std::size_t> Reader::from(std::uint64_t row) {
  if (store_->resident()) return {store_->rows() + row, static_cast<std::size_t>(store_->size() - row)};
  if (row < first_ || row >= first_ + rows_.size()) {
    rows_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(piece_, store_->size() - row)));
    store_->read(row, rows_.size(), rows_.data());
    first_ = row;
  }
  const auto skipped = static_cast<std::size_t>(row - first_);
  return {rows_.data() + skipped, rows_.size() - skipped};
}

}  // namespace curriculum
