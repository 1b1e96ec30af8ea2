#pragma once

#include <pybind11/pybind11.h>

namespace curriculum {

void bind_packing(pybind11::module_& module);

}  // namespace curriculum
