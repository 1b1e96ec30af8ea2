// A file read and written at offsets. Read calls, not a map: a file that shrinks meanwhile gives an error, not SIGBUS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <system_error>

namespace corpus_index {

// The system refuses something: errno and the file.
struct FileError : std::system_error {
  FileError(int code, std::string file) : std::system_error(code, std::generic_category(), file), path(std::move(file)) {}
  std::string path;
};

class File {
 public:
  // Throws FileError. Only regular files are opened for reading: a pipe would wait for ever.
  static File open(const std::string& path);
  static File create(const std::string& path);

  File(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  std::uint64_t size() const;
  // Exactly `size` bytes; throws FormatError where the file ends before, FileError when the system refuses.
  void read(void* data, std::size_t size, std::uint64_t offset) const;
  void write(const void* data, std::size_t size, std::uint64_t offset) const;
  // Throws FileError: some file systems report only now that the disk is full.
  void close();

 private:
  File(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

  std::string path_;
  int descriptor_;
};

}  // namespace corpus_index
