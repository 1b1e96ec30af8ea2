// A model's file: numbers and texts one after another, and what is wrong with it.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

namespace scores {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are copied as they lie in memory");

// The file is not what the format asks for, or holds a model of a sort that is not read; the caller knows the path.
struct FormatError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Reads forward, and from anywhere. Read calls, not a map: a file that shrinks meanwhile gives an error, not SIGBUS.
class Input {
 public:
  explicit Input(const std::string& path)
      : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    struct stat status{};
    if (descriptor_ < 0 || ::fstat(descriptor_, &status) != 0) refuse();
    if (S_ISDIR(status.st_mode)) {
      errno = EISDIR;
      refuse();
    }
    size_ = S_ISREG(status.st_mode) ? static_cast<std::uint64_t>(status.st_size) : 0;
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;
  ~Input() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  std::uint64_t position = 0;
  std::uint64_t left() const { return size_ - position; }

  void read(void* data, std::uint64_t size) {
    need(size);
    auto* to = static_cast<char*>(data);
    while (size > 0) {
      if (position < start_ || position >= start_ + filled_) fill();
      const auto here = static_cast<std::size_t>(position - start_);
      const auto step = static_cast<std::size_t>(std::min<std::uint64_t>(size, filled_ - here));
      std::memcpy(to, buffer_.data() + here, step);
      to += step;
      position += step;
      size -= step;
    }
  }
  template <typename Number>
  Number number() {
    Number value;
    read(&value, sizeof(value));
    return value;
  }
  std::string text() {
    std::string value;
    for (char letter = number<char>(); letter != '\0'; letter = number<char>()) value.push_back(letter);
    return value;
  }
  void skip(std::uint64_t size) {
    need(size);
    position += size;
  }
  void need(std::uint64_t size) const {
    if (size > left()) throw FormatError("ends early: it is cut off, or its header is damaged");
  }

 private:
  void fill() {
    start_ = position;
    const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(buffer_.size(), left()));
    const ssize_t got = ::pread(descriptor_, buffer_.data(), size, static_cast<off_t>(position));
    if (got < 0) refuse();
    if (got == 0) throw FormatError("has become shorter while it was read");
    filled_ = static_cast<std::size_t>(got);
  }
  [[noreturn]] void refuse() const { throw std::system_error(errno, std::generic_category(), path_); }

  std::string path_;
  int descriptor_;
  std::uint64_t size_ = 0, start_ = 0;
  std::size_t filled_ = 0;
  std::vector<char> buffer_ = std::vector<char>(1 << 20);
};

}  // namespace scores
