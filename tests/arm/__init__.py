"""lensmith on aarch64 without an Arm processor: emulated by qemu, in a root of Debian's packages and PyPI's wheels."""
