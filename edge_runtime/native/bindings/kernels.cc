// The kernel table in Python, for the kernels' tests and `flexmoe bench`: one method per operator
// of docs/native.md, C-contiguous arrays in, new numpy arrays out. Every argument is checked, so a
// wrong one is an exception and never a crash.

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings/layers.h"
#include "bindings/loss_and_optimizers.h"
#include "bindings/products.h"

namespace flexmoe {

void bind_kernels(nanobind::module_& m) {
  using namespace bindings;
  using namespace nb::literals;
  nb::class_<KernelTable> table(m, "Kernels",
                                "The kernels of one instruction set; float32 arrays in and out.");
  table.def_prop_ro("isa", &KernelTable::isa)
      .def_prop_ro("vector_floats", &KernelTable::vector_floats);
  bind_products(table);
  bind_layers(table);
  bind_loss_and_optimizers(table);

  m.attr("MAX_THREADS") = kMaxThreads;
  m.def("isas", &KernelTable::isas,
        "The instruction sets that this machine and build can run, the best first.");
  m.def(
      "kernels",
      [](const std::optional<std::string>& isa, int64_t threads) {
        return new KernelTable(isa, threads);
      },
      "isa"_a.none() = nb::none(), "threads"_a = 1,
      "The kernels of `isa`; ValueError names those that there are. None: the best, or what the "
      "environment's FLEXMOE_ISA names.");
}

}  // namespace flexmoe
