// The Python module `_prices`: arrays are checked here, the GIL is released while clients answer.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include "response.h"
#include "step.h"

namespace nb = nanobind;
namespace prices = flexmoe::prices;

namespace {

template <class T>
using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void expect(bool good, const char* what) {
  if (!good) throw nb::value_error(what);
}

template <class T>
void expect_shape(const Matrix<T>& matrix, size_t rows, size_t columns, const char* what) {
  expect(matrix.shape(0) == rows && matrix.shape(1) == columns, what);
}

template <class Quality>
double respond(Matrix<const Quality> quality, Vector<const int64_t> samples,
               std::optional<Matrix<const double>> weight, Vector<const int64_t> capacity,
               Vector<const uint32_t> client_keys, Vector<const uint32_t> expert_keys,
               double jitter, Vector<const double> at, double window, Vector<double> load,
               std::optional<Matrix<double>> curvature, std::optional<Matrix<int32_t>> picks,
               std::optional<Vector<double>> margins) {
  const size_t clients = quality.shape(0), experts = quality.shape(1);
  expect(samples.shape(0) == clients && capacity.shape(0) == clients &&
             client_keys.shape(0) == clients,
         "samples, capacity and client_keys need a number for each client");
  expect(expert_keys.shape(0) == experts && at.shape(0) == experts && load.shape(0) == experts,
         "expert_keys, prices and load need a number for each expert");
  if (weight) expect_shape(*weight, clients, experts, "weight must be [clients, experts]");
  if (curvature) {
    expect_shape(*curvature, experts, experts, "curvature must be [experts, experts]");
    expect(window > 0, "curvature needs a window above 0");
  }
  if (picks) expect(picks->shape(0) == clients, "picks needs a row for each client");
  if (margins) expect(margins->shape(0) == clients, "margins needs a number for each client");
  const int64_t most = picks ? static_cast<int64_t>(picks->shape(1)) : INT64_MAX;
  for (size_t e = 0; e < experts; ++e) {
    expect(std::isfinite(at.data()[e]), "prices must be finite numbers");
  }
  for (size_t c = 0; c < clients; ++c) {
    const int64_t k = capacity.data()[c];
    expect(k >= 1 && k <= static_cast<int64_t>(experts) && k <= most,
           "capacity must be 1 to the number of experts, and of the columns of picks");
  }
  const prices::Block<Quality> block{static_cast<int64_t>(clients), static_cast<int64_t>(experts),
                                     quality.data(), samples.data(),
                                     weight ? weight->data() : nullptr, capacity.data(),
                                     client_keys.data()};
  const prices::Offer offer{at.data(), expert_keys.data(), jitter, window};
  const prices::Answer answer{load.data(), curvature ? curvature->data() : nullptr,
                              picks ? picks->data() : nullptr, most,
                              margins ? margins->data() : nullptr};
  nb::gil_scoped_release release;
  return prices::respond(block, offer, answer);
}

nb::ndarray<nb::numpy, double, nb::ndim<1>> step(Vector<const double> at, Vector<const double> load,
                                                 Matrix<const double> curvature,
                                                 Vector<const double> lower,
                                                 Vector<const double> upper, double radius,
                                                 double limit) {
  const size_t experts = at.shape(0);
  expect(load.shape(0) == experts && lower.shape(0) == experts && upper.shape(0) == experts,
         "load, lower and upper need a number for each expert");
  expect_shape(curvature, experts, experts, "curvature must be [experts, experts]");
  for (size_t e = 0; e < experts; ++e) {
    expect(curvature.data()[e * experts + e] > 0, "the diagonal of curvature must be above 0");
  }
  auto* next = new double[experts];
  nb::capsule owner(next, [](void* memory) noexcept { delete[] static_cast<double*>(memory); });
  prices::step(at.data(), load.data(), curvature.data(), lower.data(), upper.data(), radius,
               limit, static_cast<int64_t>(experts), next);
  return nb::ndarray<nb::numpy, double, nb::ndim<1>>(next, {experts}, owner);
}

template <class Quality>
void define_respond(nb::module_& module) {
  module.def("respond", &respond<Quality>, nb::arg("quality").noconvert(),
             nb::arg("samples").noconvert(), nb::arg("weight").noconvert().none(),
             nb::arg("capacity").noconvert(), nb::arg("client_keys").noconvert(),
             nb::arg("expert_keys").noconvert(), nb::arg("jitter"), nb::arg("prices").noconvert(),
             nb::arg("window"), nb::arg("load").noconvert(),
             nb::arg("curvature").noconvert().none(), nb::arg("picks").noconvert().none(),
             nb::arg("margins").noconvert().none());
}

}  // namespace

NB_MODULE(_prices, module) {
  define_respond<float>(module);
  define_respond<double>(module);
  module.def("step", &step, nb::arg("prices").noconvert(), nb::arg("load").noconvert(),
             nb::arg("curvature").noconvert(), nb::arg("lower").noconvert(),
             nb::arg("upper").noconvert(), nb::arg("radius"), nb::arg("limit"));
}
