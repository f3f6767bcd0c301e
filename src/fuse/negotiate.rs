//! Negotiates the settings of a connection with the kernel.

use fuser::{InitFlags, KernelConfig};

/// Number of readahead requests that the kernel keeps in flight. Beyond it, readers wait for each other.
const MAX_BACKGROUND: u16 = 64;

/// Requests those of `capabilities` that the kernel offers.
pub(super) fn negotiate(config: &mut KernelConfig, capabilities: InitFlags) {
    let offered = capabilities & config.capabilities();
    if offered != capabilities {
        tracing::warn!(missing = ?capabilities.difference(offered), "the kernel's FUSE lacks capabilities");
    }
    // These calls cannot fail: the kernel offered the capabilities, and 64 is not 0.
    let _ = config.add_capabilities(offered);
    let _ = config.set_max_background(MAX_BACKGROUND);
}
