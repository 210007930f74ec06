// The names that the CUDA backend looks up in libcublasLt.so.13, for tests where NVIDIA's is not at hand. Its version
// is LONGSEQ_FAKE_CUBLASLT, or 13.1.0.
#include <cstddef>
#include <cstdlib>

#define FAKE extern "C" __attribute__((visibility("default")))

FAKE size_t cublasLtGetVersion() {
  const char *version = std::getenv("LONGSEQ_FAKE_CUBLASLT");
  return version ? std::strtoul(version, nullptr, 10) : 130100;
}

// Never called: no device gets that far.
#define FAKE_UNUSED(name) \
  FAKE int cublasLt##name() { return 1; }
FAKE_UNUSED(Create)
FAKE_UNUSED(Destroy)
FAKE_UNUSED(MatmulDescCreate)
FAKE_UNUSED(MatmulDescDestroy)
FAKE_UNUSED(MatmulDescSetAttribute)
FAKE_UNUSED(MatrixLayoutCreate)
FAKE_UNUSED(MatrixLayoutDestroy)
FAKE_UNUSED(MatrixLayoutSetAttribute)
FAKE_UNUSED(MatmulPreferenceCreate)
FAKE_UNUSED(MatmulPreferenceDestroy)
FAKE_UNUSED(MatmulPreferenceSetAttribute)
FAKE_UNUSED(MatmulAlgoGetHeuristic)
FAKE_UNUSED(Matmul)
FAKE_UNUSED(GetStatusName)
