"""A box in an emulator: qemu with UEFI and a TPM in software, sticks, and a publisher."""
