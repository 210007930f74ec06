// The backends: those built in, and those opened from a shared library.
#ifndef LONGSEQ_RUNTIME_REGISTRY_H
#define LONGSEQ_RUNTIME_REGISTRY_H

#include <string>
#include <vector>

#include "longseq/backend.h"
#include "longseq/comm.h"
#include "runtime/attention_engine.h"

namespace longseq {

// "cpu", "meta", or one that open_backend brought. Throws Error(LS_UNSUPPORTED) that names those at hand.
const ls_backend *find_backend(const std::string &name);
// Opens a shared library that exports ls_backend_open and checks its version; returns the backend's name.
std::string open_backend(const std::string &path);
std::vector<std::string> backend_names();
// How the backend is told which attention kernels to run; null where it has no choice.
AttentionOption attention_option(const ls_backend *backend);
// How ranks exchange the memory of the backend's devices; its library is opened by the first call. Throws Error.
const ls_comm_table *comm_table_of(const ls_backend *backend);

namespace cpu {
const ls_backend *backend();
}
namespace meta {
const ls_backend *backend();
}

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_REGISTRY_H
