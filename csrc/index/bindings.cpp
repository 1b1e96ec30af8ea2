// data_tools._index: the `.idx` writer, checker and merger. The GIL is free while they work.
//
// A file that is not what it should be raises ValueError, whose message the caller completes with the path; what the
// system refuses raises OSError with errno and file name. Paths are bytes (os.fsencode): a file name need not be UTF-8.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "../common/file_errors.h"
#include "../common/index_format.h"
#include "merge.h"
#include "order.h"
#include "write.h"

namespace py = pybind11;
using namespace corpus_index;

// No forcecast: a 64-bit length must not be cut to 32 bits in silence.
using Lengths = py::array_t<std::int32_t, py::array::c_style>;
using Entries = py::array_t<std::uint64_t, py::array::c_style>;
using WithoutGil = py::call_guard<py::gil_scoped_release>;

// (dtype code, sequences, document indices)
using Counts = std::tuple<unsigned, std::uint64_t, std::uint64_t>;

Counts counts(const Header& header) { return {header.code, header.sequences, header.document_indices}; }

Header header_of(const Counts& values) {
  const auto& [code, sequences, document_indices] = values;
  if (code > 255) throw FormatError("unknown dtype code " + std::to_string(code));
  return {static_cast<std::uint8_t>(code), sequences, document_indices};
}

Counts joined_counts(const std::vector<std::pair<Counts, std::uint64_t>>& parts) {
  std::vector<Header> headers;
  std::vector<std::uint64_t> bin_sizes;
  for (const auto& [values, bin_size] : parts) {
    headers.push_back(header_of(values));
    bin_sizes.push_back(bin_size);
  }
  return counts(joined(headers, bin_sizes));
}

PYBIND11_MODULE(_index, module) {
  module.doc() = "Megatron's .idx, version 1: see csrc/common/index_format.h, index_write.h, index_check.h, index_merge.h";
  raise_file_errors();
  py::class_<IndexWriter>(module, "IndexWriter", "Writes an .idx from the lengths of documents, in order")
      .def(py::init<const std::string&, std::uint8_t>(), py::arg("path"), py::arg("code"))
      .def(
          "add",
          [](IndexWriter& writer, const Lengths& lengths) {
            const auto* data = lengths.data();
            const auto size = static_cast<std::size_t>(lengths.size());
            const py::gil_scoped_release release;
            writer.add(data, size);
          },
          py::arg("lengths").noconvert(), "int32[documents]: tokens of each, 0 for an empty one")
      .def("finish", &IndexWriter::finish, py::arg("threads") = 1, WithoutGil())
      .def_property_readonly("sequences", &IndexWriter::sequences)
      .def_property_readonly("documents", &IndexWriter::documents)
      .def_property_readonly("tokens", &IndexWriter::tokens);
  py::class_<OrderedWriter>(module, "OrderedWriter", "Writes the sequences of corpora in a given order, see index_order.h")
      .def(py::init([](const std::string& index, const std::string& tokens, std::uint64_t entries,
                       const std::vector<std::pair<std::string, std::string>>& corpora) {
             std::vector<OrderedWriter::Corpus> opened;
             for (const auto& [idx, bin] : corpora) opened.push_back({idx, bin});
             return std::make_unique<OrderedWriter>(index, tokens, entries, opened);
           }),
           py::arg("index"), py::arg("tokens"), py::arg("entries"), py::arg("corpora"))
      .def(
          "add",
          [](OrderedWriter& writer, const Entries& entries, unsigned threads) {
            const auto* data = entries.data();
            const auto size = static_cast<std::size_t>(entries.size());
            const py::gil_scoped_release release;
            writer.add(data, size, threads);
          },
          py::arg("entries").noconvert(), py::arg("threads") = 1, "u64[entries]: corpus << 48 | sequence")
      .def("finish", &OrderedWriter::finish, WithoutGil())
      .def_property_readonly("tokens", &OrderedWriter::tokens);
  module.def("header", [](const std::string& path) { return counts(check_header(path)); }, py::arg("path"),
             WithoutGil(), "(dtype code, sequences, document indices) of a file whose size fits them");
  module.def(
      "check",
      [](const std::string& path, std::uint64_t bin_size, unsigned threads) {
        const Summary found = check_index(path, bin_size, threads);
        return std::make_tuple(counts(found.header), found.tokens, found.contiguous);
      },
      py::arg("path"), py::arg("bin_size"), py::arg("threads") = 1, WithoutGil(),
      "(header, tokens, whether sequences follow one another from byte 0 to the end of the .bin)");
  module.def("joined", &joined_counts, py::arg("parts"), "The header of joined parts: (header, bytes of the .bin) each");
  module.def(
      "merge",
      [](const std::string& output, const std::vector<std::pair<std::string, std::uint64_t>>& inputs, unsigned threads) {
        std::vector<Part> parts;
        for (const auto& [path, bin_size] : inputs) parts.push_back({path, bin_size});
        return counts(merge_indexes(output, parts, threads));
      },
      py::arg("output"), py::arg("parts"), py::arg("threads") = 1, WithoutGil(),
      "Join checked indexes, (path, bytes of the .bin) each; returns the header");
}
