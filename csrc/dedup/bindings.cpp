// data_tools._dedup: shingles, signatures, bands, pairs and components of documents. The GIL is free while it works.
//
// A wrong value raises ValueError; what the system refuses raises OSError with errno and file name. Paths are bytes
// (os.fsencode).
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../common/file_errors.h"
#include "components.h"
#include "jaccard.h"
#include "pairs.h"
#include "runs.h"
#include "signer.h"
#include "vectors.h"

namespace py = pybind11;
using namespace dedup;

// No forcecast: numbers must not be cut in silence.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using WithoutGil = py::call_guard<py::gil_scoped_release>;

namespace {

template <typename T>
std::size_t rows_of(const Array<T>& array, py::ssize_t columns, const char* name) {
  if (array.ndim() != 2 || (columns >= 0 && array.shape(1) != columns))
    throw std::invalid_argument(std::string(name) + " is a table" +
                                (columns >= 0 ? " of " + std::to_string(columns) + " columns" : std::string()));
  return static_cast<std::size_t>(array.shape(0));
}

// A vector's memory as an array, without a copy.
template <typename T>
Array<T> as_array(std::vector<T> values) {
  auto* held = new std::vector<T>(std::move(values));
  const py::capsule owner(held, [](void* pointer) { delete static_cast<std::vector<T>*>(pointer); });
  return Array<T>(static_cast<py::ssize_t>(held->size()), held->data(), owner);
}

Texts texts_of(const Array<std::int64_t>& offsets, const Array<std::uint8_t>& data) {
  if (offsets.ndim() != 1 || offsets.size() < 1) throw std::invalid_argument("offsets are one more than texts");
  return Texts(offsets.data(), static_cast<std::size_t>(offsets.size()) - 1, data.data(),
               static_cast<std::size_t>(data.size()));
}

WordRules rules_of(const std::string& shingles, bool keeps_numbers) {
  if (shingles != "auto" && shingles != "words" && shingles != "characters")
    throw std::invalid_argument("shingles are auto, words or characters");
  return {shingles == "words", shingles == "characters", keeps_numbers};
}

// A shingler and the permutations of its recipe.
template <typename Number>
class Signer {
 public:
  Signer(const Shingler& shingler, const Array<Number>& multipliers, const Array<Number>& increments)
      : shingler_(shingler),
        permutations_({multipliers.data(), multipliers.data() + multipliers.size()},
                      {increments.data(), increments.data() + increments.size()}) {}

  std::tuple<Array<Number>, Array<std::uint32_t>, Array<std::uint64_t>> sign(const Array<std::int64_t>& offsets,
                                                                          const Array<std::uint8_t>& data) const {
    const Texts texts = texts_of(offsets, data);
    const auto count = static_cast<py::ssize_t>(texts.count());
    Array<Number> minima({count, static_cast<py::ssize_t>(permutations_.size())});
    Array<std::uint32_t> shingles(count);
    Array<std::uint64_t> digests({count, py::ssize_t{2}});
    Number* minima_data = minima.mutable_data();
    std::uint32_t* shingles_data = shingles.mutable_data();
    std::uint64_t* digests_data = digests.mutable_data();
    {
      const py::gil_scoped_release release;
      dedup::sign(texts, shingler_, permutations_, minima_data, shingles_data, digests_data);
    }
    return {std::move(minima), std::move(shingles), std::move(digests)};
  }

  std::tuple<Array<std::int64_t>, Array<std::uint64_t>> sets(const Array<std::int64_t>& offsets,
                                                             const Array<std::uint8_t>& data) const {
    const Texts texts = texts_of(offsets, data);
    Sets found;
    {
      const py::gil_scoped_release release;
      found = dedup::shingle_sets(texts, shingler_);
    }
    return {as_array(std::move(found.offsets)), as_array(std::move(found.hashes))};
  }

 private:
  Shingler shingler_;
  Permutations<Number> permutations_;
};

template <typename Number>
Array<std::uint64_t> keys_of(const Array<Number>& signatures, std::size_t bands, std::size_t rows) {
  const std::size_t count = rows_of(signatures, -1, "signatures");
  const auto permutations = static_cast<std::size_t>(signatures.shape(1));
  Array<std::uint64_t> keys({static_cast<py::ssize_t>(bands), static_cast<py::ssize_t>(count)});
  const Number* data = signatures.data();
  std::uint64_t* keys_data = keys.mutable_data();
  const py::gil_scoped_release release;
  band_keys(data, count, permutations, bands, rows, keys_data);
  return keys;
}

std::pair<Array<std::uint64_t>, Array<std::uint32_t>> sorted_run(const Array<std::uint64_t>& keys,
                                                                const Array<std::uint32_t>& rows) {
  if (keys.size() != rows.size()) throw std::invalid_argument("as many rows as keys are needed");
  Array<std::uint64_t> sorted_keys(keys.size(), keys.data());
  Array<std::uint32_t> sorted_rows(rows.size(), rows.data());
  const auto count = static_cast<std::size_t>(keys.size());
  std::uint64_t* keys_data = sorted_keys.mutable_data();
  std::uint32_t* rows_data = sorted_rows.mutable_data();
  const py::gil_scoped_release release;
  sort_run(keys_data, rows_data, count);
  return {std::move(sorted_keys), std::move(sorted_rows)};
}

Array<double> similarities(const Array<std::int64_t>& pairs, const Array<std::int64_t>& offsets,
                           const Array<std::uint64_t>& hashes) {
  const std::size_t count = rows_of(pairs, 2, "pairs");
  if (offsets.size() < 1) throw std::invalid_argument("offsets are one more than sets");
  Array<double> found(static_cast<py::ssize_t>(count));
  const auto sets = static_cast<std::size_t>(offsets.size()) - 1, total = static_cast<std::size_t>(hashes.size());
  const std::int64_t *pairs_data = pairs.data(), *offsets_data = offsets.data();
  const std::uint64_t* hashes_data = hashes.data();
  double* found_data = found.mutable_data();
  const py::gil_scoped_release release;
  jaccard(pairs_data, count, offsets_data, sets, hashes_data, total, found_data);
  return found;
}

std::tuple<std::uint64_t, std::uint64_t, std::uint64_t> pairs_of_groups(
    const std::vector<std::tuple<std::string, std::uint64_t, std::uint64_t, std::uint64_t>>& runs,
    const std::string& output, std::uint64_t memory, bool stars, std::uint64_t earlier,
    const std::string& omitted) {
  std::vector<Run> opened;
  for (const auto& [path, offset, count, first_ordinal] : runs) opened.push_back({path, offset, count, first_ordinal});
  const Omitted left_out{{omitted.begin(), omitted.end()}, earlier};
  const Groups found = group_pairs(opened, output, memory, stars ? Pairing::stars : Pairing::all, left_out);
  return {found.pairs, found.groups, found.largest};
}

template <typename Number>
py::class_<Signer<Number>> define_signer(py::module_& module, const char* name) {
  return py::class_<Signer<Number>>(module, name, "Documents as shingles, signatures and digests: see csrc/dedup/signer.h")
      .def("sign", &Signer<Number>::sign, py::arg("offsets").noconvert(), py::arg("data").noconvert(),
           "(minima [texts, permutations], n-grams u32[texts], digests u64[texts, 2])")
      .def("shingle_sets", &Signer<Number>::sets, py::arg("offsets").noconvert(), py::arg("data").noconvert(),
           "(offsets i64[texts + 1], hashes u64[], ascending and distinct for each text)");
}

void define_signers(py::module_& module) {
  define_signer<std::uint32_t>(module, "Signer")
      .def(py::init([](const Array<std::uint32_t>& multipliers, const Array<std::uint32_t>& increments, unsigned ngram,
                       const std::string& shingles, bool keeps_numbers) {
             const Shingler shingler(Shingler::Normalisation::own, rules_of(shingles, keeps_numbers), ngram);
             return std::make_unique<Signer<std::uint32_t>>(shingler, multipliers, increments);
           }),
           py::arg("multipliers").noconvert(), py::arg("increments").noconvert(), py::arg("ngram"),
           py::arg("shingles") = "auto", py::arg("keeps_numbers") = false);
  define_signer<std::uint64_t>(module, "KaiyuanSigner")
      .def(py::init([](const Array<std::uint64_t>& multipliers, const Array<std::uint64_t>& increments, unsigned ngram) {
             const Shingler shingler(Shingler::Normalisation::kaiyuan, {}, ngram);
             return std::make_unique<Signer<std::uint64_t>>(shingler, multipliers, increments);
           }),
           py::arg("multipliers").noconvert(), py::arg("increments").noconvert(), py::arg("ngram"));
}

}  // namespace

PYBIND11_MODULE(_dedup, module) {
  module.doc() = "Deduplication: see csrc/dedup/";
  raise_file_errors();
  module.attr("unicode_version") = unicode::version;
  module.def("vector_names", &vector_names, "Instruction sets that this processor has, narrowest first");
  module.def("use_vectors", &use_vectors, py::arg("name"), "For tests: the instruction set from now on");
  define_signers(module);
  module.def("band_keys", &keys_of<std::uint32_t>, py::arg("signatures").noconvert(), py::arg("bands"), py::arg("rows"));
  module.def("band_keys", &keys_of<std::uint64_t>, py::arg("signatures").noconvert(), py::arg("bands"), py::arg("rows"),
             "u64[bands, documents]: a hash of each band of each signature");
  module.def("sort_run", &sorted_run, py::arg("keys").noconvert(), py::arg("rows").noconvert(),
             "Both sorted by (key, row)");
  module.def("group_pairs", &pairs_of_groups, py::arg("runs"), py::arg("output"), py::arg("memory") = 1 << 28,
             py::arg("stars") = false, py::arg("earlier") = 0, py::arg("omitted") = py::bytes(), WithoutGil(),
             "Write the candidate pairs of one band; (pairs, groups of two or more, largest group)");
  module.def("unique_pairs", &unique_pairs, py::arg("inputs"), py::arg("output"), py::arg("scratch"),
             py::arg("memory") = 1 << 28, WithoutGil(), "Write the pairs of all files, ascending, each once; how many");
  module.def("jaccard", &similarities, py::arg("pairs").noconvert(), py::arg("offsets").noconvert(),
             py::arg("hashes").noconvert(), "f64[pairs]: the exact Jaccard index of two sets each");
  py::class_<Components>(module, "Components", "Union-find: see csrc/dedup/components.h")
      .def(py::init<std::uint64_t>(), py::arg("nodes"))
      .def_property_readonly("nodes", &Components::nodes)
      .def(
          "add",
          [](Components& components, const Array<std::uint64_t>& edges) {
            const std::size_t count = rows_of(edges, 2, "edges");
            const std::uint64_t* data = edges.data();
            const py::gil_scoped_release release;
            components.add(data, count);
          },
          py::arg("edges").noconvert(), "u64[edges, 2]")
      .def(
          "labels",
          [](Components& components, std::uint64_t first, std::uint64_t last) {
            if (first > last || last > components.nodes())
              throw std::invalid_argument("there are no nodes from " + std::to_string(first) + " to " +
                                          std::to_string(last));
            Array<std::uint64_t> found(static_cast<py::ssize_t>(last - first));
            std::uint64_t* data = found.mutable_data();
            const py::gil_scoped_release release;
            components.labels(first, last, data);
            return found;
          },
          py::arg("first"), py::arg("last"), "u64[last - first]: the smallest node of each node's component");
}
