// data_tools._curriculum: NumPy arrays in and out. A wrong value raises ValueError; the GIL is free meanwhile.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "algorithm1.h"
#include "hash.h"
#include "packing_bindings.h"
#include "selection.h"

namespace py = pybind11;
using namespace curriculum;

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
using Ids = Array<std::uint64_t>;
using Scores = std::optional<Array<double>>;
using Copies = std::optional<Array<std::uint32_t>>;

template <typename T>
py::array_t<T> to_numpy(std::vector<T>&& values) {
  auto* owner = new std::vector<T>(std::move(values));
  const py::capsule release(owner, [](void* pointer) { delete static_cast<std::vector<T>*>(pointer); });
  return py::array_t<T>(static_cast<py::ssize_t>(owner->size()), owner->data(), release);
}

template <typename T>
const T* data_or_null(const std::optional<Array<T>>& values, const std::string& dataset, const char* what,
                      std::size_t size) {
  if (!values) return nullptr;
  if (static_cast<std::size_t>(values->size()) != size)
    throw std::invalid_argument("dataset " + dataset + ": " + std::to_string(values->size()) + " " + what + " for " +
                                std::to_string(size) + " sequences");
  return values->data();
}

py::array_t<std::uint64_t> order(const std::vector<std::tuple<std::string, Ids, Scores, Copies>>& datasets,
                                 bool shuffle, std::uint64_t seed, double perturb, unsigned threads) {
  std::vector<Dataset> views;
  for (const auto& [name, sequences, scores, copies] : datasets) {
    const auto size = static_cast<std::size_t>(sequences.size());
    views.push_back({name, sequences.data(), data_or_null(scores, name, "scores", size),
                     data_or_null(copies, name, "copies", size), size});
  }
  std::vector<std::uint64_t> result;
  {
    const py::gil_scoped_release release;
    result = build_order(views, {shuffle, perturb, seed, threads});
  }
  return to_numpy(std::move(result));
}

py::array_t<std::uint64_t> select_sequences(const std::string& dataset, const Scores& scores, std::size_t size,
                                            std::size_t count, std::uint64_t seed) {
  const double* data = data_or_null(scores, dataset, "scores", size);
  std::vector<std::uint64_t> result;
  {
    const py::gil_scoped_release release;
    result = select(dataset, data, size, count, seed);
  }
  return to_numpy(std::move(result));
}

PYBIND11_MODULE(_curriculum, module) {
  module.doc() = "Algorithm 1 of arXiv 2512.07612, selection and repetition; see csrc/algorithm1.h and selection.h";
  module.def("order", &order, py::arg("datasets"), py::kw_only(), py::arg("shuffle"), py::arg("seed"),
             py::arg("perturb") = 0.0, py::arg("threads") = 1,
             "u64 (dataset << 48 | sequence) in phase order; datasets: (name, sequences, scores | None, copies | None)");
  module.def("select", &select_sequences, py::arg("dataset"), py::arg("scores"), py::arg("size"), py::arg("count"),
             py::arg("seed"), "Ascending u64 sequences: the `count` best of `size`, or at random without scores");
  module.def(
      "copies",
      [](const Ids& sequences, double repeat, std::uint64_t seed) {
        return to_numpy(draw_copies(sequences.data(), static_cast<std::size_t>(sequences.size()), repeat, seed));
      },
      py::arg("sequences"), py::arg("repeat"), py::arg("seed"), "u32: how often each sequence appears");
  bind_packing(module);
}
