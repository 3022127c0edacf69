"""A box in an emulator: qemu with UEFI and a software TPM, sticks, and a publisher on this machine."""
