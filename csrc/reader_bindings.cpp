// megatron_kaiyuan.data._reader: reads batches from mapped files. The GIL is free while it works.
//
// A damaged file raises Damage(message, file, phase, dataset), whose message the caller completes with the path.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "reader.h"

namespace py = pybind11;
using namespace reader;

// No forcecast: a map must not be copied in silence.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Words = Array<std::uint64_t>;
using Bytes = Array<std::uint8_t>;

std::shared_ptr<Corpus> open_corpus(const Bytes& index, const Bytes& tokens, std::uint64_t sequences, unsigned code) {
  return std::make_shared<Corpus>(index.data(), static_cast<std::uint64_t>(index.size()), tokens.data(),
                                  static_cast<std::uint64_t>(tokens.size()), sequences, code);
}

const std::uint64_t* sized(const Words& words, std::uint64_t size) {
  if (static_cast<std::uint64_t>(words.size()) != size) throw std::invalid_argument("a file of another size");
  return words.data();
}

std::shared_ptr<Phase> open_phase(const Words& order, const Words& tokens, const Words& checks,
                                  const std::optional<Words>& pieces, std::uint64_t stride,
                                  const std::vector<std::shared_ptr<Corpus>>& corpora) {
  if (stride == 0) throw std::invalid_argument("a stride of 0");
  const auto entries = static_cast<std::uint64_t>(order.size());
  const std::uint64_t blocks = entries / stride + (entries % stride != 0);
  const PhaseFiles files{order.data(), sized(tokens, blocks + 1), sized(checks, blocks),
                         pieces ? sized(*pieces, entries) : nullptr, entries, stride};
  return std::make_shared<Phase>(files, std::vector<std::shared_ptr<const Corpus>>(corpora.begin(), corpora.end()));
}

std::shared_ptr<Stream> open_stream(const std::vector<std::shared_ptr<Phase>>& phases, std::uint64_t vocab_size) {
  return std::make_shared<Stream>(std::vector<std::shared_ptr<const Phase>>(phases.begin(), phases.end()), vocab_size);
}

using Batch = std::pair<Array<std::int64_t>, std::optional<Bytes>>;

Batch read_batch(const Stream& stream, const Array<std::int64_t>& positions, std::size_t count, bool starts) {
  const auto n = static_cast<std::size_t>(positions.size());
  Array<std::int64_t> tokens({n, count});
  std::optional<Bytes> marks;
  if (starts) marks.emplace(std::vector<std::size_t>{n, count});
  const auto* const from = positions.data();
  auto* const to = tokens.mutable_data();
  auto* const marked = marks ? marks->mutable_data() : nullptr;
  {
    const py::gil_scoped_release release;
    stream.read(from, n, count, to, marked);
  }
  return {std::move(tokens), std::move(marks)};
}

PYBIND11_MODULE(_reader, module) {
  module.doc() = "The token stream from mapped files: see csrc/reader.h";
  static const py::handle damage = PyErr_NewException("megatron_kaiyuan.data._reader.Damage", nullptr, nullptr);
  module.attr("Damage") = damage;
  py::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const Damage& error) {
      PyErr_SetObject(damage.ptr(), py::make_tuple(error.what(), error.file, error.phase, error.dataset).ptr());
    }
  });
  // keep_alive: the maps live as long as what reads them.
  py::class_<Corpus, std::shared_ptr<Corpus>>(module, "Corpus", "A .bin/.idx pair, mapped")
      .def(py::init(&open_corpus), py::arg("index").noconvert(), py::arg("tokens").noconvert(), py::arg("sequences"),
           py::arg("code"), py::keep_alive<1, 2>(), py::keep_alive<1, 3>());
  py::class_<Phase, std::shared_ptr<Phase>>(module, "Phase", "The files of a phase, mapped")
      .def(py::init(&open_phase), py::arg("order").noconvert(), py::arg("tokens").noconvert(),
           py::arg("checks").noconvert(), py::arg("pieces").noconvert(), py::arg("stride"), py::arg("corpora"),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::keep_alive<1, 4>(), py::keep_alive<1, 5>(),
           py::keep_alive<1, 7>())
      .def_property_readonly("blocks", &Phase::blocks)
      .def("check", &Phase::check, py::arg("first"), py::arg("last"), py::arg("lengths"),
           py::call_guard<py::gil_scoped_release>(), "Compare blocks with checks.bin, and with the lengths if asked")
      .def("locate", &Phase::locate, py::arg("offset"), py::call_guard<py::gil_scoped_release>(),
           "(entry, offset in it) of a token");
  py::class_<Stream, std::shared_ptr<Stream>>(module, "Stream", "Phases one after the other")
      .def(py::init(&open_stream), py::arg("phases"), py::arg("vocab_size"), py::keep_alive<1, 2>())
      .def("read", &read_batch, py::arg("positions").noconvert(), py::arg("count"), py::arg("starts"),
           "(tokens int64[n, count], marks uint8[n, count] or None) from n positions");
}
