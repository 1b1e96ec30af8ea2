// Megatron's `.idx`, version 1: what its header says and where its arrays lie.
//
// Little-endian, without padding: 9 bytes magic; u64 version; u8 dtype code; u64 S sequences; u64 D document indices;
// S x i32 lengths in tokens; S x i64 pointers in bytes into the `.bin`; D x i64 document indices, rising from 0 to S.
// The arrays start at byte 34 and are therefore unaligned: they are read into aligned buffers, never through a pointer
// into the file.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace corpus_index {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are copied as they lie in memory");

// The file is not what the format asks for; the message says what, the caller knows the path.
struct FormatError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

constexpr std::size_t header_size = 34;
constexpr std::uint64_t largest_offset = INT64_MAX;  // pointers and file sizes are signed

struct Header {
  std::uint8_t code;               // type of a token, see item_size
  std::uint64_t sequences;         // S
  std::uint64_t document_indices;  // D: documents + 1
};

// Where each array starts, in bytes from the beginning of the file.
struct Layout {
  std::uint64_t lengths, pointers, documents, file_size;
};

// Bytes of a token of this dtype code. Throws FormatError for a code that is unknown or not of integers.
std::uint64_t item_size(std::uint8_t code);

// Throws FormatError when the counts need a file of more than 2^63 - 1 bytes.
Layout layout(const Header& header);

std::array<unsigned char, header_size> encode(const Header& header);

// Throws FormatError naming what is wrong: magic, version or dtype code. Does not look at the size of the file.
Header decode(const std::array<unsigned char, header_size>& raw);

// a + b and a * b for sizes; FormatError, naming `what`, beyond 2^63 - 1.
std::uint64_t add(std::uint64_t a, std::uint64_t b, const char* what);
std::uint64_t multiply(std::uint64_t a, std::uint64_t b, const char* what);

}  // namespace corpus_index
