#include "index_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "index_format.h"

namespace corpus_index {

static_assert(sizeof(off_t) == 8, "files beyond 2 GiB");

File File::open(const std::string& path) {
  // Without O_NONBLOCK opening a pipe would already wait for its writer.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw FileError(errno, path);
  File file(path, descriptor);
  struct stat status{};
  if (fstat(file.descriptor_, &status) != 0) throw FileError(errno, path);
  if (!S_ISREG(status.st_mode)) throw FormatError("is no regular file");
  return file;
}

File File::create(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) throw FileError(errno, path);
  return File(path, descriptor);
}

File::File(File&& other) noexcept : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void File::close() {
  if (::close(std::exchange(descriptor_, -1)) != 0) throw FileError(errno, path_);
}

std::uint64_t File::size() const {
  struct stat status{};
  if (fstat(descriptor_, &status) != 0) throw FileError(errno, path_);
  return static_cast<std::uint64_t>(status.st_size);
}

void File::read(void* data, std::size_t size, std::uint64_t offset) const {
  auto* to = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t done = ::pread(descriptor_, to, size, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) throw FileError(errno, path_);
    if (done == 0) throw FormatError("truncated: it ends at byte " + std::to_string(offset));
    to += done;
    size -= static_cast<std::size_t>(done);
    offset += static_cast<std::uint64_t>(done);
  }
}

void File::write(const void* data, std::size_t size, std::uint64_t offset) const {
  const auto* from = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t done = ::pwrite(descriptor_, from, size, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) throw FileError(errno, path_);
    from += done;
    size -= static_cast<std::size_t>(done);
    offset += static_cast<std::uint64_t>(done);
  }
}

}  // namespace corpus_index
