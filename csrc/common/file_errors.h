// How a module raises what the system refuses: OSError with errno and the name of the file.
#pragma once

#include <pybind11/pybind11.h>

#include <cerrno>
#include <exception>

#include "index_file.h"

// For PYBIND11_MODULE: from here on the module's functions raise FileError so. Other modules are left alone.
inline void raise_file_errors() {
  pybind11::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const corpus_index::FileError& error) {
      errno = error.code().value();
      PyErr_SetFromErrnoWithFilename(PyExc_OSError, error.path.c_str());
    }
  });
}
