// data_tools._curriculum.Packer: NumPy arrays in and out; the GIL is free meanwhile.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "packing.h"
#include "packing_bindings.h"

namespace py = pybind11;

namespace curriculum {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

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

py::tuple add(Packer& packer, const Array<std::uint64_t>& entries, const Array<std::int32_t>& lengths) {
  if (entries.size() != lengths.size())
    throw std::invalid_argument(std::to_string(lengths.size()) + " lengths for " + std::to_string(entries.size()) +
                                " entries");
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

}  // namespace

void bind_packing(py::module_& module) {
  py::class_<Packer>(module, "Packer", "Best-fit packing of documents in phase order; see csrc/packing.h")
      .def(py::init<std::uint32_t, std::uint64_t>(), py::arg("pack_length"), py::arg("window"))
      .def("add", &add, py::arg("entries"), py::arg("lengths"),
           "Packs that are certain by now: u64 entries [n] and u32 (first token, tokens) [n, 2]")
      .def("finish", &finish, "The packs that are left, in the same form")
      .def_property_readonly("packs", &Packer::packs)
      .def_property_readonly("padding", &Packer::padding);
}

}  // namespace curriculum
