# Sourced by the three run.sh: finds what the machine has and installs what is missing (Debian and Ubuntu; elsewhere it says what).

# have <command-or-package>: a command on PATH or an installed Debian package.
have() { command -v "$1" >/dev/null 2>&1 || dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

# install_missing <command:package or package>...: needs the network only if something is missing.
install_missing() {
  local need missing=()
  for need in "$@"; do
    have "${need%%:*}" || missing+=("${need##*:}")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  echo "Installing: ${missing[*]}"
  if ! command -v apt-get >/dev/null; then
    echo "This machine has no apt-get; please install what these Debian packages hold: ${missing[*]}" >&2
    return 1
  fi
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

build_tools=(g++ cmake ninja:ninja-build pkg-config)
engine_libraries=(nlohmann-json3-dev libcli11-dev libpcre2-dev libutf8proc-dev libcpp-httplib-dev)

# The CUDA Toolkit is never installed, only used where it is; its bin folder is often not on PATH.
if ! command -v nvcc >/dev/null 2>&1 && [ -x /usr/local/cuda/bin/nvcc ]; then
  export PATH="/usr/local/cuda/bin:$PATH"
fi
has_nvcc() { command -v nvcc >/dev/null 2>&1; }
has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# compiles_cuda: an nvcc may be too old for C++20 or for this machine's g++.
compiles_cuda() {
  local folder result=0
  folder=$(mktemp -d)
  echo '__global__ void probe_kernel() {}' >"$folder/probe.cu"
  nvcc -std=c++20 -c "$folder/probe.cu" -o "$folder/probe.o" >/dev/null 2>&1 || result=1
  rm -r "$folder"
  return $result
}

# cuda_settings: the CMake settings for a program that is built to run here: the GPU it has, or no CUDA at all.
cuda_settings() {
  if ! { has_nvcc && has_gpu; }; then
    echo "-DPAGEDKV_CUDA=OFF"
  elif ! compiles_cuda; then
    echo "Not using the GPU: $(command -v nvcc) does not compile C++20 with the compiler it finds here" >&2
    echo "-DPAGEDKV_CUDA=OFF"
  elif [ "$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)" = "9.0" ]; then
    echo "-DPAGEDKV_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90a"
  else
    echo "-DPAGEDKV_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=80"
  fi
}
