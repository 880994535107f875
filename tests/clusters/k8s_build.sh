#!/usr/bin/env bash
# kube-apiserver, kube-controller-manager and kube-scheduler 1.20.2 from Debian 12's source package, which carries its
# dependencies; 4 minutes on two cores, once: the binaries stay in the user's cache folder. The Debian packages that it
# takes are installed, where this is root.
#
# Prints the folder with the binaries. MLPERF_CLUSTERS_CACHE: another cache folder. DEBIAN_MIRROR: where sources are.
set -euo pipefail
cache=${MLPERF_CLUSTERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mlperf_exp/clusters}
bin=$cache/kubernetes-1.20.2
if [ -x "$bin/kube-apiserver" ] && [ -x "$bin/kube-controller-manager" ] && [ -x "$bin/kube-scheduler" ]; then
  echo "$bin"; exit 0
fi
packages="golang-go golang-github-modern-go-reflect2-dev dpkg-dev"
lacking() { for tool in go apt-get dpkg-source; do command -v $tool > /dev/null || echo $tool; done; [ -d /usr/share/gocode/src/github.com/modern-go/reflect2 ] || echo reflect2; }
if [ -n "$(lacking)" ] && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=600 install $packages; } >&2
fi
[ -z "$(lacking)" ] || { echo "k8s_build.sh: $(lacking | paste -sd' ') missing; apt-get install $packages" >&2; exit 1; }
mkdir -p "$cache"
exec 9> "$cache/build.lock"; flock 9                   # a second build waits for the first, and then finds it done
[ ! -x "$bin/kube-scheduler" ] || { echo "$bin"; exit 0; }
work=$cache/build; mkdir -p "$work/apt/partial" "$work/go/src/k8s.io" "$work/bin"
{
  cd "$work"
  source=$work/go/src/k8s.io/kubernetes
  if [ ! -d "$source" ]; then                          # a list of sources of our own: the system's stays as it is
    mirror=${DEBIAN_MIRROR:-$(sed -n 's/^URIs: *//p; s/^deb \([^ ]*\) .*/\1/p' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2> /dev/null | head -n 1 || true)}
    echo "deb-src $mirror bookworm main" > sources.list
    options="-o Dir::Etc::sourcelist=$work/sources.list -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists=$work/apt -o APT::Sandbox::User=root"
    apt-get -q $options update
    apt-get -q $options source --download-only kubernetes
    rm -rf "$source.part"
    dpkg-source --no-check -x kubernetes_*.dsc "$source.part"
    mv "$source.part" "$source"
  fi
  cd "$source"
  export GOPATH=$work/go GOCACHE=$work/gocache GO111MODULE=off CGO_ENABLED=0 GOFLAGS=
  # The copy in vendor/ does not build with the Go of Debian 12.
  rm -rf vendor/github.com/modern-go/reflect2
  cp -r /usr/share/gocode/src/github.com/modern-go/reflect2 vendor/github.com/modern-go/
  # Upstream's releases carry a generated file that Debian's source lacks: the API's OpenAPI description.
  go build -o "$work/bin/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  annotated=$(grep -rl --include=doc.go '+k8s:openapi-gen=true' pkg staging/src/k8s.io vendor/k8s.io | xargs -n1 dirname \
    | sed -e 's#^staging/src/##' -e 's#^vendor/##' -e 's#^pkg#k8s.io/kubernetes/pkg#')
  more=$(grep -rl --include=*.go '+k8s:openapi-gen=true' staging/src/k8s.io | grep -v -e zz_ -e _test.go \
    | grep -v -E '/(examples|test|sample-apiserver|code-generator|wardle)/' | xargs -n1 dirname | sed 's#^staging/src/##')
  packages=$(printf '%s\n%s\n' "$annotated" "$more" | grep -v -E 'sample-apiserver|code-generator|testdata|/test/' | sort -u | paste -sd,)
  "$work/bin/openapi-gen" -O zz_generated.openapi -p k8s.io/kubernetes/pkg/generated/openapi \
    -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -i "$packages" -r "$work/violations.txt" --output-base "$GOPATH/src"
  version=k8s.io/component-base/version
  flags="-s -w -X $version.gitVersion=v1.20.2 -X $version.gitMajor=1 -X $version.gitMinor=20"
  for program in kube-apiserver kube-controller-manager kube-scheduler; do
    go build -ldflags "$flags" -o "$work/bin/$program" ./cmd/$program
  done
} >&2
mkdir -p "$bin"
for program in kube-apiserver kube-controller-manager kube-scheduler; do mv "$work/bin/$program" "$bin/$program"; done
chmod -R u+w "$work"; rm -rf "$work"
echo "$bin"
