//! The engine overlay2: layers unpacked into directories, for the kernel's overlayfs to merge.

pub(super) mod overlay2;
