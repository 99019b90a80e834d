// What PyTorch's autograd and its choice of operators ask of CUDA, answered where there is no GPU, so that whole
// training steps run over fake CUDA tensors. Preloaded (LD_PRELOAD), it stands in front of libtorch's own
// `getCUDAHooks`.
#include <ATen/detail/CUDAHooksInterface.h>

namespace {
constexpr long CUDNN = 92400;  // what the choice of operators takes for the version of cuDNN: 9.24

struct NoGpu final : at::CUDAHooksInterface {
  // Autograd asks which devices have a context, to return to them; without an answer it fails.
  bool hasPrimaryContext(at::DeviceIndex) const override { return false; }
  // The end of a backward pass looks for the accelerator that PyTorch was built for.
  bool isBuilt() const override { return true; }
  // Convolutions and batch norms ask for cuDNN, and take other operators where there is none.
  bool hasCUDA() const override { return true; }
  bool hasCuDNN() const override { return true; }
  bool compiledWithCuDNN() const override { return true; }
  long versionCuDNN() const override { return CUDNN; }
  long versionRuntimeCuDNN() const override { return CUDNN; }
  double batchnormMinEpsilonCuDNN() const override { return 0.0; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return true; }
};
}  // namespace

namespace at::detail {
const CUDAHooksInterface& getCUDAHooks() {
  static const NoGpu* const hooks = new NoGpu;  // never destroyed: threads ask until the process ends
  return *hooks;
}
}  // namespace at::detail
