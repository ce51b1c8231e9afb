# The devices of QEMU's configuration (configs/devices/x86_64-softmmu): the machine that VMs are, and the two kinds of
# device that engine/src/qemu/command.rs gives them. What the machine itself needs follows from it.
CONFIG_MICROVM=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_SERIAL=y
