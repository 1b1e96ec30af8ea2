#include "index_format.h"

#include <cstring>

namespace corpus_index {

namespace {

constexpr unsigned char magic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0};
constexpr std::uint64_t version = 1;
constexpr std::size_t version_at = 9, code_at = 17, sequences_at = 18, documents_at = 26;

}  // namespace

std::uint64_t add(std::uint64_t a, std::uint64_t b, const char* what) {
  std::uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum) || sum > largest_offset)
    throw FormatError(std::string(what) + " of more than 2^63 - 1 bytes");
  return sum;
}

std::uint64_t multiply(std::uint64_t a, std::uint64_t b, const char* what) {
  std::uint64_t product;
  if (__builtin_mul_overflow(a, b, &product) || product > largest_offset)
    throw FormatError(std::string(what) + " of more than 2^63 - 1 bytes");
  return product;
}

std::uint64_t item_size(std::uint8_t code) {
  constexpr std::uint64_t sizes[] = {0, 1, 1, 2, 4, 8, 0, 0, 2};
  if (code == 6 || code == 7)
    throw FormatError("holds floating-point values (dtype code " + std::to_string(code) + "), not tokens");
  if (code >= std::size(sizes) || sizes[code] == 0) throw FormatError("unknown dtype code " + std::to_string(code));
  return sizes[code];
}

Layout layout(const Header& header) {
  constexpr auto what = "truncated: its header needs an index";
  Layout result{};
  result.lengths = header_size;
  result.pointers = add(result.lengths, multiply(header.sequences, 4, what), what);
  result.documents = add(result.pointers, multiply(header.sequences, 8, what), what);
  result.file_size = add(result.documents, multiply(header.document_indices, 8, what), what);
  return result;
}

std::array<unsigned char, header_size> encode(const Header& header) {
  std::array<unsigned char, header_size> raw{};
  std::memcpy(raw.data(), magic, sizeof magic);
  std::memcpy(raw.data() + version_at, &version, 8);
  raw[code_at] = header.code;
  std::memcpy(raw.data() + sequences_at, &header.sequences, 8);
  std::memcpy(raw.data() + documents_at, &header.document_indices, 8);
  return raw;
}

Header decode(const std::array<unsigned char, header_size>& raw) {
  if (std::memcmp(raw.data(), magic, sizeof magic) != 0)
    throw FormatError("does not start with Megatron's index magic; it is no .idx file");
  std::uint64_t found;
  std::memcpy(&found, raw.data() + version_at, 8);
  if (found != version) throw FormatError("index version " + std::to_string(found) + ", but only 1 can be read");
  Header header{raw[code_at], 0, 0};
  item_size(header.code);
  std::memcpy(&header.sequences, raw.data() + sequences_at, 8);
  std::memcpy(&header.document_indices, raw.data() + documents_at, 8);
  return header;
}

}  // namespace corpus_index
