// What PyTorch's autograd and its choice of operators ask of CUDA, answered where there is no GPU, so that whole
// training steps run over fake CUDA tensors. Preloaded (LD_PRELOAD), it stands in front of libtorch's own
// `getCUDAHooks`.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
constexpr long CUDNN = 92400;  // what the choice of operators takes for the version of cuDNN: 9.24

struct NoGpu final : at::CUDAHooksInterface {
  // Autograd asks which devices have a context, to take up their streams again; without an answer it fails.
  bool hasPrimaryContext(at::DeviceIndex) const override { return true; }
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

// A PyTorch built for the CPU alone cannot make a CUDA device the current one, which indexing does, and knows no stream
// of it, which autograd asks for; one built for CUDA puts its own guard here later.
struct OneStream final : c10::impl::NoOpDeviceGuardImpl<at::DeviceType::CUDA> {
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, {at::kCUDA, 0});
  }
};
C10_REGISTER_GUARD_IMPL(CUDA, OneStream)
}  // namespace

namespace at::detail {
const CUDAHooksInterface& getCUDAHooks() {
  static const NoGpu* const hooks = new NoGpu;  // never destroyed: threads ask until the process ends
  return *hooks;
}
}  // namespace at::detail
