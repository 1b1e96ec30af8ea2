// Writing a plain `.idx`, and if wanted its `.bin`, whose sequences are those of several corpora in a given order.
//
// Rows come a batch at a time and go to their places in the files at once: memory does not grow with the corpora. The
// result has one document a sequence, and may hold a sequence of a corpus many times.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "../common/index_file.h"
#include "../common/index_format.h"

namespace corpus_index {

class OrderedWriter {
 public:
  struct Corpus {
    std::string index, tokens;  // its `.idx` and `.bin`
  };

  // `entries` is how many will be added. With an empty `tokens` no `.bin` is written and pointers lead into that of the
  // one corpus; otherwise the sequences are copied one after another.
  // Throws FormatError when dtype codes differ, a corpus has no sound header, or an index alone is asked of several
  // corpora; FileError when the system refuses.
  OrderedWriter(const std::string& index, const std::string& tokens, std::uint64_t entries,
                const std::vector<Corpus>& corpora);

  // The next entries, each corpus << 48 | sequence. Throws FormatError for one that is in no corpus, or whose tokens
  // do not lie inside the `.bin`; the files are then of no use.
  void add(const std::uint64_t* entries, std::size_t count, unsigned threads);

  // Throws FormatError when there were not as many entries as announced.
  void finish();

  std::uint64_t tokens() const { return bytes_ / item_size_; }

 private:
  struct Opened {
    File index, tokens;
    Layout at;
    std::uint64_t sequences, token_bytes;
  };
  struct Row {
    std::size_t corpus;
    std::int32_t length;
    std::int64_t pointer;
  };

  std::vector<Row> look_up(const std::uint64_t* entries, std::size_t count, unsigned threads) const;
  Row row(std::uint64_t entry) const;
  void write_index(const std::vector<Row>& rows, const std::vector<std::uint64_t>& offsets);
  void copy_tokens(const std::vector<Row>& rows, const std::vector<std::uint64_t>& offsets, unsigned threads) const;
  void copy_piece(const std::vector<Row>& rows, std::size_t first, std::size_t last, std::uint64_t to) const;
  std::uint64_t bytes_of(const Row& row) const { return static_cast<std::uint64_t>(row.length) * item_size_; }

  std::mutex mutex_;  // callers hold no GIL
  std::vector<Opened> corpora_;
  std::uint64_t entries_, item_size_ = 0, done_ = 0, bytes_ = 0;
  Layout at_{};
  File index_;
  std::vector<File> tokens_;  // none or one
};

}  // namespace corpus_index
