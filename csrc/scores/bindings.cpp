// data_tools._scores: supervised fastText models and the measures of rules. The GIL is free while they work.
//
// A file that is not what it should be raises ValueError, whose message the caller completes with the path; what the
// system refuses raises OSError with errno and file name. Paths are bytes (os.fsencode): a file name need not be UTF-8.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "linear.h"
#include "rules.h"

namespace py = pybind11;
using scores::LinearModel;
using scores::RuleMeasures;

using Offsets = py::array_t<std::int64_t, py::array::c_style>;
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Numbers = py::array_t<double>;

void check_offsets(const Offsets& offsets, const Bytes& data) {
  const auto positions = offsets.unchecked<1>();
  bool valid = positions.shape(0) >= 1 && positions(0) >= 0 && positions(positions.shape(0) - 1) <= data.size();
  for (py::ssize_t index = 1; valid && index < positions.shape(0); ++index)
    valid = positions(index - 1) <= positions(index);
  if (!valid) throw py::index_error("offsets do not fit the data");
}

// float64[rows, columns], filled by apply(text, row).
template <typename Apply>
Numbers for_each_text(const Offsets& offsets, const Bytes& data, std::size_t columns, Apply apply) {
  check_offsets(offsets, data);
  const auto rows = static_cast<std::size_t>(offsets.size()) - 1;
  Numbers result({rows, columns});
  const auto* text = reinterpret_cast<const char*>(data.data());
  const std::int64_t* starts = offsets.data();
  double* into = result.mutable_data();
  const py::gil_scoped_release release;
  for (std::size_t row = 0; row < rows; ++row) {
    const auto size = static_cast<std::size_t>(starts[row + 1] - starts[row]);
    apply(std::string_view(text + starts[row], size), into + row * columns);
  }
  return result;
}

Numbers probabilities(LinearModel& model, const Offsets& offsets, const Bytes& data) {
  return for_each_text(offsets, data, model.labels().size(),
                       [&](std::string_view text, double* into) { model.probabilities(text, into); });
}

// A document's state is not shared, so that threads need not wait.
Numbers rule_measures(std::string classes, const Offsets& offsets, const Bytes& data) {
  RuleMeasures measures(std::move(classes));
  return for_each_text(offsets, data, scores::measure_names.size(),
                       [&](std::string_view text, double* into) { measures.measure(text, into); });
}

PYBIND11_MODULE(_scores, module) {
  module.doc() = "Supervised fastText models and measures of rules: see csrc/scores/linear.h and rules.h";
  py::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const std::system_error& error) {
      errno = error.code().value();
      PyErr_SetFromErrno(PyExc_OSError);
    }
  });
  py::class_<LinearModel>(module, "LinearModel", "A supervised model of a .bin or .ftz")
      .def(py::init<const std::string&>(), py::arg("path"), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("labels",
                             [](const LinearModel& model) {
                               std::vector<py::bytes> labels(model.labels().begin(), model.labels().end());
                               return labels;
                             })
      .def("probabilities", &probabilities, py::arg("offsets").noconvert(), py::arg("data").noconvert(),
           "float64[rows, labels] of texts data[offsets[i]:offsets[i + 1]]; NaN: nothing that the model knows");
  module.def("rule_measures", &rule_measures, py::arg("classes"), py::arg("offsets").noconvert(),
             py::arg("data").noconvert(), "float64[rows, measures] of texts; classes: a byte for each code point");
  module.attr("RULE_MEASURES") = std::vector<std::string>(scores::measure_names.begin(), scores::measure_names.end());
  module.attr("LETTER") = static_cast<int>(scores::letter);
  module.attr("PUNCTUATION") = static_cast<int>(scores::punctuation);
  module.attr("SPACE") = static_cast<int>(scores::space);
}
