// The Python module: thin wrappers, one section for each part of the core. Nothing else here knows Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include "layout.h"

namespace nb = nanobind;
using namespace dvm;

NB_MODULE(_native, m) {
  m.attr("TABLE_HASH") = TABLE_HASH;
}
