// data_tools._curriculum: the builder of a phase's order. A wrong value raises ValueError, what the system refuses
// OSError with errno and file name; the GIL is free while it works.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "algorithm1.h"
#include "../common/file_errors.h"
#include "packing_bindings.h"

namespace py = pybind11;
using namespace curriculum;

using WithoutGil = py::call_guard<py::gil_scoped_release>;
// No forcecast: a 64-bit length must not be cut to 32 bits in silence.
using Lengths = py::array_t<std::int32_t, py::array::c_style>;
using Scores = py::array_t<double, py::array::c_style>;
using GroupCounts = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t>;

void add(Builder& builder, std::uint64_t first, const Lengths& lengths, const std::optional<Scores>& scores,
         bool drop_missing) {
  const auto size = static_cast<std::size_t>(lengths.size());
  if (scores && static_cast<std::size_t>(scores->size()) != size)
    throw std::invalid_argument(std::to_string(scores->size()) + " scores for " + std::to_string(size) + " lengths");
  const std::int32_t* lengths_data = lengths.data();
  const double* scores_data = scores ? scores->data() : nullptr;
  const py::gil_scoped_release release;
  builder.add(first, lengths_data, scores_data, size, drop_missing);
}

using SpanCounts = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t, double, double>;

std::vector<SpanCounts> measure(Builder& builder, const std::vector<std::pair<std::uint64_t, std::uint64_t>>& spans,
                                bool by_tokens) {
  std::vector<Span> wanted;
  for (const auto& [first, last] : spans) wanted.push_back({first, last});
  const py::gil_scoped_release release;
  std::vector<SpanCounts> found;
  for (const Measured& one : builder.last().measure(wanted, by_tokens))
    found.emplace_back(one.documents, one.tokens, one.begin, one.end, one.lowest, one.highest);
  return found;
}

std::vector<GroupCounts> groups(const Builder& builder, std::size_t number) {
  std::vector<GroupCounts> counts;
  for (const Group& group : builder.dataset(number).groups())
    counts.emplace_back(group.documents, group.tokens, group.corpus_documents, group.corpus_tokens);
  return counts;
}

// Each as u64[datasets, buckets].
std::pair<py::array, py::array> interleave_all(Builder& builder, const std::string& folder, bool by_tokens,
                                               double perturb, std::uint64_t buckets, std::size_t window_rows,
                                               const std::function<void(std::uint64_t)>& progress) {
  // The callback takes the GIL; Python's exceptions, also of an interrupt, end the work.
  const auto called = [&](std::uint64_t rows) {
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (progress) progress(rows);
  };
  Profile profile;
  {
    const py::gil_scoped_release release;
    profile = builder.interleave(folder, by_tokens, perturb, buckets, window_rows, called);
  }
  const auto table = [&](const std::vector<std::uint64_t>& values) {
    const auto width = static_cast<py::ssize_t>(profile.buckets);
    const auto height = static_cast<py::ssize_t>(profile.buckets ? values.size() / profile.buckets : 0);
    return py::array_t<std::uint64_t>({height, width}, values.data());
  };
  return {table(profile.tokens), table(profile.quality)};
}

PYBIND11_MODULE(_curriculum, module) {
  module.doc() = "Algorithm 1 of arXiv 2512.07612, selection and repetition; see csrc/curriculum/algorithm1.h";
  module.attr("MOST_COPIES") = most_copies - 1;
  raise_file_errors();
  py::class_<Builder>(module, "Builder", "One phase: datasets one after the other, then interleave")
      .def(py::init<const std::string&, std::uint64_t, bool, unsigned>(), py::arg("folder"), py::kw_only(),
           py::arg("memory"), py::arg("shuffle"), py::arg("threads") = 1)
      .def("begin", &Builder::begin, py::kw_only(), py::arg("scored"), py::arg("choice_seed"), py::arg("order_seed"),
           py::arg("expected") = 0, "Start the next dataset, of about `expected` documents", WithoutGil())
      .def("add", &add, py::arg("first"), py::arg("lengths").noconvert(), py::arg("scores").noconvert().none(true),
           py::arg("drop_missing") = false,
           "Documents first, first + 1, ... of the last dataset: int32 tokens, float64 scores (NaN: missing) or None")
      .def_property_readonly("missing", [](const Builder& builder) { return builder.last().missing(); },
                             "Missing scores of the last dataset so far")
      .def_property_readonly("rows", [](const Builder& builder) { return builder.last().rows(); },
                             "Rows of the last dataset: those added, or those kept")
      .def_property_readonly("tokens", [](const Builder& builder) { return builder.last().tokens(); }, "Their tokens")
      .def("keep", [](Builder& builder, std::uint64_t first, std::uint64_t last) { builder.last().keep(first, last); },
           py::arg("first"), py::arg("last"), "Of a scored dataset: sort it and keep ranks [first, last), ascending",
           WithoutGil())
      .def_property_readonly("weight", [](const Builder& builder) { return builder.last().weight(); },
                             "Their tokens before a choice, where an empty document counts one")
      .def("keep_tokens",
           [](Builder& builder, std::uint64_t first, std::uint64_t last) { builder.last().keep_tokens({first, last}); },
           py::arg("first"), py::arg("last"),
           "Of a scored dataset: sort it and keep rows that end in (first, last] of its weight, ascending", WithoutGil())
      .def("measure", &measure, py::arg("spans"), py::arg("by_tokens") = false,
           "Of a scored dataset, which is empty after this: (documents, tokens, begin, end, lowest, highest score) of "
           "each span, [first, last) of its ranks or (first, last] of its weight")
      .def("keep_random", [](Builder& builder, std::uint64_t count) { builder.last().keep_random(count); },
           py::arg("count"), "Keep this many, those with the lowest draws", WithoutGil())
      .def("repeat",
           [](Builder& builder, std::size_t dataset, std::uint64_t whole, double probability) {
             builder.complete(dataset).repeat(whole, probability);
           },
           py::arg("dataset"), py::arg("whole"), py::arg("probability") = 0.0,
           "Take every row `whole` times, and once more with this chance; put the copies in order", WithoutGil())
      .def("repeat_to",
           [](Builder& builder, std::size_t dataset, std::uint64_t whole, std::uint64_t extra_tokens) {
             builder.complete(dataset).repeat_to(whole, extra_tokens);
           },
           py::arg("dataset"), py::arg("whole"), py::arg("extra_tokens"),
           "As repeat, but once more as few rows, in the order of a hash, as hold these tokens", WithoutGil())
      .def("count", [](const Builder& builder, std::size_t dataset) {
             return std::make_pair(builder.dataset(dataset).rows(), builder.dataset(dataset).tokens());
           }, py::arg("dataset"), "(rows, tokens) that a dataset gives")
      .def("groups", &groups, py::arg("dataset"),
           "(documents, tokens, corpus documents, corpus tokens) of each tenth by score, or of all when unscored")
      .def("interleave", &interleave_all, py::arg("folder"), py::kw_only(), py::arg("by_tokens") = false,
           py::arg("perturb") = 0.0, py::arg("buckets") = 50, py::arg("window_rows") = 0, py::arg("progress") = nullptr,
           "Write order.bin, tokens.bin and checks.bin; returns tokens and sums of tokens * (2 * percentile + 1) of each "
           "dataset in each bucket of the phase's tokens");
  bind_packing(module);
}
