// Python's way into the kernels: one function per kernel, taking the fields of its argument struct
// in order as plain integers (addresses, counts) and floats. METH_FASTCALL of the limited API: the
// smallest calls take 0.2 to 0.4 us, kernel included, and one binary serves every Python from 3.11
// and every torch.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "abi.h"
#include "tape.h"

namespace {

using namespace ipx;

const KernelTable* active = nullptr;

bool supported(const char* isa) {
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!strcmp(isa, "avx2")) return avx2;
  if (!strcmp(isa, "avx512")) return avx512;
  bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (!strcmp(isa, "avx512_vnni")) return vnni;
  bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  if (!strcmp(isa, "amx")) return bf16 && tiles_permitted();
  return bf16;  // avx512_bf16, amx_emulated
}

const KernelTable* tables[5];  // best first

// ---- calling: q = integer or address, d = double ----

struct Signature {
  const char* name;
  const char* format;
  Kernel KernelTable::*kernel;
  bool release_gil;  // for calls long enough to let other threads run
  Kernel every_isa = nullptr;  // in place of the table's, or null
};

const Signature SIGNATURES[] = {
    {"attention", "qqqqqqqq" "qq" "qq" "qqq" "qqqq" "q" "dd" "qq", &KernelTable::attention, true},
    {"kv_write", "qqqqq" "qqq" "qqq" "qqqqq", &KernelTable::kv_write, false},
    {"rope", "qqqqqqqqqqqq" "qqqqqq" "qqq" "qqqqq" "q" "dd" "qqq", &KernelTable::rope, false},
    {"norm", "qqqqq" "qqq" "dd" "qq", &KernelTable::norm, false},
    {"glu", "qq" "qqq" "qq", &KernelTable::glu, false},
    {"linear", "qqqq" "qqqq" "q" "d" "qq", &KernelTable::linear, true},
    {"pack", "qq" "qqqq", &KernelTable::pack, true},
    {"quant_linear", "qqqqq" "qqqq" "qqqq" "qq" "d" "q" "d" "qq", &KernelTable::quant_linear,
     true},
    {"quant_pack", "qqqq" "qqqqq", &KernelTable::quant_pack, true},
    {"embedding", "qqq" "qqq" "d" "q", &KernelTable::embedding, false},
    {"draw", "qqqqqqqqq" "qq" "qq" "q", &KernelTable::draw, true},
    {"logprobs", "qqqqqq" "qqq", &KernelTable::logprobs, true},
    {"filter", "qqqqqqqqqq" "qqq", &KernelTable::filter, true},
    {"copy_elements", "qq" "qqqq" "qqqq" "qqqq" "qq", nullptr, false, copy_elements},
    {"gather", "qqqq" "qq" "qqq" "q", nullptr, false, gather},
    {"scatter", "qqqq" "qq" "qqq" "q", nullptr, false, scatter},
    {"arithmetic", "qqqq" "qq" "qqq" "q", nullptr, false, arithmetic},
};
constexpr int KERNELS = sizeof(SIGNATURES) / sizeof(SIGNATURES[0]);
constexpr int MOST_WORDS = 40;

static_assert(sizeof(AttentionArgs) == 8 * 24, "format of attention");
static_assert(sizeof(KvWriteArgs) == 8 * 16, "format of kv_write");
static_assert(sizeof(RopeArgs) == 8 * 32, "format of rope");
static_assert(sizeof(NormArgs) == 8 * 12, "format of norm");
static_assert(sizeof(GluArgs) == 8 * 7, "format of glu");
static_assert(sizeof(LinearArgs) == 8 * 12, "format of linear");
static_assert(sizeof(PackArgs) == 8 * 6, "format of pack");
static_assert(sizeof(QuantLinearArgs) == 8 * 20, "format of quant_linear");
static_assert(sizeof(QuantPackArgs) == 8 * 9, "format of quant_pack");
static_assert(sizeof(EmbeddingArgs) == 8 * 8, "format of embedding");
static_assert(sizeof(DrawArgs) == 8 * 14, "format of draw");
static_assert(sizeof(LogprobArgs) == 8 * 9, "format of logprobs");
static_assert(sizeof(FilterArgs) == 8 * 13, "format of filter");
static_assert(sizeof(CopyArgs) == 8 * 16, "format of copy_elements");
static_assert(sizeof(IndexArgs) == 8 * 10, "format of gather and scatter");
static_assert(sizeof(ArithmeticArgs) == 8 * 10, "format of arithmetic");

thread_local Tape* recording = nullptr;  // takes this thread's calls, which then have no effect

template <int INDEX>
PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  const Signature& s = SIGNATURES[INDEX];
  int64_t words[MOST_WORDS];
  if (count != static_cast<Py_ssize_t>(strlen(s.format))) {
    return PyErr_Format(PyExc_TypeError, "%s takes %d arguments, got %zd", s.name,
                        static_cast<int>(strlen(s.format)), count);
  }
  for (Py_ssize_t i = 0; i < count; i++) {
    if (s.format[i] == 'd') {
      double x = PyFloat_AsDouble(args[i]);
      memcpy(words + i, &x, 8);
      if (x == -1.0 && PyErr_Occurred()) return nullptr;
    } else {
      words[i] = PyLong_AsLongLong(args[i]);
      if (words[i] == -1 && PyErr_Occurred()) return nullptr;
    }
  }
  Kernel kernel = s.every_isa ? s.every_isa : active->*s.kernel;
  int error;
  if (recording) {
    recording->add(s.name, kernel, words, count);
    Py_RETURN_NONE;
  }
  if (s.release_gil) {
    PyThreadState* state = PyEval_SaveThread();
    error = kernel(words);
    PyEval_RestoreThread(state);
  } else {
    error = kernel(words);
  }
  if (error) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

// ---- tapes ----

constexpr const char* TAPE = "inferplane_xeon.tape";

PyObject* record(PyObject*, PyObject*) {
  if (recording) {
    PyErr_SetString(PyExc_RuntimeError, "this thread is recording already");
    return nullptr;
  }
  recording = new Tape;
  Py_RETURN_NONE;
}

PyObject* recorded(PyObject*, PyObject*) {
  if (!recording) {
    PyErr_SetString(PyExc_RuntimeError, "this thread records nothing");
    return nullptr;
  }
  Tape* tape = recording;
  recording = nullptr;
  PyObject* made = PyCapsule_New(tape, TAPE, [](PyObject* capsule) {
    delete static_cast<Tape*>(PyCapsule_GetPointer(capsule, TAPE));
  });
  if (!made) delete tape;
  return made;
}

PyObject* calls(PyObject*, PyObject* capsule) {
  auto tape = static_cast<Tape*>(PyCapsule_GetPointer(capsule, TAPE));
  return tape ? PyLong_FromSize_t(tape->calls.size()) : nullptr;
}

PyObject* replay(PyObject*, PyObject* capsule) {
  auto tape = static_cast<Tape*>(PyCapsule_GetPointer(capsule, TAPE));
  if (!tape) return nullptr;
  PyThreadState* state = PyEval_SaveThread();
  int error = tape->replay();
  PyEval_RestoreThread(state);
  if (error) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

PyObject* times(PyObject*, PyObject* capsule) {
  auto tape = static_cast<Tape*>(PyCapsule_GetPointer(capsule, TAPE));
  if (!tape) return nullptr;
  std::vector<double> seconds(tape->calls.size());
  if (tape->replay(seconds.data())) return PyErr_NoMemory();
  PyObject* made = PyList_New(0);
  for (size_t i = 0; made && i < seconds.size(); i++) {
    PyObject* item = Py_BuildValue("(sd)", tape->calls[i].name, seconds[i]);
    if (!item || PyList_Append(made, item)) Py_CLEAR(made);
    Py_XDECREF(item);
  }
  return made;
}

// ---- settings ----

PyObject* isas(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (const KernelTable* table : tables) {
    if (!names || !supported(table->isa)) continue;
    PyObject* name = PyUnicode_FromString(table->isa);
    if (!name || PyList_Append(names, name)) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

PyObject* isa(PyObject*, PyObject*) {
  return PyUnicode_FromString(active ? active->isa : "");
}

PyObject* set_isa(PyObject*, PyObject* name) {
  PyObject* bytes = PyUnicode_AsUTF8String(name);
  if (!bytes) return nullptr;
  const char* wanted = PyBytes_AsString(bytes);
  const KernelTable* found = table_amx_emulated();  // named by tests, never chosen
  if (strcmp(found->isa, wanted) || !supported(wanted)) found = nullptr;
  for (const KernelTable* table : tables) {
    if (!strcmp(table->isa, wanted) && supported(wanted)) found = table;
  }
  Py_DECREF(bytes);
  if (!found) {
    return PyErr_Format(PyExc_ValueError, "this processor does not run instruction set %R", name);
  }
  active = found;
  Py_RETURN_NONE;
}

PyObject* threads(PyObject*, PyObject*) { return PyLong_FromLong(thread_count()); }

PyObject* set_threads(PyObject*, PyObject* count) {
  long n = PyLong_AsLong(count);
  if (n == -1 && PyErr_Occurred()) return nullptr;
  set_thread_count(static_cast<int>(n));
  return PyLong_FromLong(thread_count());
}

PyObject* bind_to(PyObject*, PyObject* cpus) {
  int numbers[CPU_SETSIZE];
  Py_ssize_t count = PyList_Size(cpus);
  if (count < 0) return nullptr;
  if (count > CPU_SETSIZE) return PyErr_Format(PyExc_ValueError, "%zd processors", count);
  for (Py_ssize_t i = 0; i < count; i++) {
    long cpu = PyLong_AsLong(PyList_GetItem(cpus, i));
    if (cpu == -1 && PyErr_Occurred()) return nullptr;
    if (cpu < 0 || cpu >= CPU_SETSIZE) {
      return PyErr_Format(PyExc_ValueError, "processor %ld is not below %d", cpu, CPU_SETSIZE);
    }
    numbers[i] = static_cast<int>(cpu);
  }
  bind_threads(numbers, static_cast<int>(count));
  Py_RETURN_NONE;
}

template <int INDEX>
PyMethodDef method() {
  return {SIGNATURES[INDEX].name, reinterpret_cast<PyCFunction>(
              reinterpret_cast<void (*)()>(call<INDEX>)), METH_FASTCALL, nullptr};
}

PyMethodDef METHODS[] = {
    method<0>(), method<1>(), method<2>(), method<3>(), method<4>(), method<5>(), method<6>(),
    method<7>(), method<8>(), method<9>(), method<10>(), method<11>(), method<12>(), method<13>(),
    method<14>(), method<15>(), method<16>(),
    {"record", record, METH_NOARGS, "Take this thread's calls onto a new tape."},
    {"recorded", recorded, METH_NOARGS, "The tape since `record`, which ends."},
    {"calls", calls, METH_O, "How many calls a tape has."},
    {"replay", replay, METH_O, "Do all calls of a tape."},
    {"times", times, METH_O, "The same; returns (kernel, seconds) of each call."},
    {"isas", isas, METH_NOARGS, "Instruction sets that this processor runs, best first."},
    {"isa", isa, METH_NOARGS, "The instruction set in use."},
    {"set_isa", set_isa, METH_O, "Use another instruction set."},
    {"threads", threads, METH_NOARGS, "Threads in use."},
    {"set_threads", set_threads, METH_O, "Wanted threads; returns what is possible."},
    {"bind", bind_to, METH_O, "Processor of each thread, the caller's first; []: none."},
    {nullptr, nullptr, 0, nullptr},
};
static_assert(KERNELS == 17, "one method per kernel");

PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_kernels",
                      "C++ kernels; see inferplane_xeon.kernels", -1, METHODS,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernels() {
  tables[0] = table_amx();
  tables[1] = table_avx512_bf16();
  tables[2] = table_avx512_vnni();
  tables[3] = table_avx512();
  tables[4] = table_avx2();
  for (const KernelTable* table : tables) {
    if (!active && supported(table->isa)) active = table;
  }
  if (!active) {
    PyErr_SetString(PyExc_ImportError, "the kernels need a processor with AVX2 and FMA");
    return nullptr;
  }
  return PyModule_Create(&MODULE);
}
