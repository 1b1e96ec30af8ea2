// data_tools._curriculum.Packer: NumPy arrays in and out; the GIL is free meanwhile.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "packing.h"
#include "packing_bindings.h"
#include "packing_output.h"

namespace py = pybind11;

namespace curriculum {
namespace {

py::tuple to_numpy(const std::vector<Piece>& pieces) {
  const auto size = static_cast<py::ssize_t>(pieces.size());
  py::array_t<std::uint64_t> entries(size);
  py::array_t<std::uint32_t> parts({size, py::ssize_t{2}});
  auto* entry = entries.mutable_data();
  auto* part = parts.mutable_data();
  for (const Piece& piece : pieces) {
    *entry++ = piece.entry;
    *part++ = piece.first;
    *part++ = piece.tokens;
  }
  return py::make_tuple(entries, parts);
}

// No forcecast: a 64-bit length must not be cut to 32 bits in silence.
using Entries = py::array_t<std::uint64_t, py::array::c_style>;
using Lengths = py::array_t<std::int32_t, py::array::c_style>;

void check_sizes(const Entries& entries, const Lengths& lengths) {
  if (entries.size() != lengths.size())
    throw std::invalid_argument(std::to_string(lengths.size()) + " lengths for " + std::to_string(entries.size()) +
                                " entries");
}

py::tuple add(Packer& packer, const Entries& entries, const Lengths& lengths) {
  check_sizes(entries, lengths);
  std::vector<Piece> packed;
  {
    const py::gil_scoped_release release;
    packer.add(entries.data(), lengths.data(), static_cast<std::size_t>(entries.size()), packed);
  }
  return to_numpy(packed);
}

py::tuple finish(Packer& packer) {
  std::vector<Piece> packed;
  {
    const py::gil_scoped_release release;
    packer.finish(packed);
  }
  return to_numpy(packed);
}

void write(PackedPhase& phase, const Entries& entries, const Lengths& lengths) {
  check_sizes(entries, lengths);
  const auto* const entry_data = entries.data();
  const auto* const length_data = lengths.data();
  const py::gil_scoped_release release;
  phase.add(entry_data, length_data, static_cast<std::size_t>(entries.size()));
}

}  // namespace

void bind_packing(py::module_& module) {
  py::class_<Packer>(module, "Packer", "Best-fit packing of documents in phase order; see csrc/curriculum/packing.h")
      .def(py::init<std::uint32_t, std::uint64_t>(), py::arg("pack_length"), py::arg("window"))
      .def("add", &add, py::arg("entries").noconvert(), py::arg("lengths").noconvert(),
           "Packs that are certain by now: u64 entries [n] and u32 (first token, tokens) [n, 2]")
      .def("finish", &finish, "The packs that are left, in the same form")
      .def_property_readonly("packs", &Packer::packs)
      .def_property_readonly("padding", &Packer::padding);
  py::class_<PackedPhase>(module, "PackedPhase", "The files of a packed phase; see csrc/curriculum/packing_output.h")
      .def(py::init<const std::string&, std::uint32_t, std::uint64_t>(), py::arg("folder"), py::arg("pack_length"),
           py::arg("window"))
      .def("add", &write, py::arg("entries").noconvert(), py::arg("lengths").noconvert(),
           "Documents in the order of the phase")
      .def("finish", &PackedPhase::finish, "Write what is left", py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("packs", [](const PackedPhase& phase) { return phase.packer().packs(); })
      .def_property_readonly("padding", [](const PackedPhase& phase) { return phase.packer().padding(); },
                             "Tokens of padding so far");
}

}  // namespace curriculum
