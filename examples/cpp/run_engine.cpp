// Runs a TensorRT engine, with the library of our plugin where the engine does not carry it.
//
//   run_engine MODEL.engine BATCH [libcbam_deploy_plugin.so]
//
// It feeds ones, prints each output's first values, and the median time of a hundred runs. One file,
// TensorRT 10.0 to 11.x and CUDA's runtime, nothing else of ours:
//
//   g++ -O2 -std=c++17 run_engine.cpp -o run_engine -I/usr/local/cuda/include
//       -L/usr/local/cuda/lib64 -lnvinfer -lcudart
//
// It compiles against NVIDIA's headers, by a test. It has not run yet: that takes a GPU.

#include <NvInfer.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace {

class Logger : public nvinfer1::ILogger {
  void log(Severity severity, char const* text) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", text);
  }
};

[[noreturn]] void fail(std::string const& what) {
  std::fprintf(stderr, "error: %s\n", what.c_str());
  std::exit(1);
}

void check(cudaError_t code) {
  if (code != cudaSuccess) fail(cudaGetErrorString(code));
}

struct FreeOnDevice {
  void operator()(void* memory) const { cudaFree(memory); }
};

// A tensor of the network, in memory of the GPU.
struct Tensor {
  std::string name;
  nvinfer1::DataType type;
  bool isInput;
  size_t elements;
  std::unique_ptr<void, FreeOnDevice> memory;

  size_t bytes() const { return elements * (type == nvinfer1::DataType::kHALF ? 2 : 4); }
};

std::vector<char> ones(Tensor const& tensor) {
  std::vector<char> bytes(tensor.bytes());
  if (tensor.type == nvinfer1::DataType::kHALF) {
    std::fill_n(reinterpret_cast<__half*>(bytes.data()), tensor.elements, __float2half(1.0F));
  } else {
    std::fill_n(reinterpret_cast<float*>(bytes.data()), tensor.elements, 1.0F);
  }
  return bytes;
}

float valueAt(Tensor const& tensor, std::vector<char> const& bytes, size_t index) {
  if (tensor.type == nvinfer1::DataType::kHALF) {
    return __half2float(reinterpret_cast<__half const*>(bytes.data())[index]);
  }
  return reinterpret_cast<float const*>(bytes.data())[index];
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) fail("usage: run_engine MODEL.engine BATCH [libcbam_deploy_plugin.so]");
  int const batch = std::atoi(arguments[2]);
  if (batch < 1) fail("BATCH is a number from 1 on");

  std::ifstream file(arguments[1], std::ios::binary);
  std::vector<char> const bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.empty()) fail(std::string(arguments[1]) + ": cannot be read");

  // 1. The plugin comes before the engine that needs it. An engine that carries it runs its code:
  //    allow that for engines only that you trust.
  Logger logger;
  std::unique_ptr<nvinfer1::IRuntime> runtime{nvinfer1::createInferRuntime(logger)};
  if (!runtime) fail("TensorRT does not start");
  if (count > 3) {
    if (!runtime->getPluginRegistry().loadLibrary(arguments[3])) fail("no plugin in the library");
  } else {
    runtime->setEngineHostCodeAllowed(true);
  }
  std::unique_ptr<nvinfer1::ICudaEngine> engine{
      runtime->deserializeCudaEngine(bytes.data(), bytes.size())};
  if (!engine) fail(std::string(arguments[1]) + ": TensorRT cannot load it");
  std::unique_ptr<nvinfer1::IExecutionContext> context{engine->createExecutionContext()};
  if (!context) fail("no memory for a context");

  // 2. Inputs get the batch; other sizes have to be fixed. Shapes of outputs follow.
  for (int index = 0; index < engine->getNbIOTensors(); ++index) {
    char const* name = engine->getIOTensorName(index);
    if (engine->getTensorIOMode(name) != nvinfer1::TensorIOMode::kINPUT) continue;
    nvinfer1::Dims shape = engine->getTensorShape(name);
    if (shape.nbDims > 0 && shape.d[0] == -1) shape.d[0] = batch;
    if (!context->setInputShape(name, shape)) fail("the engine does not take this batch");
  }

  // 3. Memory for each tensor.
  std::vector<Tensor> tensors;
  for (int index = 0; index < engine->getNbIOTensors(); ++index) {
    char const* name = engine->getIOTensorName(index);
    nvinfer1::DataType const type = engine->getTensorDataType(name);
    if (type != nvinfer1::DataType::kFLOAT && type != nvinfer1::DataType::kHALF) {
      fail(std::string(name) + ": this example knows FP32 and FP16 alone");
    }
    nvinfer1::Dims const shape = context->getTensorShape(name);
    size_t elements = 1;
    for (int axis = 0; axis < shape.nbDims; ++axis) {
      if (shape.d[axis] < 0) fail(std::string(name) + ": has another free axis than the batch");
      elements *= static_cast<size_t>(shape.d[axis]);
    }
    bool const isInput = engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    Tensor tensor{name, type, isInput, elements, nullptr};
    void* memory = nullptr;
    check(cudaMalloc(&memory, tensor.bytes()));
    tensor.memory.reset(memory);
    if (isInput) {
      check(cudaMemcpy(memory, ones(tensor).data(), tensor.bytes(), cudaMemcpyHostToDevice));
    }
    if (!context->setTensorAddress(name, memory)) fail(std::string(name) + ": has no address");
    tensors.push_back(std::move(tensor));
  }

  // 4. Run.
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream));
  std::vector<double> milliseconds;
  for (int run = 0; run < 110; ++run) {
    auto const begin = std::chrono::steady_clock::now();
    if (!context->enqueueV3(stream)) fail("the engine does not run");
    check(cudaStreamSynchronize(stream));
    std::chrono::duration<double, std::milli> const took = std::chrono::steady_clock::now() - begin;
    if (run >= 10) milliseconds.push_back(took.count());
  }
  check(cudaStreamDestroy(stream));

  for (Tensor const& tensor : tensors) {
    if (tensor.isInput) continue;
    std::vector<char> values(tensor.bytes());
    check(cudaMemcpy(values.data(), tensor.memory.get(), values.size(), cudaMemcpyDeviceToHost));
    std::printf("%s:", tensor.name.c_str());
    for (size_t index = 0; index < std::min<size_t>(tensor.elements, 8); ++index) {
      std::printf(" %g", valueAt(tensor, values, index));
    }
    std::printf("%s\n", tensor.elements > 8 ? " ..." : "");
  }
  std::nth_element(milliseconds.begin(), milliseconds.begin() + 50, milliseconds.end());
  std::printf("median of 100 runs: %.3f ms\n", milliseconds[50]);
}
