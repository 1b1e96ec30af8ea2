#include "merge.h"

#include <algorithm>
#include <array>
#include <functional>

#include "check.h"
#include "../common/index_file.h"
#include "../common/parallel.h"

namespace corpus_index {

namespace {

constexpr std::size_t piece_bytes = std::size_t{1} << 21;

// Bytes of a part that go to one place of the output; `shift` is added to each of their 64-bit numbers.
struct Section {
  std::uint64_t from, to, size, shift;
};

void copy(const File& input, const File& output, const Section& section, unsigned threads) {
  const std::uint64_t pieces = section.size / piece_bytes + (section.size % piece_bytes != 0 ? 1 : 0);
  curriculum::parallel_for(static_cast<std::size_t>(pieces), threads, [&](std::size_t piece) {
    const std::uint64_t at = piece * piece_bytes;
    const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(piece_bytes, section.size - at));
    std::vector<std::uint64_t> numbers(size / 8 + 1);
    input.read(numbers.data(), size, section.from + at);
    // Unsigned, so that a file changed after its check gives wrong numbers at worst, not undefined behaviour.
    if (section.shift != 0)
      for (std::uint64_t& number : numbers) number += section.shift;
    output.write(numbers.data(), size, section.to + at);
  });
}

}  // namespace

Header joined(const std::vector<Header>& parts, const std::vector<std::uint64_t>& bin_sizes) {
  if (parts.empty()) throw FormatError("there is nothing to join");
  Header whole{parts.front().code, 0, 1};
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].code != whole.code)
      throw FormatError("dtype code " + std::to_string(parts[i].code) + " cannot be joined to " +
                        std::to_string(whole.code));
    if (parts[i].document_indices == 0) throw FormatError("part " + std::to_string(i) + " has no document index");
    whole.sequences = add(whole.sequences, parts[i].sequences, "an index");
    whole.document_indices = add(whole.document_indices, parts[i].document_indices - 1, "an index");
    bytes = add(bytes, bin_sizes[i], "tokens");
  }
  layout(whole);
  return whole;
}

Header merge_indexes(const std::string& output, const std::vector<Part>& parts, unsigned threads) {
  std::vector<Header> headers;
  std::vector<std::uint64_t> bin_sizes;
  for (const Part& part : parts) {
    headers.push_back(check_header(part.path));
    bin_sizes.push_back(part.bin_size);
  }
  const Header whole = joined(headers, bin_sizes);
  const Layout to = layout(whole);
  File file = File::create(output);
  const auto raw = encode(whole);
  file.write(raw.data(), raw.size(), 0);
  const std::uint64_t zero = 0;
  file.write(&zero, 8, to.documents);
  std::uint64_t sequences = 0, documents = 1, bytes = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const File input = File::open(parts[i].path);
    const Header& header = headers[i];
    const Layout from = layout(header);
    const std::uint64_t more = header.document_indices - 1;
    copy(input, file, {from.lengths, to.lengths + 4 * sequences, 4 * header.sequences, 0}, threads);
    copy(input, file, {from.pointers, to.pointers + 8 * sequences, 8 * header.sequences, bytes}, threads);
    copy(input, file, {from.documents + 8, to.documents + 8 * documents, 8 * more, sequences}, threads);
    sequences += header.sequences;
    documents += more;
    bytes += parts[i].bin_size;
  }
  file.close();
  return whole;
}

}  // namespace corpus_index
