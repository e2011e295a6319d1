"""The images of a network's kernels, as NVRTC really makes them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import SE
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.plugins.compile import compile_kernels
from cbam_deploy.plugins.entries import Kernel
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import KNOWN_DEVICES, plan
from cbam_deploy.plugins.images import KernelImages, headed, ptx_version

pytest.importorskip("cuda.bindings.nvrtc", reason="needs the extra kernels")


IN_48_KIB = replace(KNOWN_DEVICES[80], block_shared_bytes=48 * 1024)


def excitation(channels: int) -> Kernel:
    """A kernel that compiles fast."""
    gate = Gate(operator_for(SE), channels, 5, 5, 4)
    return plan(gate, IN_48_KIB, strategy="staged").launches[1].kernel


ONE, OTHER = excitation(20), excitation(12_500)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Of two kernels, one of which two targets use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        found = KernelImages(ptx_version("10.3"))
        found.want(ONE, 89)
        found.want(ONE, 87)
        found.want(OTHER, 89)
        found.make()
        return found


def test_machine_code_is_for_every_target_and_ptx_for_the_earliest(images):
    assert ONE.name != OTHER.name
    assert set(images.content) == {
        (ONE.name, "sm_87"),
        (ONE.name, "sm_89"),
        (ONE.name, "compute_87"),
        (OTHER.name, "sm_89"),
        (OTHER.name, "compute_89"),
    }
    for (name, architecture), content in images.content.items():
        if architecture.startswith("sm_"):
            assert content.startswith(b"\x7fELF")
        else:
            assert content.count(b"\0") == 1
            assert content.endswith(b"\0")
            assert b".version 8.5\n" in content
            assert f".target {architecture.replace('compute', 'sm')}".encode() in content
            assert f".entry {name}(".encode() in content


def test_each_image_is_carried_by_the_first_node_that_uses_it(images):
    first, carried = images.of_node([ONE])
    second, also_carried = images.of_node([ONE, OTHER])
    assert [image.entry for image in first] == [ONE.name] * 3
    assert len(carried) == sum(image.bytes for image in first)
    assert [image.offset for image in second if image.entry == ONE.name] == [None] * 3
    for image, content in ((one, carried) for one in first):
        part = content[image.offset : image.offset + image.bytes]
        assert part == images.content[image.entry, image.architecture]
        assert image.key == hashlib.sha256(part).hexdigest()[:16]
    assert next(image.offset for image in second if image.entry == OTHER.name) == 0
    assert len(also_carried) == sum(one.bytes for one in second if one.entry == OTHER.name)


def test_ptx_that_comes_with_machine_code_is_what_a_compilation_for_ptx_gives(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    beside, alone = compile_kernels([ONE], "sm_87").ptx, compile_kernels([ONE], "compute_87").image

    def code(ptx: bytes) -> list[str]:
        lines = ptx.decode().rstrip("\0").splitlines()
        return [line for line in lines if line and not line.startswith("//")]

    assert code(beside) == code(alone)


PTX = b"//\n.version 9.0\n.target sm_%d\n.address_size 64\n\0"


@pytest.mark.parametrize(
    ("tensorrt", "capability", "version"),
    [
        ("10", 87, b"8.4"),
        ("10.0", 87, b"8.4"),
        ("10.0.1", 90, b"8.4"),
        ("10.3", 87, b"8.5"),
        ("10.7", 89, b"8.5"),
        ("10.8", 89, b"8.7"),
        ("11.4", 90, b"8.7"),
        # Never below what the target itself needs.
        ("10.3", 100, b"8.6"),
        ("10.3", 120, b"8.7"),
        ("10.3", 121, b"8.8"),
        ("10.13.3", 110, b"9.0"),
    ],
)
def test_header_of_ptx_asks_for_no_newer_driver_than_tensorrt_does(tensorrt, capability, version):
    made = headed(PTX % capability, ptx_version(tensorrt), capability)
    assert made == (PTX % capability).replace(b"9.0", version)


def test_header_is_never_raised():
    old = PTX.replace(b"9.0", b"8.0") % 80
    assert headed(old, (8, 7), 80) == old


def test_every_target_after_8_9_whose_ptx_is_newer_than_tensorrt_10_0_is_known():
    # PTX ISA, "Release Notes": sm_100 came with 8.6, sm_110 with 9.0, sm_120 with 8.7, ...
    for capability in KNOWN_DEVICES:
        made = headed(PTX % capability, (8, 4), capability)
        (found,) = re.findall(rb"\.version (\d+\.\d+)", made)
        assert (found == b"8.4") == (capability <= 90)


@pytest.mark.parametrize("tensorrt", ["", "ten", "10.x", "10.", "10.3;rm"])
def test_what_is_no_version_is_refused(tensorrt):
    with pytest.raises(BadInput, match="no version of TensorRT"):
        ptx_version(tensorrt)


@pytest.mark.parametrize("tensorrt", ["8.6", "9"])
def test_tensorrt_older_than_the_plugin_interface_is_refused(tensorrt):
    with pytest.raises(BadInput, match=f"TensorRT {tensorrt} has no plugins of the kind"):
        ptx_version(tensorrt)


def test_tensorrt_newer_than_the_plugin_library_knows_is_refused():
    assert ptx_version("11.9") == (8, 7)
    with pytest.raises(BadInput, match=r"TensorRT 12\.0 is newer than"):
        ptx_version("12.0")


def test_a_target_that_nvrtc_does_not_know_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = KernelImages((8, 5))
    found.want(ONE, 72)
    with pytest.raises(BadInput, match="sm_72: not an architecture that NVRTC knows"):
        found.make()
