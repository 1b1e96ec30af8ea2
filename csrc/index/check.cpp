#include "check.h"

#include <algorithm>
#include <array>
#include <vector>

#include "../common/index_file.h"
#include "../common/parallel.h"

namespace corpus_index {

namespace {

constexpr std::size_t piece_rows = std::size_t{1} << 18;

struct Piece {
  std::uint64_t tokens = 0;
  bool contiguous = true;
  std::string error;
};

Header read_header(const File& file) {
  std::array<unsigned char, header_size> raw{};
  const std::uint64_t size = file.size();
  file.read(raw.data(), static_cast<std::size_t>(std::min<std::uint64_t>(size, raw.size())), 0);
  if (size < raw.size() && size >= 9) throw FormatError("truncated in its header (" + std::to_string(size) + " bytes)");
  const Header header = decode(raw);
  const std::uint64_t expected = layout(header).file_size;
  if (size < expected)
    throw FormatError("truncated, has " + std::to_string(size) + " bytes where its header needs " +
                      std::to_string(expected));
  if (header.sequences > 0 && size - expected == header.sequences)
    throw FormatError("carries a mode for each sequence (multimodal); only text corpora can be read");
  if (size > expected) throw FormatError("has " + std::to_string(size - expected) + " trailing bytes after the index");
  return header;
}

std::string wrong_sequence(std::uint64_t sequence, std::int32_t length, std::int64_t pointer, std::uint64_t bin_size) {
  return "sequence " + std::to_string(sequence) + " has length " + std::to_string(length) + " and pointer " +
         std::to_string(pointer) + ", which is impossible in a .bin of " + std::to_string(bin_size) + " bytes";
}

struct Index {
  const File& file;
  Header header;
  Layout at;
  std::uint64_t item_size, bin_size;
};

bool fits(std::int32_t length, std::int64_t pointer, const Index& index) {
  if (length < 0 || pointer < 0) return false;
  const auto start = static_cast<std::uint64_t>(pointer);
  const auto size = static_cast<std::uint64_t>(length) * index.item_size;
  return start % index.item_size == 0 && start <= index.bin_size && size <= index.bin_size - start;
}

void check_sequences(const Index& index, std::uint64_t first, Piece& piece) {
  const auto rows = static_cast<std::size_t>(std::min<std::uint64_t>(piece_rows, index.header.sequences - first));
  const bool is_last = first + rows == index.header.sequences;
  std::vector<std::int32_t> lengths(rows);
  std::vector<std::int64_t> pointers(rows + 1);
  index.file.read(lengths.data(), 4 * rows, index.at.lengths + 4 * first);
  // One pointer more, the beginning of the next piece, to see whether the sequences follow one another.
  index.file.read(pointers.data(), 8 * (rows + (is_last ? 0 : 1)), index.at.pointers + 8 * first);
  if (is_last) pointers[rows] = static_cast<std::int64_t>(index.bin_size);
  piece.contiguous = first != 0 || pointers[0] == 0;
  for (std::size_t i = 0; i < rows; ++i) {
    if (!fits(lengths[i], pointers[i], index)) {
      piece.error = wrong_sequence(first + i, lengths[i], pointers[i], index.bin_size);
      return;
    }
    const auto length = static_cast<std::uint64_t>(lengths[i]);
    piece.tokens += length;
    piece.contiguous &= static_cast<std::uint64_t>(pointers[i]) + length * index.item_size ==
                        static_cast<std::uint64_t>(pointers[i + 1]);
  }
}

void check_documents(const Index& index, std::uint64_t first, Piece& piece) {
  const std::uint64_t all = index.header.document_indices;
  const auto rows = static_cast<std::size_t>(std::min<std::uint64_t>(piece_rows, all - first));
  // One entry more at the front, the end of the piece before.
  const std::size_t before = first == 0 ? 0 : 1;
  std::vector<std::int64_t> entries(rows + before);
  index.file.read(entries.data(), 8 * entries.size(), index.at.documents + 8 * (first - before));
  const auto last = static_cast<std::int64_t>(index.header.sequences);
  if ((first == 0 && entries.front() != 0) || (first + rows == all && entries.back() != last)) {
    piece.error = "document indices must go from 0 to " + std::to_string(last);
    return;
  }
  const auto falling = std::is_sorted_until(entries.begin(), entries.end());
  if (falling != entries.end())
    piece.error = "document index " +
                  std::to_string(first - before + static_cast<std::uint64_t>(falling - entries.begin())) +
                  " is below the one before it";
}

std::size_t pieces_of(std::uint64_t rows) {
  return static_cast<std::size_t>(rows / piece_rows + (rows % piece_rows != 0 ? 1 : 0));
}

}  // namespace

Header check_header(const std::string& path) { return read_header(File::open(path)); }

Summary check_index(const std::string& path, std::uint64_t bin_size, unsigned threads) {
  const File file = File::open(path);
  const Header header = read_header(file);
  if (header.document_indices == 0)
    throw FormatError("document indices must go from 0 to " + std::to_string(header.sequences));
  const Index index{file, header, layout(header), item_size(header.code), bin_size};
  const std::size_t of_sequences = pieces_of(header.sequences);
  std::vector<Piece> pieces(of_sequences + pieces_of(header.document_indices));
  curriculum::parallel_for(pieces.size(), threads, [&](std::size_t i) {
    if (i < of_sequences)
      check_sequences(index, i * piece_rows, pieces[i]);
    else
      check_documents(index, (i - of_sequences) * piece_rows, pieces[i]);
  });
  Summary summary{header, 0, header.sequences > 0 || bin_size == 0};
  for (const Piece& piece : pieces) {
    if (!piece.error.empty()) throw FormatError(piece.error);
    summary.tokens += piece.tokens;
    summary.contiguous &= piece.contiguous;
  }
  return summary;
}

}  // namespace corpus_index
