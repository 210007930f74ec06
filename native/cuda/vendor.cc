// The search for NVIDIA's libraries.
#include "vendor.h"

#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

namespace longseq::cuda {

namespace {

using Folders = std::vector<std::string>;

void add_matches(Folders &folders, const std::string &pattern) {
  glob_t found;
  if (glob(pattern.c_str(), GLOB_NOSORT, nullptr, &found) == 0) {
    std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + found.gl_pathc);
    // Newer versions sort last: they are tried first.
    std::sort(paths.rbegin(), paths.rend());
    folders.insert(folders.end(), paths.begin(), paths.end());
  }
  globfree(&found);
}

std::string environment(const char *name) {
  const char *value = getenv(name);
  return value ? value : "";
}

Folders split(const std::string &list) {
  Folders folders;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(':', begin), list.size());
    if (end > begin) folders.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return folders;
}

// nvidia/<package>/lib below a folder that Python packages are installed in.
void add_wheels(Folders &folders, const std::string &site) { add_matches(folders, site + "/nvidia/*/lib"); }

// lib/python3.*/site-packages below a Python installation or virtual environment.
void add_python(Folders &folders, const std::string &prefix) {
  for (const char *sites : {"/lib/python3*/site-packages", "/lib/python3*/dist-packages"})
    add_wheels(folders, prefix + sites);
}

// The installation that a python3 on PATH belongs to: the folder above its bin, links followed and not.
void add_python_on_path(Folders &folders) {
  for (const std::string &folder : split(environment("PATH"))) {
    const std::string program = folder + "/python3";
    if (access(program.c_str(), X_OK) != 0) continue;
    add_python(folders, folder + "/..");
    char real[PATH_MAX];
    if (realpath(program.c_str(), real)) {
      const std::string path = real;
      add_python(folders, path.substr(0, path.rfind('/')) + "/..");
    }
  }
  // pyenv's python3 on PATH is a script of its own.
  std::string pyenv = environment("PYENV_ROOT");
  if (pyenv.empty()) pyenv = environment("HOME") + "/.pyenv";
  add_python(folders, pyenv + "/versions/*");
}

// The folder of liblongseq_cuda.so.
std::string own_folder() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void *>(&own_folder), &info) || !info.dli_fname) return ".";
  char real[PATH_MAX];
  const std::string path = realpath(info.dli_fname, real) ? real : info.dli_fname;
  return path.substr(0, path.rfind('/'));
}

Folders search_folders() {
  Folders folders;
  for (const std::string &folder : split(environment("LONGSEQ_CUDA_LIBS"))) {
    folders.push_back(folder);
    add_wheels(folders, folder);
  }
  // Who names folders wants those and no others.
  if (!folders.empty()) return folders;
  for (const std::string &folder : split(environment("LD_LIBRARY_PATH"))) folders.push_back(folder);
  for (const std::string &toolkit :
       {environment("CUDA_HOME"), environment("CUDA_PATH"), std::string("/usr/local/cuda")})
    if (!toolkit.empty())
      for (const char *below : {"/lib64", "/lib", "/targets/x86_64-linux/lib"}) folders.push_back(toolkit + below);
  for (const char *name : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const std::string prefix = environment(name); !prefix.empty()) add_python(folders, prefix);
  add_python_on_path(folders);
  add_python(folders, environment("HOME") + "/.local");
  add_python(folders, "/usr/local");
  add_python(folders, "/usr");
  // Of a clone, whose library lies in build/Release or prebuilds/linux-x64.
  add_wheels(folders, own_folder() + "/../../.cache/cuda");
  for (const char *folder : {"/usr/lib/x86_64-linux-gnu", "/usr/lib64"}) folders.push_back(folder);
  return folders;
}

}  // namespace

VendorLibrary open_vendor(const char *soname, const char *package, bool global,
                          const std::function<std::string(void *handle)> &check) {
  VendorLibrary library;
  const int flags = RTLD_NOW | (global ? RTLD_GLOBAL : RTLD_LOCAL);
  for (const std::string &folder : search_folders()) {
    const std::string path = folder + "/" + soname;
    char real[PATH_MAX];
    if (!realpath(path.c_str(), real)) continue;
    std::string complaint;
    if (void *handle = dlopen(real, flags)) {
      complaint = check ? check(handle) : "";
      if (complaint.empty()) {
        library.handle = handle;
        library.path = real;
        library.error.clear();
        return library;
      }
      dlclose(handle);
    } else {
      complaint = dlerror();
    }
    // The first found is what the user meant; the others are only hoped for.
    if (library.error.empty()) library.error = std::string(real) + " cannot be used: " + complaint;
  }
  const std::string chosen = environment("LONGSEQ_CUDA_LIBS");
  if (library.error.empty())
    library.error = std::string(soname) + " is not found in " +
                    (chosen.empty() ? "LD_LIBRARY_PATH, the CUDA toolkit or Python's site-packages"
                                    : "LONGSEQ_CUDA_LIBS (" + chosen + ")");
  library.error += std::string("; install it with `pip install ") + package +
                   "` or set LONGSEQ_CUDA_LIBS to the folder that holds it";
  return library;
}

}  // namespace longseq::cuda
