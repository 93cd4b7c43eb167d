// The extension module `edge_runtime.native._native`: sessions over numpy arrays.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/buffer.h"
#include "session/session.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace flexmoe {

void bind_kernels(nb::module_& module);  // bindings/kernels.cc

namespace {

using Floats = nb::ndarray<nb::numpy, float>;

// `data` in the shape of `facts`; the memory is `owner`'s.
Floats view_of(float* data, const TensorFacts& facts, nb::handle owner) {
  const std::vector<size_t> shape(facts.sizes.begin(), facts.sizes.end());
  return Floats(data, shape.size(), shape.data(), owner);
}

std::unique_ptr<Program> read_program(const char* name, nb::handle data) {
  const Buffer buffer(name, data);
  return std::make_unique<Program>(buffer.bytes(), buffer.size());
}

nb::tuple to_python(StepResult&& result) {
  auto* stats = new std::vector<float>(std::move(result.stats));
  nb::capsule owner(stats, [](void* held) noexcept {
    delete static_cast<std::vector<float>*>(held);
  });
  const size_t shape[] = {stats->size() / 3, 3};
  return nb::make_tuple(result.loss, Floats(stats->data(), 2, shape, owner));
}

// Whole numbers of 64 bits, from any iterable.
std::vector<int64_t> read_integers(const char* name, nb::handle numbers) {
  std::vector<int64_t> read;
  nb::object iterator = nb::steal(PyObject_GetIter(numbers.ptr()));
  if (!iterator.is_valid()) {
    PyErr_Clear();
    fail("%s: expected a list of numbers, got %s", name, Py_TYPE(numbers.ptr())->tp_name);
  }
  while (PyObject* next = PyIter_Next(iterator.ptr())) {
    const nb::object item = nb::steal(next);
    int64_t number = 0;
    if (!nb::try_cast(item, number)) {
      fail("%s: expected whole numbers, got %.60s", name, nb::repr(item).c_str());
    }
    read.push_back(number);
  }
  if (PyErr_Occurred() != nullptr) nb::raise_python_error();
  return read;
}

nb::dict to_python(const MemoryFacts& facts) {
  nb::dict bytes;
  bytes["programs"] = facts.programs;
  bytes["arena"] = facts.arena;
  bytes["weights"] = facts.weights;
  bytes["gradients"] = facts.gradients;
  bytes["optimizer"] = facts.optimizer;
  bytes["scratch"] = facts.scratch;
  return bytes;
}

nb::list to_python(const Plan& plan, const std::vector<size_t>& indices) {
  nb::list tensors;
  for (size_t i : indices) tensors.append(plan.values[i].tensor.text());
  return tensors;
}

nb::dict describe(nb::handle data) {
  const std::unique_ptr<Program> program = read_program("program", data);
  const Plan& plan = program->plan();
  nb::dict facts;
  facts["layout"] = plan.layout;
  facts["inputs"] = to_python(plan, plan.inputs);
  facts["outputs"] = to_python(plan, plan.outputs);
  facts["operators"] = plan.operators;
  facts["arena_bytes"] = plan.arena_bytes();
  return facts;
}

Rates make_rates(const std::string& optimizer, float learning_rate, float momentum,
                 float weight_decay, float beta1, float beta2, float epsilon, float clip_norm) {
  if (optimizer != "sgd" && optimizer != "adamw") {
    fail("unknown optimizer '%.40s'; expected sgd or adamw", optimizer.c_str());
  }
  return {optimizer == "sgd" ? Rule::kSgd : Rule::kAdamW,
          learning_rate, momentum, weight_decay, beta1, beta2, epsilon, clip_norm};
}

// Runs `step` on the arrays without the GIL.
template <class Step>
nb::tuple take(nb::handle x, nb::handle y, nb::handle sample_weight, const Step& step) {
  const Buffer xs("x", x), ys("y", y), weights("sample_weight", sample_weight);
  const Batch batch{xs.array(), ys.array(), weights.array()};
  StepResult result;
  {
    const nb::gil_scoped_release release;
    result = step(batch);
  }
  return to_python(std::move(result));
}

void bind_session(nb::module_& module) {
  nb::class_<Rates>(module, "Rates", "How a step changes the weights; see trainer.Rates.")
      .def("__init__",
           [](Rates* self, const std::string& optimizer, float learning_rate, float momentum,
              float weight_decay, float beta1, float beta2, float epsilon, float clip_norm) {
             new (self) Rates(make_rates(optimizer, learning_rate, momentum, weight_decay, beta1,
                                         beta2, epsilon, clip_norm));
           },
           nb::kw_only(), "optimizer"_a, "learning_rate"_a, "momentum"_a, "weight_decay"_a,
           "beta1"_a, "beta2"_a, "epsilon"_a, "clip_norm"_a);

  nb::class_<Session>(module, "Session",
                      "A training and an evaluation program over one set of weights.")
      .def("__init__",
           [](Session* self, nb::handle training, nb::handle evaluation, int64_t classes,
              int64_t experts, int64_t threads) {
             new (self) Session(read_program("training program", training),
                                read_program("evaluation program", evaluation), classes, experts,
                                threads);
           },
           "training"_a, "evaluation"_a, "classes"_a, "experts"_a, "threads"_a)
      .def(
          "begin",
          [](Session& self, nb::handle experts) { self.begin(read_integers("experts", experts)); },
          "experts"_a,
           "Take these experts, one for each slot; the optimizer's state is zeroed.")
      .def(
          "train_step",
          [](Session& self, nb::handle x, nb::handle y, nb::handle sample_weight,
             const Rates& rates) {
            return take(x, y, sample_weight,
                        [&](const Batch& batch) { return self.train_step(batch, rates); });
          },
          "x"_a.none(), "y"_a.none(), "sample_weight"_a.none(), "rates"_a,
          "(loss, stats [k, 3]) of one step. Where the loss or a gradient is not finite, the "
          "weights stay and the loss is not finite.")
      .def(
          "evaluate",
          [](Session& self, nb::handle x, nb::handle y, nb::handle sample_weight) {
            return take(x, y, sample_weight,
                        [&](const Batch& batch) { return self.evaluate(batch); });
          },
          "x"_a.none(), "y"_a.none(), "sample_weight"_a.none(),
          "(loss, stats [k, 3]); the weights stay.")
      .def_prop_ro(
          "weights",
          [](nb::handle_t<Session> self) {
            Session& session = nb::cast<Session&>(self);
            nb::list views;
            for (size_t i = 0; i < session.weight_count(); ++i) {
              views.append(view_of(session.weight(i), session.weight_facts(i), self));
            }
            return views;
          },
          "The weights themselves, writable; they keep the session alive.")
      .def_prop_ro(
          "gradients",
          [](nb::handle_t<Session> self) {
            Session& session = nb::cast<Session&>(self);
            nb::list views;
            for (size_t i = 0; i < session.weight_count(); ++i) {
              views.append(view_of(session.gradient(i), session.weight_facts(i), self));
            }
            return views;
          },
          "The gradients of the last training step, as the optimizer used them.")
      .def_prop_ro(
          "memory", [](Session& self) { return to_python(self.memory()); },
          "Bytes held, by kind.");
}

}  // namespace

NB_MODULE(_native, module) {
  nb::set_leak_warnings(false);  // at exit, of what an interpreter that ends leaves behind
  module.doc() = "flexmoe's device runtime: programs, weights and steps without PyTorch.";
  nb::object error = nb::module_::import_("edge_runtime.errors").attr("ProgramError");
  nb::register_exception_translator(
      [](const std::exception_ptr& pending, void* type) {
        try {
          std::rethrow_exception(pending);
        } catch (const Failure& failure) {
          PyErr_SetString(static_cast<PyObject*>(type), failure.what());
        }
      },
      error.release().ptr());
  bind_kernels(module);
  bind_session(module);
  module.def("describe", &describe, "program"_a,
             "What a program says of itself: layout, inputs, outputs, operators, arena_bytes.");
  module.def(
      "memory_need",
      [](nb::handle training, nb::handle evaluation, const Rates& rates, int64_t batch,
         int64_t threads) {
        return to_python(Session::need(*read_program("training program", training),
                                       *read_program("evaluation program", evaluation), rates,
                                       batch, threads));
      },
      "training"_a, "evaluation"_a, "rates"_a, "batch"_a, "threads"_a,
      "The most bytes that a session of this pair takes, by kind. Allocates none of them.");
}

}  // namespace flexmoe
