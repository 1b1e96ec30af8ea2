// megatron_kaiyuan.data._reader: reads batches from mapped files. The GIL is free while it works.
//
// A damaged file raises Damage(message, file, phase, dataset), whose message the caller completes with the path.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
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

[[noreturn]] void refuse(const std::string& path, int error) {
  errno = error;
  PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
  throw py::error_already_set();
}

struct Mapped {
  void* data;
  std::size_t size;
};

// A whole file as a read-only array, without an open descriptor: a phase may take two files of each of thousands of
// corpora, and a process may usually have 1,024 open.
Bytes map_file(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) refuse(path, errno);
  struct stat status{};
  void* data = nullptr;
  int error = ::fstat(descriptor, &status) == 0 ? 0 : errno;
  const auto size = static_cast<std::size_t>(status.st_size);
  if (error == 0 && size > 0) {
    data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
    if (data == MAP_FAILED) error = errno;
  }
  ::close(descriptor);
  if (error != 0) refuse(path, error);
  if (size == 0) return Bytes(0);  // which cannot be mapped
  const py::capsule owner(new Mapped{data, size}, [](void* raw) {
    const std::unique_ptr<Mapped> mapped(static_cast<Mapped*>(raw));
    ::munmap(mapped->data, mapped->size);
  });
  Bytes bytes(size, static_cast<std::uint8_t*>(data), owner);
  py::detail::array_proxy(bytes.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return bytes;
}

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
  module.doc() = "The token stream from mapped files: see csrc/reader/reader.h";
  static const py::handle damage = PyErr_NewException("megatron_kaiyuan.data._reader.Damage", nullptr, nullptr);
  module.attr("Damage") = damage;
  py::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const Damage& error) {
      PyErr_SetObject(damage.ptr(), py::make_tuple(error.what(), error.file, error.phase, error.dataset).ptr());
    }
  });
  module.attr("SEQUENCE_BITS") = phase_format::sequence_bits;
  module.attr("PADDING_DATASET") = phase_format::padding_dataset;
  module.attr("BLOCK_ENTRIES") = phase_format::block_entries;
  module.def("map_file", &map_file, py::arg("path"), "A whole file, read-only, without an open descriptor");
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
