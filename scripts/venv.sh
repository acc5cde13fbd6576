# Sourced by scripts/test.sh and examples/quickstart.sh. It goes to the repository root and sets `python` to the
# interpreter of .venv. It builds .venv if that is missing or unfinished, or was built from another pyproject.toml,
# constraints.txt, setup.py or C sources.

CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

venv_fail() {
    echo "rnndrop: $1" >&2
    exit 2
}

# The first suitable Python on the PATH. Each one is run, because a name alone may not work (pyenv's shims).
venv_find_python() {
    local name version found=""
    for name in python3.11 python3.12 python3; do
        version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        case $version in
            3.11 | 3.12)
                "$name" -c "import ensurepip, venv" 2>/dev/null ||
                    venv_fail "$name cannot make virtual environments (on Debian: apt-get install python$version-venv)"
                command -v "$name"
                return
                ;;
        esac
        found=", not $version"
    done
    venv_fail "needs Python 3.11 or 3.12${found:-; there is no python3 on the PATH}"
}

venv_build() {
    local built=.venv/rnndrop # identifies what .venv was built from; empty as long as it is unfinished
    local have want base
    exec 9<. && flock 9 # one build at a time
    have=$(cat $built 2>/dev/null) && .venv/bin/python -c "" 2>/dev/null || have=""
    want=$(cat pyproject.toml constraints.txt $(ls setup.py rnndrop_plugin/ops/csrc/*.[ch] 2>/dev/null) | cksum)
    want="$want $PWD" # an environment cannot be moved, because its scripts name its folder
    if [ "$have" != "$want" ]; then
        if [ -n "$have" ] && [ "${have#* * }" = "$PWD" ]; then
            echo "rnndrop: bringing .venv up to date" >&2
            : >$built
        else
            [ ! -e .venv ] || [ -e $built ] || venv_fail "$PWD/.venv was not built by this command; move it away first"
            base=$(PATH=${PATH//"$PWD/.venv/bin:"/} && venv_find_python)
            echo "rnndrop: building .venv with $("$base" --version), which takes a few minutes" >&2
            rm -rf .venv && mkdir .venv && : >$built
            "$base" -m venv .venv >&2 || venv_fail "cannot build .venv"
        fi
        PIP_ROOT_USER_ACTION=ignore .venv/bin/python -m pip install -qq --disable-pip-version-check \
            --constraint constraints.txt --editable ".[fairseq,dev,plots]" >&2 ||
            venv_fail "cannot install into .venv, for the reason above; the next run begins anew"
        # torch's builds for CUDA install the Triton that they need. With other builds it is for tests of GPU kernels.
        .venv/bin/python -c "import triton" 2>/dev/null ||
            PIP_ROOT_USER_ACTION=ignore .venv/bin/python -m pip install -qq --disable-pip-version-check \
                --constraint constraints.txt triton==3.9.0 >&2 ||
            echo "rnndrop: there is no Triton for this machine; the tests of its kernels will be skipped" >&2
        echo "$want" >$built
    fi
    exec 9<&-
}

venv_build
python=$PWD/.venv/bin/python
