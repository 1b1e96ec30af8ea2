// Writing an `.idx` from flat arrays, byte for byte as Megatron's builder would, in memory that does not grow with it.
//
// Lengths go to their place in the file as they come. Pointers and document indices follow from them, so finish()
// reads the lengths back a piece at a time and writes the two other arrays beside them, on several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "../common/index_file.h"
#include "../common/index_format.h"

namespace corpus_index {

class IndexWriter {
 public:
  // Throws FormatError for an unknown dtype code, FileError when the file cannot be made.
  IndexWriter(const std::string& path, std::uint8_t code);

  // One entry for each document: its tokens, all one sequence. 0 is an empty document, which has no sequence and
  // repeats the document index, as in Megatron's preprocess_data.py. Throws FormatError, and takes nothing, when a
  // length is negative or the `.bin` would pass 2^63 - 1 bytes.
  void add(const std::int32_t* lengths, std::size_t count);

  // The file is whole after this, and no more can be added.
  void finish(unsigned threads);

  std::uint64_t sequences() const { return sequences_; }
  std::uint64_t documents() const { return sequences_ + empty_; }
  std::uint64_t tokens() const { return tokens_; }

 private:
  // Empty documents that follow one another: how many there are up to here, and the sequences before them.
  struct Gap {
    std::uint64_t sequence, empty_so_far;
  };

  void check(const std::int32_t* lengths, std::size_t count) const;
  void flush();
  void write_pointers(const Layout& at, std::size_t piece) const;
  void write_documents(const Layout& at, std::size_t piece) const;
  void write_tail(const Layout& at) const;

  std::mutex mutex_;  // callers hold no GIL
  File file_;
  std::uint8_t code_;
  std::uint64_t item_size_;
  std::uint64_t sequences_ = 0, tokens_ = 0, empty_ = 0;
  bool finished_ = false;
  std::vector<std::int32_t> buffer_;
  std::vector<std::uint64_t> piece_tokens_;  // tokens before each piece of the file
  std::vector<Gap> gaps_;
};

}  // namespace corpus_index
